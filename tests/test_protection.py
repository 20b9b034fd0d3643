"""Limits per address and in all, operation policy, the login throttle, PROXY headers and referrals, over the wire."""

import socket
import ssl
import threading
from contextlib import ExitStack

import pytest

from support import attacks, ber
from support.backend import answer_nothing
from support.clients import RawClient
from support.proxy import config
from support.waiting import eventually

CONNECTIONS = "ldaps_proxy_connections_total"
TCP = 'health.probe = "tcp"'


@pytest.fixture
def start(start_proxy, start_backend):
    def start(**tables):
        return start_proxy([start_backend()], **{"pool": TCP, **tables})

    return start


def refused(proxy, outcome):
    """Connects, and returns once the proxy has closed without a word."""
    listener = proxy.endpoint()
    with socket.create_connection((listener.host, listener.port), 10) as client:
        try:
            assert client.recv(1) == b""
        except ConnectionResetError:
            pass
    proxy.wait_for(CONNECTIONS, 1, outcome=outcome)


@pytest.mark.parametrize(("key", "outcome"), [("max_connections", "limit"), ("connections_per_address", "address_limit")])
def test_a_place_comes_free_when_a_session_ends(start, key, outcome):
    proxy = start(extra=f"[limits]\n{key} = 2")
    with RawClient(proxy.endpoint()) as first, RawClient(proxy.endpoint()) as second:
        assert first.ask(ber.search) and second.ask(ber.search)
        refused(proxy, outcome)
        assert first.ask(ber.search)[-1].result_code == ber.SUCCESS, "those inside go on"
    proxy.wait_for("ldaps_proxy_sessions_active", 0)
    with RawClient(proxy.endpoint()) as client:
        assert client.ask(ber.search)[-1].result_code == ber.SUCCESS


def test_new_connections_of_one_address_have_a_rate(start):
    proxy = start(extra="[limits]\nconnection_rate_per_address = 1")
    with RawClient(proxy.endpoint()) as client:
        assert client.ask(ber.search)
        refused(proxy, "rate_limited")


def test_an_operation_that_takes_too_long_is_answered_and_abandoned(start_proxy, start_backend):
    """The answer comes when its time is over, not when something else happens on the connection."""
    backend = start_backend()
    backend.answer = answer_nothing
    proxy = start_proxy([backend], pool=TCP, extra='[limits]\noperation_timeout = "200ms"')
    with RawClient(proxy.endpoint(), seconds=10) as client:
        client.send(ber.search(7))
        assert [pdu.result_code for pdu in client.read_result(7)] == [3]
        backend.session().wait_for(ber.ABANDON_REQUEST)


def test_read_only(start):
    proxy = start(listener="policy.read_only = true")
    with RawClient(proxy.endpoint()) as client:
        assert client.ask(ber.search)[-1].result_code == ber.SUCCESS
        assert client.ask(ber.delete, "cn=x")[-1].result_code == 53
    assert proxy.metrics().sum("ldaps_proxy_refusals_total", reason="read_only") == 1


def test_a_name_without_a_password_is_refused_by_default(start):
    """RFC 4513 §5.1.2: applications take its success for a login."""
    proxy = start()
    with RawClient(proxy.endpoint()) as client:
        assert client.ask(ber.bind, "cn=somebody", "")[-1].result_code == 53
        assert client.ask(ber.bind, "", "")[-1].result_code == ber.SUCCESS


def test_failed_logins_are_throttled(start_proxy, start_backend):
    backend = start_backend()
    backend.answer = lambda connection, pdu: connection.send(
        ber.result(pdu.message_id, ber.BIND_RESPONSE, ber.INVALID_CREDENTIALS)
    )
    proxy = start_proxy([backend], pool=TCP, extra="[login_throttle]\nfailures_per_name = 3")
    with RawClient(proxy.endpoint()) as client:
        codes = [client.ask(ber.bind, "ann@corp.example.com", "wrong")[-1].result_code for _ in range(5)]
        assert codes == [49, 49, 49, 53, 53]
        assert client.ask(ber.bind, "bob@corp.example.com", "wrong")[-1].result_code == 49
    binds = [pdu for session in backend.sessions() for pdu in session.of(ber.BIND_REQUEST)]
    assert len(binds) == 4, "the directory saw no guess beyond the limit"


@pytest.mark.parametrize(("result", "codes"), [(ber.SUCCESS, [0] * 6), (ber.INVALID_CREDENTIALS, [49] * 3 + [53] * 3)])
def test_logins_of_one_name_at_once_wait_for_each_other(start_proxy, start_backend, result, codes):
    """A regression test: of an application that opened all its connections at once, most were told of failed logins, which were
    none. No more than the budget is under way, so that guesses at once are no way round it."""
    judged = threading.Event()
    binds = []

    def judge(connection, pdu):
        binds.append(pdu)
        judged.wait(20)
        connection.send(ber.result(pdu.message_id, ber.BIND_RESPONSE, result))

    proxy = start_proxy([start_backend(judge)], pool=TCP, extra="[login_throttle]\nfailures_per_name = 3")
    with ExitStack() as stack:
        clients = [stack.enter_context(RawClient(proxy.endpoint())) for _ in codes]
        for client in clients:
            client.send(ber.bind(1, "cn=ann", "secret"))
        eventually(lambda: len(binds) >= 3, "three binds reach the directory")
        assert len(binds) == 3
        judged.set()
        assert sorted(client.read_result(1)[-1].result_code for client in clients) == codes


