"""StartTLS is between the client and the proxy; no DC ever sees one: it would crash its worker (RFC 4511 §4.14)."""

import socket
import ssl

import pytest

from support import ber
from support.backend import answer_nothing
from support.clients import Endpoint, RawClient, tool
from support.samba import USERS

STARTTLS = ber.extended(1, ber.START_TLS)


@pytest.fixture
def backend(start_backend):
    return start_backend()


@pytest.fixture
def start_cleartext(start_proxy, backend, certificate):
    """Starts a cleartext listener that offers StartTLS, with more lines for it."""
    return lambda listener="": start_proxy([backend], pool='health.probe = "tcp"', listener=f"""protocol = "ldap"
tls.certificate = "{certificate.certificate}"
tls.private_key = "{certificate.private_key}"
{listener}
""")


@pytest.fixture
def cleartext(start_cleartext):
    return start_cleartext()


def secure(client, ca):
    context = ssl.create_default_context(cafile=ca)
    client.socket = context.wrap_socket(client.socket, server_hostname="127.0.0.1")


def test_over_ldaps_it_is_refused_and_not_forwarded(start_proxy, backend):
    """RFC 4513 §3.1.1: TLS is up already."""
    proxy = start_proxy([backend], pool='health.probe = "tcp"')
    with RawClient(proxy.endpoint()) as client:
        assert client.ask(ber.search)[-1].result_code == ber.SUCCESS
        assert client.ask(ber.extended, ber.START_TLS)[-1].result_code == ber.OPERATIONS_ERROR
        assert client.ask(ber.search)[-1].result_code == ber.SUCCESS
    assert backend.session().of(ber.EXTENDED_REQUEST) == []


def test_a_real_dc_survives_it(start_proxy, dc):
    proxy = start_proxy([dc.backend])
    with RawClient(proxy.endpoint()) as client:
        client.ask(ber.extended, ber.START_TLS)
        assert client.bind(USERS[0])


def test_upgrade(cleartext, backend):
    with RawClient(cleartext.endpoint(tls=False)) as client:
        answer = client.ask(ber.extended, ber.START_TLS)[-1]
        assert (answer.result_code, answer.response_name) == (ber.SUCCESS, ber.START_TLS)
        secure(client, cleartext.ca)
        assert client.ask(ber.bind, "cn=x", "secret")[-1].result_code == ber.SUCCESS
    assert [pdu.tag for pdu in backend.session().pdus][0] == ber.BIND_REQUEST


def test_who_was_bound_before_it_still_is(start_cleartext, backend):
    """A regression test: the connection to the backend was left behind, and with it a bind that can't be replayed."""
    cleartext = start_cleartext("policy.allow_cleartext_bind = true")
    with RawClient(cleartext.endpoint(tls=False)) as client:
        assert client.ask(ber.sasl_bind, "EXTERNAL")[-1].result_code == ber.SUCCESS
        assert client.ask(ber.extended, ber.START_TLS)[-1].result_code == ber.SUCCESS
        secure(client, cleartext.ca)
        assert client.ask(ber.search)[-1].result_code == ber.SUCCESS
    assert [pdu.tag for pdu in backend.session().pdus][:2] == [ber.BIND_REQUEST, ber.SEARCH_REQUEST]


def test_passwords_in_cleartext_are_refused_and_go_no_further(cleartext, backend):
    with RawClient(cleartext.endpoint(tls=False)) as client:
        assert client.ask(ber.bind, "cn=x", "secret")[-1].result_code == ber.CONFIDENTIALITY_REQUIRED
        assert client.ask(ber.search)[-1].result_code == ber.SUCCESS
    assert [pdu.tag for pdu in backend.session().pdus] == [ber.SEARCH_REQUEST]


def test_with_openldaps_tools(cleartext):
    endpoint = cleartext.endpoint(tls=False)
    done = tool("ldapsearch", Endpoint("127.0.0.1", endpoint.port), "-ZZ", "-LLL", "-b", "", ca=cleartext.ca)
    assert "cn=fake" in done.stdout


def test_octets_sent_before_the_handshake_are_discarded(cleartext, backend):
    """Injection: what follows the request in cleartext must not be read as if it had come under TLS."""
    with RawClient(cleartext.endpoint(tls=False), seconds=10) as client:
        client.send(STARTTLS, ber.delete(2, "cn=victim"))
        assert client.read().result_code in (ber.SUCCESS, ber.PROTOCOL_ERROR)
        try:
            secure(client, cleartext.ca)
            client.ask(ber.search)
        except (OSError, AssertionError):
            pass
    for session in backend.sessions():
        assert session.of(ber.DELETE_REQUEST) == []


def test_refused_while_an_operation_is_outstanding(cleartext, backend):
    """RFC 4513 §3.1.1"""
    backend.answer = answer_nothing
    with RawClient(cleartext.endpoint(tls=False)) as client:
        client.send(ber.search(7))
        backend.session().wait_for(ber.SEARCH_REQUEST)
        client.send(STARTTLS)
        answer = client.read()
        assert (answer.message_id, answer.result_code) == (1, ber.OPERATIONS_ERROR)
    assert backend.session().of(ber.EXTENDED_REQUEST) == []


def test_refused_within_a_sasl_bind(start_cleartext, backend):
    """RFC 4513 §3.1.1"""
    cleartext = start_cleartext("policy.allow_cleartext_bind = true")
    backend.answer = lambda connection, pdu: connection.send(
        ber.result(pdu.message_id, ber.BIND_RESPONSE, ber.SASL_BIND_IN_PROGRESS)
    )
    with RawClient(cleartext.endpoint(tls=False)) as client:
        client.ask(ber.sasl_bind, "GSS-SPNEGO", b"token")
        assert client.ask(ber.extended, ber.START_TLS)[-1].result_code in (ber.OPERATIONS_ERROR, ber.PROTOCOL_ERROR)
        assert len(backend.session().of(ber.BIND_REQUEST)) == 1
    assert backend.session().of(ber.EXTENDED_REQUEST) == []


def test_a_second_one_is_refused(cleartext):
    with RawClient(cleartext.endpoint(tls=False)) as client:
        assert client.ask(ber.extended, ber.START_TLS)[-1].result_code == ber.SUCCESS
        secure(client, cleartext.ca)
        assert client.ask(ber.extended, ber.START_TLS)[-1].result_code == ber.OPERATIONS_ERROR


def test_not_offered_without_a_certificate(start_proxy, backend):
    """RFC 4511 §4.14.2"""
    proxy = start_proxy(text=f"""
[[listener]]
name = "ldap"
address = "127.0.0.1:0"
protocol = "ldap"
trusted_networks = ["127.0.0.1/32"]
pool = "directory"

[pools.directory]
backends = ["{backend}"]
health.probe = "tcp"

[admin]
address = "127.0.0.1:0"
""")
    with RawClient(proxy.endpoint("ldap", tls=False)) as client:
        assert client.ask(ber.extended, ber.START_TLS)[-1].result_code == ber.PROTOCOL_ERROR
        assert client.ask(ber.search)[-1].result_code == ber.SUCCESS
    assert backend.session().of(ber.EXTENDED_REQUEST) == []


def test_client_that_gives_up_inside_the_handshake(cleartext, backend):
    with RawClient(cleartext.endpoint(tls=False)) as client:
        assert client.ask(ber.extended, ber.START_TLS)[-1].result_code == ber.SUCCESS
        client.socket.sendall(b"\x16\x03\x01\x00")
        client.socket.shutdown(socket.SHUT_WR)
        client.ended()
    cleartext.wait_for("ldaps_proxy_sessions_active", 0)
