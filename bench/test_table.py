"""What a run may claim: ratios of the same round, and only of proxies that did what their name says."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from peers import ACCESS_LOG, Peer
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


def test_variants_of_ours_are_set_beside_it_and_are_no_rivals():
    results = {"ops": {"ldaps-proxy": [result(10)], "ldaps-proxy+log": [result(11)], "before": [result(8)],
                       "haproxy": [result(20)]}}
    peers = [*PEERS[:2], peer("ldaps-proxy+log", debian=False), peer("before", debian=False)]
    text = tables(results, {"ops": 4.0}, WORKLOADS, peers)
    assert "| workload | ldaps-proxy+log ÷ ldaps-proxy | before ÷ ldaps-proxy |" in text
    assert "| ops | **1.10** (1.10–1.10) | **0.80** (0.80–0.80) |" in text
    assert "| **0.50** (0.50–0.50) haproxy |" in text
    assert "| ops | 4.00 | 6.00 |" in text, "the floor"


@pytest.mark.parametrize("lines, accepted", [(None, False), (0, False), (9, False), (10, True)])
def test_a_log_that_was_not_written_is_no_measurement(tmp_path, lines, accepted):
    if lines is not None:
        (tmp_path / ACCESS_LOG).write_text("{}\n" * lines)
    logging = Peer("ours+log", None, None, None, logs=True)
    with nullcontext() if accepted else pytest.raises(RuntimeError):
        logging.check(SimpleNamespace(directory=tmp_path), operations=10)
