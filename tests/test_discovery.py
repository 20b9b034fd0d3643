"""Backends by name: host names, SRV records, and DNS that changes its mind or falls silent."""

import pytest

from support import ber
from support.backend import FakeBackend, answer_everything
from support.clients import RawClient
from support.dns import NameServer
from support.process import run
from support.proxy import BINARY
from support.waiting import eventually

SERVICE = "_ldap._tcp.corp.example.com"
UP = "ldaps_proxy_backend_up"


@pytest.fixture
def dns():
    with NameServer() as server:
        yield server


@pytest.fixture
def backends(start_backend):
    return [start_backend() for _ in range(3)]


@pytest.fixture
def start(start_proxy, dns):
    """Starts a proxy whose pool has `source` as its only backend and asks `dns` again and again."""
    def start(source, pool="", **options):
        return start_proxy([source], pool=f"""{pool}
health.probe = "tcp"
health.interval = "100ms"
health.rise = 1
discovery.name_servers = ["{dns}"]
discovery.min_ttl = "200ms"
discovery.max_ttl = "1s"
""", **options)

    return start


def publish(dns, *services):
    """SRV records, each `(priority, weight, backend)`; every backend's host is a name of its own."""
    records = {(SERVICE, "SRV"): []}
    for number, (priority, weight, backend) in enumerate(services):
        records[SERVICE, "SRV"].append(f"{priority} {weight} {backend.port} dc{number}.corp.example.com.")
        records[f"dc{number}.corp.example.com", "A"] = [backend.host]
    dns.records = records


def ask(proxy):
    """The backend that answers a new session."""
    with RawClient(proxy.endpoint()) as client:
        entry, _ = client.ask(ber.search)
        return entry.attributes["description"][0].decode()


def test_srv_records_name_the_backends(start, dns, backends):
    publish(dns, *((0, 1, backend) for backend in backends))
    proxy = start(f"srv:{SERVICE}", 'balance = "round-robin"')
    proxy.wait_for(UP, 3)
    assert {ask(proxy) for _ in range(9)} == set(map(str, backends))
    assert (SERVICE, "SRV") in dns.asked


def test_lowest_priority_first(start, dns, backends):
    """RFC 2782: the others serve only once it is gone."""
    publish(dns, (10, 1, backends[0]), (0, 1, backends[1]), (10, 1, backends[2]))
    proxy = start(f"srv:{SERVICE}", 'balance = "round-robin"')
    proxy.wait_for(UP, 3)
    assert {ask(proxy) for _ in range(6)} == {str(backends[1])}
    backends[1].die()
    proxy.wait_for(UP, 0, backend=str(backends[1]))
    assert {ask(proxy) for _ in range(6)} == {str(backends[0]), str(backends[2])}


def test_weights_share_the_sessions(start, dns, backends):
    publish(dns, (0, 3, backends[0]), (0, 1, backends[1]))
    proxy = start(f"srv:{SERVICE}", 'balance = "round-robin"')
    proxy.wait_for(UP, 2)
    served = [ask(proxy) for _ in range(40)]
    assert served.count(str(backends[0])) == 30


def test_target_dot_means_no_service(start, dns, backends):
    """RFC 2782"""
    dns.records = {(SERVICE, "SRV"): ["0 0 0 ."]}
    proxy = start(f"srv:{SERVICE}", ready=False)
    eventually(lambda: (SERVICE, "SRV") in dns.asked, "DNS was asked")
    with RawClient(proxy.endpoint()) as client:
        assert client.ask(ber.search)[-1].result_code == ber.UNAVAILABLE
    assert proxy.http("/readyz")[0] == 503


def test_a_removed_backend_drains_and_a_new_one_enters(start, dns, backends):
    """Nobody on it is disturbed: an operation in flight ends as it should, new sessions go to the new one."""
    old, new, _ = backends
    publish(dns, (0, 1, old))
    proxy = start(f"srv:{SERVICE}")
    proxy.wait_for(UP, 1)
    old.answer = lambda connection, pdu: pdu.message_id != 9 and answer_everything(connection, pdu)
    with RawClient(proxy.endpoint()) as client:
        client.send(ber.search(9))
        old.session().wait_for(ber.SEARCH_REQUEST)
        publish(dns, (0, 1, new))
        eventually(lambda: ask(proxy) == str(new), "a new session goes to the new backend")
        old.session().send(ber.result(9, ber.SEARCH_DONE))
        assert client.read_result(9)[-1].result_code == ber.SUCCESS


