"""Who may enter, and over which TLS."""

import socket
import ssl

import pytest

from support import ber
from support.clients import RawClient

CONNECTIONS = "ldaps_proxy_connections_total"


@pytest.fixture
def proxy(start_proxy, start_backend):
    return start_proxy([start_backend()], pool='health.probe = "tcp"')


def test_untrusted_address_is_refused_before_the_handshake(proxy):
    """The client sees the connection end without one octet of TLS, and the metrics say why."""
    listener = proxy.endpoint()
    with socket.create_connection((listener.host, listener.port), 10, source_address=("127.0.0.2", 0)) as client:
        try:
            client.sendall(b"\x16\x03\x01")
            assert client.recv(1) == b""
        except (ConnectionResetError, BrokenPipeError):
            pass
    proxy.wait_for(CONNECTIONS, 1, outcome="untrusted")
    assert proxy.metrics().sum("ldaps_proxy_sessions_active") == 0


def test_trusted_address_enters(proxy):
    with RawClient(proxy.endpoint()) as client:
        assert client.ask(ber.bind)[-1].result_code == ber.SUCCESS
        metrics = proxy.metrics()
    assert metrics.sum(CONNECTIONS, outcome="accepted") >= 1
    assert metrics.sum(CONNECTIONS, outcome="untrusted") == 0


def test_longest_prefix_wins_and_deny_wins_ties(start_proxy, start_backend):
    proxy = start_proxy(
        [start_backend()], pool='health.probe = "tcp"', trusted=["127.0.0.0/16", "127.0.1.7/32", "127.0.2.0/24"],
        listener='denied_networks = ["127.0.1.0/24", "127.0.2.0/24"]',
    )
    verdicts = {"127.0.0.5": True, "127.0.1.8": False, "127.0.1.7": True, "127.0.2.1": False, "127.9.9.9": False}
    assert {source: enters(proxy, source) for source in verdicts} == verdicts


def enters(proxy, source):
    try:
        with RawClient(proxy.endpoint(), source=source, seconds=10) as client:
            return client.ask(ber.bind)[-1].result_code == ber.SUCCESS
    except (OSError, AssertionError):
        return False


@pytest.mark.parametrize(("version", "name"), [(ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")])
def test_tls_versions(proxy, version, name):
    with RawClient(proxy.endpoint(), tls_version=version) as client:
        assert client.socket.version() == name
        assert client.ask(ber.bind)[-1].result_code == ber.SUCCESS


def test_tls_1_1_is_refused(proxy):
    context = ssl.create_default_context(cafile=proxy.ca)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError, match="(?i)protocol.version|alert"):
        with socket.create_connection((proxy.endpoint().host, proxy.endpoint().port), 10) as plain:
            context.wrap_socket(plain, server_hostname="127.0.0.1")
    proxy.wait_for(CONNECTIONS, 1, outcome="handshake_failed")


def test_failed_handshake_and_port_scan_cost_the_backend_nothing(start_proxy, start_backend):
    """The upstream is opened on the first complete PDU, not on accept."""
    backend = start_backend()
    proxy = start_proxy([backend], pool='health.probe = "tcp"\nhealth.interval = "1h"')
    proxy.wait_for("ldaps_proxy_backend_up", 1)
    before = len(backend.connections)
    address = proxy.endpoint().host, proxy.endpoint().port
    socket.create_connection(address, 10).close()
    with socket.create_connection(address, 10) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        client.recv(64)
    with RawClient(proxy.endpoint()) as client:
        client.send(ber.search(1)[:-1])
        proxy.wait_for(CONNECTIONS, 2, outcome="handshake_failed")
        assert len(backend.connections) == before
        client.send(ber.search(1)[-1:])
        assert client.read_result(1)[-1].result_code == ber.SUCCESS
    assert len(backend.connections) == before + 1


def test_client_leaves_in_good_order(proxy):
    """RFC 4511 §4.3, §5.3: unbind has no response; the proxy ends TLS with close_notify, and the session is gone."""
    with RawClient(proxy.endpoint()) as client:
        client.ask(ber.bind)
        assert proxy.metrics().sum("ldaps_proxy_sessions_active") == 1
        client.send(ber.unbind(client.next_id()))
        assert client.read() is None
    proxy.wait_for("ldaps_proxy_sessions_active", 0)
