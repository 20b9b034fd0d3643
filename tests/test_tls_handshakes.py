"""Handshakes: nobody can keep others from theirs, and a failed one says what to do about it."""

import socket
import ssl
from contextlib import ExitStack

import pytest

from support import ber
from support.certs import Authority
from support.clients import RawClient
from support.proxy import config
from support.waiting import eventually

PROBE = 'health.probe = "tcp"'
FAILURES = "ldaps_proxy_handshake_failures_total"


def half_open(endpoint, source, stack):
    """A connection that begins a handshake and says no more."""
    client = stack.enter_context(socket.create_connection((endpoint.host, endpoint.port), 30, source_address=(source, 0)))
    client.sendall(b"\x16\x03\x01")


def test_clients_that_stall_hold_no_turn(start_proxy, start_backend):
    """Twenty that have begun a handshake and say no more keep nobody out, their own address not either."""
    proxy = start_proxy(
        [start_backend()], pool=PROBE, trusted=["127.0.0.0/8"], extra='[limits]\nhandshakes = 1\nhandshake_timeout = "90s"',
    )
    endpoint = proxy.endpoint()
    with ExitStack() as stack:
        for _ in range(20):
            half_open(endpoint, "127.0.0.2", stack)
        eventually(lambda: proxy.metrics().sum("ldaps_proxy_limit_used", limit="connections") == 20, "they are inside")
        for source in ("127.0.0.3", "127.0.0.2"):
            with RawClient(endpoint, source=source) as client:
                assert client.ask(ber.bind)[-1].result_code == ber.SUCCESS
    eventually(lambda: proxy.metrics().sum("ldaps_proxy_limit_used", limit="handshakes") == 0, "every turn is given back")


def context(ca, *, version=None, ciphers=None):
    made = ssl.create_default_context(cafile=ca)
    if version:
        made.minimum_version = made.maximum_version = version
    if ciphers:
        made.set_ciphers(ciphers)
    return made


def tls(made):
    def attempt(plain):
        with pytest.raises(ssl.SSLError):
            made.wrap_socket(plain, server_hostname="127.0.0.1")

    return attempt


def plain_ldap(plain):
    plain.sendall(ber.bind(1))
    while plain.recv(100):
        pass


CAUSES = {
    "an old client": (
        lambda ca: tls(context(ca, version=ssl.TLSVersion.TLSv1_1, ciphers="ALL:@SECLEVEL=0")),
        "no_shared_version", "the client offers nothing newer than TLS 1.1",
    ),
    "only obsolete suites": (
        lambda ca: tls(context(ca, version=ssl.TLSVersion.TLSv1_2, ciphers="AES128-SHA")),
        "no_shared_cipher", "the client offers only suites without forward secrecy",
    ),
    "no trust in the issuer": (
        lambda _: tls(context(None)), "client_distrusts_us", "the client doesn't trust our issuer (alert unknown_ca)",
    ),
    "no TLS": (lambda _: plain_ldap, "not_tls", "the client doesn't speak TLS"),
    "a port check": (lambda _: lambda plain: None, "closed", "the client closed the connection during the handshake"),
}


@pytest.mark.parametrize(("client", "reason", "words"), CAUSES.values(), ids=CAUSES.keys())
def test_a_failed_handshake_says_why(start_proxy, start_backend, client, reason, words):
    proxy = start_proxy([start_backend()], pool=PROBE)
    endpoint = proxy.endpoint()
    with socket.create_connection((endpoint.host, endpoint.port), 30) as plain:
        client(endpoint.ca)(plain)
    proxy.wait_for(FAILURES, 1, listener="ldaps", reason=reason)
    assert sum(proxy.metrics().get(FAILURES).values()) == 1
    eventually(lambda: words in proxy.log(), "the log says why")


def test_a_handshake_that_is_not_finished_is_ended(start_proxy, start_backend):
    proxy = start_proxy([start_backend()], pool=PROBE, extra='[limits]\nhandshake_timeout = "200ms"')
    endpoint = proxy.endpoint()
    with socket.create_connection((endpoint.host, endpoint.port), 30) as client:
        client.sendall(b"\x16\x03\x01")
        assert client.recv(100) == b""
    proxy.wait_for(FAILURES, 1, reason="timeout")


def test_a_message_in_too_many_records_ends_the_handshake(start_proxy, start_backend):
    """A regression test: the message is announced to be as long as can be, and an octet of it stands in each record."""
    proxy = start_proxy([start_backend()], pool=PROBE, extra='[limits]\nhandshake_timeout = "90s"')
    endpoint = proxy.endpoint()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    hello = context(endpoint.ca, version=ssl.TLSVersion.TLSv1_2).wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with pytest.raises(ssl.SSLWantReadError):
        hello.do_handshake()
    record = b"\x16\x03\x03\x00\x01"
    with socket.create_connection((endpoint.host, endpoint.port), 30) as client:
        client.sendall(outgoing.read())
        assert client.recv(1)
        with pytest.raises(ConnectionError):
            client.sendall(record + b"\x10" + record + b"\x00" + record + b"\xff" + (record + b"\xff") * 50_000)
            while client.recv(1 << 16):
                pass
            raise ConnectionError("ended in good order")
    proxy.wait_for(FAILURES, 1, reason="other")
    assert "the client's TLS message comes in too many pieces" in proxy.log()


@pytest.mark.parametrize(("version", "label", "suite"), [
    (ssl.TLSVersion.TLSv1_2, "1.2", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"),
    (ssl.TLSVersion.TLSv1_3, "1.3", "TLS_AES_128_GCM_SHA256"),
])
def test_what_was_agreed_is_counted(start_proxy, start_backend, version, label, suite):
    proxy = start_proxy([start_backend()], pool=PROBE)
    with RawClient(proxy.endpoint(), tls_version=version) as client:
        client.ask(ber.bind)
    assert proxy.metrics().sum("ldaps_proxy_handshakes_total", listener="ldaps", version=label, suite=suite, resumed="false") == 1


def test_client_certificates_are_asked_for_and_told(start_proxy, start_backend, certificate, authority, tmp_path):
    """The subject stands in the access log; without a certificate, or with a stranger's, nobody enters."""
    log = tmp_path / "access.log"
    text = config(
        certificate, [start_backend()], pool=PROBE, extra=f'[access_log]\noutput = "file"\npath = "{log}"',
    ).replace("[tls]", f'[tls]\nclient_certificates = "required"\nclient_ca = "{authority.ca}"')
    proxy = start_proxy(text=text)
    stranger = Authority(tmp_path / "stranger", "stranger CA").issue("stranger")
    for own in (None, stranger):
        with pytest.raises((OSError, AssertionError)):
            bind_with(proxy, own)
    proxy.wait_for(FAILURES, 2, reason="client_certificate")
    bind_with(proxy, authority.issue("app1"))
    eventually(lambda: log.exists() and "CN=app1" in log.read_text(), "the subject is in the access log")


def bind_with(proxy, own):
    """Binds with a client certificate, or without."""
    made = context(proxy.ca)
    if own:
        made.load_cert_chain(own.certificate, own.private_key)
    with RawClient(proxy.endpoint(tls=False)) as client:
        client.socket = made.wrap_socket(client.socket, server_hostname="127.0.0.1")
        assert client.ask(ber.bind)[-1].result_code == ber.SUCCESS
