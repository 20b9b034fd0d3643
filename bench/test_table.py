"""The tables pair the rounds: a ratio is of two results of the same round."""

from types import SimpleNamespace

from table import tables


def peer(name, debian=True, tls=True):
    return SimpleNamespace(name=name, program=name, debian=debian, tls=tls)


def result(cpu_us, operations=1000):
    return {"cpu_ns": cpu_us * 1000 * operations, "operations": operations, "seconds": 2.0}


PEERS = [peer("ldaps-proxy", debian=False), peer("haproxy"), peer("nginx"), peer("haproxy-plain", tls=False)]
WORKLOADS = {"ops": SimpleNamespace(title="ops", figures=("cpu",))}


def test_the_ratio_is_to_the_best_peer_with_tls_round_by_round():
    results = {"ops": {
        "ldaps-proxy": [result(9), result(18), result(8)],
        "haproxy": [result(10), result(20), result(10)],
        "nginx": [result(12), result(12), result(12)],
        "haproxy-plain": [result(1)] * 3,
    }}
    assert "| ops | 9.00 | 10.0 | 12.0 | 1.00 | **0.90** (0.80–0.90) haproxy |" in tables(results, {}, WORKLOADS, PEERS)


def test_a_failed_round_is_left_out_and_a_failed_peer_is_named():
    results = {"ops": {
        "ldaps-proxy": [None, result(5)],
        "haproxy": [result(1), result(10)],
        "nginx": [None, None],
    }}
    assert "| ops | 5.00 | 5.50 | failed | – | **0.50** (0.50–0.50) haproxy |" in tables(results, {}, WORKLOADS, PEERS)


def test_what_our_variants_record_is_set_beside_each_other():
    results = {"ops": {"ldaps-proxy-bare": [result(10)], "ldaps-proxy": [result(11)]}}
    text = tables(results, {"ops": 4.0}, WORKLOADS, PEERS[:1])
    assert "| ops | **1.10** (1.10–1.10) | – |" in text
    assert "| ops | 4.00 | 7.00 |" in text, "the floor"
