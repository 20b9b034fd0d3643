"""A backend goes: the client keeps its session, and the next one finds another backend."""

from support import ber, samba
from support.clients import RawClient, ldapsearch, python_ldap
from support.net import closed_port
from support.samba import ADMINISTRATOR

FAST = 'health.interval = "200ms"\nhealth.timeout = "200ms"'
SLOW = 'health.probe = "tcp"\nhealth.interval = "1h"'
"""One probe at the start, and never again during the test: only traffic can notice a loss."""


def served_by(connection):
    """The description of the DC that answers on this python-ldap connection."""
    return connection.search_s(samba.BASE, 0, attrlist=["description"])[0][1]["description"][0].decode()


def kill(dcs, name):
    next(dc for dc in dcs if dc.name == name).kill()


def test_a_dc_killed_between_two_searches(start_proxy, dcs):
    """The second search succeeds, on the same connection and under the same identity."""
    proxy = start_proxy([dc.backend for dc in dcs], pool=FAST)
    connection = python_ldap(proxy.endpoint(), ADMINISTRATOR)
    first = served_by(connection)
    kill(dcs, first)
    assert served_by(connection) == ({"dc1", "dc2"} - {first}).pop()
    assert proxy.metrics().sum("ldaps_proxy_failovers_total") >= 1


def test_new_connections_after_a_dc_was_killed(start_proxy, dcs):
    proxy = start_proxy([dc.backend for dc in dcs], pool=SLOW)
    kill(dcs, "dc1")
    for _ in range(6):
        [(_, attributes)] = ldapsearch(proxy.endpoint(), samba.BASE, "-s", "base", "description", account=ADMINISTRATOR)
        assert attributes["description"] == [b"dc2"]


def test_health_goes_down_and_up_again(start_proxy, dcs):
    proxy = start_proxy([dc.backend for dc in dcs], pool=FAST)
    one, other = (dc.backend for dc in dcs)
    proxy.wait_for("ldaps_proxy_backend_up", 2)
    dcs[0].kill()
    proxy.wait_for("ldaps_proxy_backend_up", 0, backend=one)
    assert proxy.metrics().sum("ldaps_proxy_backend_up", backend=other) == 1
    dcs[0].start()
    proxy.wait_for("ldaps_proxy_backend_up", 1, backend=one)


def test_a_frozen_dc_is_taken_out(start_proxy, dcs):
    """SIGSTOP: the kernel goes on accepting connections, so that a TCP probe would see nothing."""
    proxy = start_proxy([dc.backend for dc in dcs], pool=FAST)
    dcs[0].freeze()
    proxy.wait_for("ldaps_proxy_backend_up", 0, backend=dcs[0].backend)
    assert served_by(python_ldap(proxy.endpoint(), ADMINISTRATOR)) == "dc2"


def test_a_backend_that_is_down_gets_no_new_session(start_proxy, start_backend):
    one, other = start_backend(), start_backend()
    proxy = start_proxy([one, other], pool='health.probe = "tcp"\nhealth.interval = "100ms"\nbalance = "round-robin"')
    one.die()
    proxy.wait_for("ldaps_proxy_backend_up", 0, backend=str(one))
    before = proxy.metrics().sum("ldaps_proxy_failovers_total")
    ask_each(proxy, 6)
    assert len(other.sessions()) == 6
    assert proxy.metrics().sum("ldaps_proxy_failovers_total") == before


def test_connect_failover_within_the_budget(start_proxy, start_backend):
    """The pool doesn't know yet that a backend is gone: the client's request goes to the next candidate."""
    one, other = start_backend(), start_backend()
    proxy = start_proxy([one, other], pool=f'{SLOW}\nbalance = "first-available"')
    proxy.wait_for("ldaps_proxy_backend_up", 2)
    one.stop_listening()
    assert ask_each(proxy, 3) == [str(other)] * 3
    metrics = proxy.metrics()
    failures = [metrics.sum("ldaps_proxy_backend_connect_failures_total", backend=str(backend)) for backend in (one, other)]
    assert failures == [metrics.sum("ldaps_proxy_failovers_total", kind="connect"), 0]
    assert failures[0] >= 1


def test_unavailable_when_no_backend_is_left(start_proxy, start_backend):
    """Result 52 for each operation, with a diagnostic; the session stays, and works as soon as a backend is back."""
    backend = start_backend()
    proxy = start_proxy([backend], pool='health.probe = "tcp"\nhealth.interval = "100ms"')
    backend.stop_listening()
    with RawClient(proxy.endpoint()) as client:
        for build, arguments in [(ber.search, ()), (ber.bind, ("cn=x", "y")), (ber.delete, ("cn=x",)), (ber.extended, ("1.2.3",))]:
            answer = client.ask(build, *arguments)[-1]
            assert answer.result_code == ber.UNAVAILABLE
            assert answer.diagnostic
        backend.listen_again()
        proxy.wait_for("ldaps_proxy_backend_up", 1)
        assert client.ask(ber.search)[-1].result_code == ber.SUCCESS


def test_no_backend_from_the_start(start_proxy):
    host, port = closed_port()
    proxy = start_proxy([f"{host}:{port}"], ready=False)
    with RawClient(proxy.endpoint()) as client:
        assert client.ask(ber.search)[-1].result_code == ber.UNAVAILABLE
    assert proxy.http("/readyz")[0] == 503
    assert proxy.http("/healthz")[0] == 200


def test_round_robin_takes_each_in_turn(start_proxy, start_backend):
    backends = [start_backend() for _ in range(3)]
    proxy = start_proxy(backends, pool=f'{SLOW}\nbalance = "round-robin"')
    proxy.wait_for("ldaps_proxy_backend_up", 3)
    assert sorted(ask_each(proxy, 9)) == sorted(map(str, backends * 3))


def test_least_connections_fills_up_evenly(start_proxy, start_backend):
    backends = [start_backend() for _ in range(2)]
    proxy = start_proxy(backends, pool=SLOW)
    proxy.wait_for("ldaps_proxy_backend_up", 2)
    clients = [RawClient(proxy.endpoint()) for _ in range(8)]
    for client in clients:
        client.ask(ber.search)
    for backend in backends:
        assert proxy.metrics().sum("ldaps_proxy_backend_sessions", backend=str(backend)) == 4
        assert len(backend.open()) == 4
    for client in clients:
        client.close()
    proxy.wait_for("ldaps_proxy_backend_sessions", 0)


def ask_each(proxy, count):
    """The backends that answer `count` clients, one after the other."""
    served = []
    for _ in range(count):
        with RawClient(proxy.endpoint()) as client:
            entry, _ = client.ask(ber.search)
            served.append(entry.attributes["description"][0].decode())
    return served
