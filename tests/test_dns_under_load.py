"""Backends found by name, while DNS changes its mind, fails and comes back."""

import threading

import pytest

from support import ber
from support.clients import RawClient
from support.dns import NameServer
from support.waiting import eventually

SERVICE = "_ldap._tcp.Default-First-Site-Name._sites.dc._msdcs.corp.example.com"


@pytest.fixture
def dns():
    with NameServer() as server:
        yield server


@pytest.fixture
def found_by_name(start_proxy, dns):
    """A proxy whose pool is SERVICE, asked of `dns` twice a second."""

    def start(**options):
        pool = f'discovery.name_servers = ["{dns}"]\ndiscovery.min_ttl = "500ms"\ndiscovery.max_ttl = "500ms"'
        return start_proxy([f"srv:{SERVICE}"], pool=f'{pool}\nhealth.interval = "100ms"', **options)

    return start


def offer(dns, *backends):
    """DNS names these, in this order of priority."""
    names = {backend: f"dc{backend.port}.corp.example.com" for backend in backends}
    services = [f"{number} 100 {backend.port} {name}." for number, (backend, name) in enumerate(names.items())]
    addresses = {(name, "A"): [backend.host] for backend, name in names.items()}
    # Names that were there stay: a target may be looked up after the SRV record that named it has changed.
    dns.records = {**dns.records, **addresses, (SERVICE.lower(), "SRV"): services}


def wait_until_up(proxy, backend):
    """Also where there is no series of it yet."""
    eventually(
        lambda: set(proxy.metrics().get("ldaps_proxy_backend_up", backend=str(backend)).values()) == {1},
        f"{backend} is up",
    )


def served_by(client):
    entry, done = client.ask(ber.search)
    assert done.result_code == ber.SUCCESS, done.diagnostic
    return entry.attributes["description"][0].decode()


def test_priorities_are_tiers(found_by_name, dns, start_backend):
    first, second = start_backend(), start_backend()
    offer(dns, first, second)
    proxy = found_by_name()
    for _ in range(5):
        with RawClient(proxy.endpoint()) as client:
            assert served_by(client) == str(first)
    first.die()
    with RawClient(proxy.endpoint()) as client:
        assert served_by(client) == str(second)


def test_dns_changes_under_load(found_by_name, dns, start_backend, figures):
    """The backends are exchanged several times: no operation fails, no session ends, none is moved without need."""
    one, other = start_backend(), start_backend()
    offer(dns, one)
    proxy = found_by_name()
    stop, failures, operations = threading.Event(), [], []

    def search_on():
        try:
            with RawClient(proxy.endpoint()) as client:
                while not stop.is_set():
                    operations.append(served_by(client))
        except Exception as error:
            failures.append(error)

    def connect_on():
        try:
            while not stop.is_set():
                with RawClient(proxy.endpoint()) as client:
                    operations.append(served_by(client))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for work in (search_on, search_on, connect_on)]
    for thread in threads:
        thread.start()
    with RawClient(proxy.endpoint()) as old:
        assert served_by(old) == str(one)
        for backend, gone in ((other, one), (one, other), (other, one)):
            offer(dns, backend)
            wait_until_up(proxy, backend)
            proxy.wait_for("ldaps_proxy_pool_backends", 1)
            assert str(gone) not in proxy.http("/metrics")[1]
            with RawClient(proxy.endpoint()) as client:
                assert served_by(client) == str(backend)
        assert served_by(old) == str(one), "a session on a removed backend goes on"
    stop.set()
    for thread in threads:
        thread.join()
    figures.count(tried=len(operations), failed=len(failures))
    assert not failures
    assert {str(one), str(other)} == set(operations)


def test_dns_fails(found_by_name, dns, start_backend):
    """The last good answer stays in force, through a reload too, and what comes after it is taken."""
    one, other = start_backend(), start_backend()
    offer(dns, one)
    proxy = found_by_name()
    dns.fails = True
    proxy.wait_for("ldaps_proxy_discovery_failures_total", 2)
    with RawClient(proxy.endpoint()) as client:
        assert served_by(client) == str(one)
    text = proxy.config_file.read_text()
    proxy.config_file.write_text(text.replace("[pools.directory]\n", '[pools.directory]\nconnect_timeout = "1s"\n'))
    proxy.reload()
    proxy.wait_for("ldaps_proxy_reloads_total", 1, result="applied")
    with RawClient(proxy.endpoint()) as client:
        assert served_by(client) == str(one)
    dns.fails = False
    offer(dns, other)
    wait_until_up(proxy, other)
    with RawClient(proxy.endpoint()) as client:
        assert served_by(client) == str(other)


def test_a_start_without_dns(found_by_name, dns, start_backend):
    """The proxy starts all the same, says unavailable, and serves as soon as DNS answers."""
    backend = start_backend()
    dns.fails = True
    proxy = found_by_name(ready=False)
    with RawClient(proxy.endpoint()) as client:
        assert client.ask(ber.search)[-1].result_code == ber.UNAVAILABLE
        dns.fails = False
        offer(dns, backend)
        wait_until_up(proxy, backend)
        assert served_by(client) == str(backend)