def test_a_login_that_never_left_is_none(start_proxy, start_backend, certificate):
    """A regression test: one that timed out while it waited for a seat was charged to its name, though nobody had judged it."""
    backend = start_backend()
    text = config(
        certificate, [backend], pool=f'queue = 1\nqueue_timeout = "90s"\n{TCP}',
        extra='[limits]\noperation_timeout = "200ms"\n[login_throttle]\nfailures_per_name = 1',
    ).replace(f"'{backend}'", f'{{ address = "{backend}", max_sessions = 1 }}')
    proxy = start_proxy(text=text)
    with RawClient(proxy.endpoint()) as first, RawClient(proxy.endpoint()) as second:
        first.ask(ber.search)
        assert second.ask(ber.bind, "cn=ann", "secret")[-1].result_code == 3
        first.send(ber.unbind(first.next_id()))
        assert first.ended()
        assert second.ask(ber.bind, "cn=ann", "secret")[-1].result_code == ber.SUCCESS


def test_a_login_whose_client_leaves_before_it_left_is_none(start_proxy, start_backend, certificate):
    """A regression test: clients that gave up in an outage had their names throttled once it was over."""
    backend = start_backend()
    text = config(
        certificate, [backend], pool=f'queue = 1\nqueue_timeout = "90s"\n{TCP}', extra="[login_throttle]\nfailures_per_name = 1",
    ).replace(f"'{backend}'", f'{{ address = "{backend}", max_sessions = 1 }}')
    proxy = start_proxy(text=text)
    with RawClient(proxy.endpoint()) as first:
        first.ask(ber.search)
        with RawClient(proxy.endpoint()) as second:
            second.send(ber.bind(1, "cn=ann", "secret"))
            proxy.wait_for("ldaps_proxy_queue_waiting", 1)
            second.reset()
        proxy.wait_for("ldaps_proxy_sessions_active", 1)
        assert first.ask(ber.bind, "cn=ann", "secret")[-1].result_code == ber.SUCCESS


def test_a_client_that_does_not_read_casts_no_doubt_on_its_backend(start_proxy, start_backend):
    """A regression test: three that let their results lie for `operation_timeout` had a sound backend ejected."""

    def much(connection, pdu):
        entry = ber.entry(pdu.message_id, "cn=x", {"x": ["y" * 20_000]})
        if pdu.tag == ber.SEARCH_REQUEST:
            connection.send(*[entry] * 400, ber.result(pdu.message_id, ber.SEARCH_DONE))

    backends = start_backend(much), start_backend(much)
    proxy = start_proxy(
        backends, trusted=("127.0.0.0/8",), pool=f'balance = "first-available"\n{TCP}', extra='[limits]\noperation_timeout = "200ms"',
    )
    proxy.wait_for("ldaps_proxy_backend_up", 2)
    with ExitStack() as stack:
        for last in (1, 2, 3):
            client = stack.enter_context(RawClient(proxy.endpoint(), source=f"127.0.1.{last}"))
            client.send(ber.search(1))
            proxy.wait_for("ldaps_proxy_refusals_total", last, reason="operation_timeout")
        assert proxy.metrics().sum("ldaps_proxy_backend_ejections_total") == 0
        assert proxy.metrics().sum("ldaps_proxy_backend_up") == 2


def announced(proxy, source):
    """A TLS session whose PROXY header names `source`."""
    listener = proxy.endpoint()
    tcp = socket.create_connection((listener.host, listener.port), 10)
    tcp.sendall(attacks.proxy_v2(source))
    context = ssl.create_default_context(cafile=str(proxy.ca))
    context.check_hostname = False
    return context.wrap_socket(tcp)


def test_the_client_in_the_proxy_header_is_the_one_that_must_be_trusted(start):
    proxy = start(trusted=["198.51.100.0/24"], listener='proxy_protocol_from = ["127.0.0.0/8"]')
    with announced(proxy, "198.51.100.7") as client:
        client.sendall(ber.search(1))
        assert client.recv(4096)
        sessions = proxy.http("/api/v1/sessions")[1]
        assert "198.51.100.7:40000" in (sessions if isinstance(sessions, str) else sessions.decode())
    with pytest.raises(OSError):
        announced(proxy, "203.0.113.9")
    proxy.wait_for(CONNECTIONS, 1, outcome="untrusted")


def test_a_balancer_that_sends_no_header_is_refused(start):
    proxy = start(listener='proxy_protocol_from = ["127.0.0.0/8"]')
    with pytest.raises((OSError, AssertionError)):
        RawClient(proxy.endpoint()).ask(ber.search)
    eventually(lambda: proxy.metrics().sum(CONNECTIONS, outcome="proxy_header") == 1, "it is counted")


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ('referrals = "pass"', [b"ldap://corp.example.com/CN=Configuration"]),
        ('referrals = "rewrite"\npublic_name = "ldap.example.com"', [b"ldaps://ldap.example.com/CN=Configuration"]),
        ('referrals = "drop"', []),
    ],
)
def test_references_to_the_domain_itself(start_proxy, start_backend, keys, expected):
    """The directory says in its rootDSE which domain is its own."""
    backend = start_backend()

    def answer(connection, pdu):
        own = ber.entry(pdu.message_id, "", {"defaultNamingContext": [b"DC=corp,DC=example,DC=com"]})
        reference = ber.tlv(0x30, ber.integer(pdu.message_id),
                            ber.tlv(0x73, ber.octets("ldap://corp.example.com/CN=Configuration")))
        connection.send(own, reference, ber.result(pdu.message_id, ber.SEARCH_DONE))

    backend.answer = answer
    proxy = start_proxy([backend], listener=keys)
    with RawClient(proxy.endpoint()) as client:

        def urls():
            return [pdu.operation.children()[0].content for pdu in client.ask(ber.search) if pdu.tag == 0x73]

        # The names are known once a probe has asked for them.
        eventually(lambda: urls() == expected, f"the references are {expected}")