def test_one_that_comes_back_has_its_sessions_still(start, dns, backends, tmp_path):
    """A regression test: it was a new backend without sessions, which `drain` left where they were."""
    first, second, _ = backends
    publish(dns, (0, 1, first))
    socket = tmp_path / "admin.sock"
    proxy = start(f"srv:{SERVICE}", extra=f'socket = "{socket}"')
    with RawClient(proxy.endpoint()) as client:
        client.ask(ber.search)
        publish(dns, (0, 1, second))
        eventually(lambda: not proxy.metrics().get(UP, backend=str(first)), "the first backend is gone")
        publish(dns, (0, 1, first), (0, 1, second))
        proxy.wait_for(UP, 2)
        proxy.wait_for("ldaps_proxy_backend_sessions", 1, backend=str(first))
        told = run([BINARY, "drain", str(first), "--admin", f"unix:{socket}"]).stdout
        assert "0 sessions" in told.splitlines()[-1]
        client.ask(ber.search)
        assert second.open() and not first.open(), "it was moved"


def test_a_new_backend_enters_through_health(start, dns, backends):
    good, dead, _ = backends
    dead.stop_listening()
    publish(dns, (0, 1, good))
    proxy = start(f"srv:{SERVICE}")
    publish(dns, (0, 1, good), (0, 1, dead))
    eventually(lambda: len(proxy.metrics().get(UP)) == 2, "the new backend is known")
    assert {ask(proxy) for _ in range(6)} == {str(good)}
    dead.listen_again()
    proxy.wait_for(UP, 2)
    eventually(lambda: ask(proxy) == str(dead), "the new backend serves")


@pytest.mark.parametrize("failure", ["silent", "no such name", "empty"])
def test_the_last_good_answer_is_kept(start, dns, backends, failure):
    publish(dns, (0, 1, backends[0]))
    proxy = start(f"srv:{SERVICE}")
    proxy.wait_for(UP, 1)
    dns.silent = failure == "silent"
    dns.records = {"silent": dns.records, "no such name": {}, "empty": {(SERVICE, "SRV"): []}}[failure]
    asked = len(dns.asked)
    eventually(lambda: len(dns.asked) > asked + 3, "DNS was asked several times since")
    assert ask(proxy) == str(backends[0])


def test_backends_appear_when_dns_comes_back(start, dns, backends):
    """The proxy starts while DNS is down, and serves as soon as it can."""
    proxy = start(f"srv:{SERVICE}", ready=False)
    assert proxy.metrics().sum("ldaps_proxy_pool_backends") == 0, "what LdapsProxyNoBackend goes by"
    with RawClient(proxy.endpoint()) as client:
        assert client.ask(ber.search)[-1].result_code == ber.UNAVAILABLE
        publish(dns, (0, 1, backends[0]))
        proxy.wait_for(UP, 1)
        assert client.ask(ber.search)[-1].result_code == ber.SUCCESS


def test_a_host_name_stands_for_all_its_addresses(start, dns, start_backend):
    one = start_backend(address="127.0.0.2")
    with FakeBackend(address="127.0.0.3", port=one.port) as other:
        dns.records = {("directory.corp.example.com", "A"): ["127.0.0.2", "127.0.0.3"]}
        proxy = start(f"directory.corp.example.com:{one.port}", 'balance = "round-robin"')
        proxy.wait_for(UP, 2)
        assert {ask(proxy) for _ in range(4)} == {str(one), str(other)}


def test_ipv6(start, dns, start_backend):
    backend = start_backend(address="::1")
    dns.records = {("directory.corp.example.com", "AAAA"): ["::1"]}
    proxy = start(f"directory.corp.example.com:{backend.port}")
    proxy.wait_for(UP, 1, backend=f"[::1]:{backend.port}")
    assert ask(proxy) == str(backend)


def test_ad_sites(start, dns, backends):
    """Simple AD's own DNS publishes a site's controllers under such a name."""
    site = "_ldap._tcp.default-first-site-name._sites.dc._msdcs.corp.example.com"
    dns.records = {
        (site, "SRV"): [f"0 100 {backends[0].port} dc0.corp.example.com."],
        ("dc0.corp.example.com", "A"): ["127.0.0.1"],
    }
    proxy = start("srv:_ldap._tcp.Default-First-Site-Name._sites.dc._msdcs.corp.example.com")
    proxy.wait_for(UP, 1)
    assert ask(proxy) == str(backends[0])
