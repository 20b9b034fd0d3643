"""Both directions at once, bounded buffers, early ends: what bytes may do between two peers that don't take turns."""

import threading

import pytest

from support import ber
from support.backend import RESPONSE_TAG, answer_nothing
from support.clients import RawClient
from support.waiting import eventually

MEGABYTE = b"x" * (1 << 20)


@pytest.fixture
def backend(start_backend):
    return start_backend()


@pytest.fixture
def proxy(start_proxy, backend):
    return start_proxy([backend], pool='health.probe = "tcp"')


@pytest.mark.deadline(120)
def test_client_that_writes_everything_before_it_reads(proxy, backend):
    """32 MiB up while 32 MiB of answers wait to come down: far more than any buffer between the two holds."""
    count = 32
    waiting = []

    def answer(connection, pdu):
        if pdu.tag != ber.ADD_REQUEST:
            return connection.send(ber.result(pdu.message_id, RESPONSE_TAG[pdu.tag]))
        # Answers go out beside the reading, as from a server with a thread for each.
        response = ber.result(pdu.message_id, ber.ADD_RESPONSE, 0, MEGABYTE)
        thread = threading.Thread(target=connection.send, args=(response,), daemon=True)
        waiting.append(thread)
        return thread.start()

    backend.answer = answer
    with RawClient(proxy.endpoint()) as client:
        client.ask(ber.bind, "cn=x", "secret")
        numbers = [client.next_id() for _ in range(count)]
        for number in numbers:
            client.send(ber.add(number, f"cn={number}", {"x": [MEGABYTE]}))
        answers = [client.read() for _ in numbers]
    assert sorted(pdu.message_id for pdu in answers) == numbers
    assert all(len(pdu.diagnostic) == len(MEGABYTE) for pdu in answers)
    assert [pdu.message_id for pdu in backend.session().of(ber.ADD_REQUEST)] == numbers


@pytest.mark.deadline(120)
def test_pipelining_client_with_a_backend_that_takes_turns(proxy, backend):
    """200 requests before the first read; the backend writes 256 KiB for each before it reads the next."""
    backend.answer = lambda connection, pdu: connection.send(
        ber.entry(pdu.message_id, "cn=x", {"x": [MEGABYTE[:1 << 18]]}), ber.result(pdu.message_id, ber.SEARCH_DONE)
    )
    with RawClient(proxy.endpoint()) as client:
        numbers = [client.next_id() for _ in range(200)]
        client.send(*map(ber.search, numbers))
        assert [client.read_result(number)[-1].result_code for number in numbers] == [0] * len(numbers)


def test_client_that_does_not_read_stops_its_upstream_and_nobody_else(proxy, backend):
    """A slow client holds back its own backend connection after a bounded amount; memory does not grow with the result."""
    flood = ber.entry(1, "cn=x", {"x": [MEGABYTE]})
    sent = []

    def answer(connection, pdu):
        if pdu.requested_attribute != "flood":
            return connection.send(ber.result(pdu.message_id, ber.SEARCH_DONE))
        for _ in range(256):
            connection.send(flood)
            sent.append(len(flood))
        return connection.send(ber.result(1, ber.SEARCH_DONE))

    backend.answer = answer
    with RawClient(proxy.endpoint()) as slow, RawClient(proxy.endpoint()) as other:
        slow.send(ber.search(1, attributes=["flood"]))
        eventually(lambda: sent, "the flood has begun")
        for _ in range(200):
            assert other.ask(ber.search)[-1].result_code == ber.SUCCESS
        assert sum(sent) < 64 * len(MEGABYTE)
        assert len(slow.read_result(1)) == 257


def test_answers_out_of_order(proxy, backend):
    """RFC 4511 §3.1: responses may come in any order, entries of two searches mixed."""
    held = []

    def answer(connection, pdu):
        held.append(pdu.message_id)
        if len(held) == 2:
            first, second = held
            connection.send(
                ber.entry(second, "cn=b", {}), ber.entry(first, "cn=a", {}), ber.entry(second, "cn=c", {}),
                ber.result(second, ber.SEARCH_DONE), ber.result(first, ber.SEARCH_DONE),
            )

    backend.answer = answer
    with RawClient(proxy.endpoint()) as client:
        client.send(ber.search(1), ber.search(2))
        order = [client.read().message_id for _ in range(5)]
    assert order == [2, 1, 2, 2, 1]


def test_response_that_nobody_asked_for_does_not_reach_a_client(proxy, backend):
    """A messageID that isn't in progress: no client may take it for an answer of its own."""
    backend.answer = lambda connection, pdu: connection.send(
        ber.result(pdu.message_id + 1000, ber.SEARCH_DONE), ber.result(pdu.message_id, ber.SEARCH_DONE)
    )
    with RawClient(proxy.endpoint()) as client:
        client.send(ber.search(1))
        seen = [client.read().message_id]
    assert seen in ([1], [0])


def test_abandon_is_forwarded_and_its_late_answers_are_legal(proxy, backend):
    def answer(connection, pdu):
        if pdu.tag == ber.SEARCH_REQUEST:
            connection.send(ber.entry(pdu.message_id, "cn=x", {}))
        if pdu.tag == ber.ABANDON_REQUEST:
            connection.send(ber.entry(1, "cn=late", {}), ber.result(1, ber.SEARCH_DONE))
        if pdu.tag == ber.EXTENDED_REQUEST:
            connection.send(ber.result(pdu.message_id, ber.EXTENDED_RESPONSE))

    backend.answer = answer
    with RawClient(proxy.endpoint()) as client:
        client.send(ber.search(1))
        assert client.read().entry_name == "cn=x"
        client.send(ber.abandon(2, 1), ber.extended(3, "1.2.3"))
        while (pdu := client.read()).message_id != 3:
            assert pdu.message_id == 1
    assert backend.session().wait_for(ber.ABANDON_REQUEST).raw == ber.abandon(2, 1)


def test_abandon_of_an_unknown_id_is_silent(proxy):
    """RFC 4511 §4.11"""
    with RawClient(proxy.endpoint()) as client:
        client.send(ber.abandon(1, 99), ber.search(2))
        assert client.read_result(2)[-1].result_code == ber.SUCCESS


def test_an_abandoned_operations_id_is_not_free_again(proxy, backend):
    """RFC 4511 §4.1.1.1: it might still be answered."""
    backend.answer = answer_nothing
    with RawClient(proxy.endpoint()) as client:
        client.send(ber.search(1), ber.abandon(2, 1), ber.search(1, "dc=again"))
        assert client.read_to_end()[-1].is_notice(ber.PROTOCOL_ERROR)


def test_the_backends_unsolicited_notification_arrives(proxy, backend):
    """RFC 4511 §4.4: messageID 0, not a notice of disconnection: forwarded, the session goes on."""
    unsolicited = ber.result(0, ber.EXTENDED_RESPONSE, 0, "", ber.octets("1.2.3.4", tag=0x8A))
    backend.answer = lambda connection, pdu: connection.send(unsolicited, ber.result(pdu.message_id, ber.SEARCH_DONE))
    with RawClient(proxy.endpoint()) as client:
        client.send(ber.search(1))
        assert client.read().raw == unsolicited
        assert client.read_result(1)[-1].result_code == ber.SUCCESS
        backend.answer = lambda connection, pdu: connection.send(ber.result(pdu.message_id, ber.SEARCH_DONE))
        assert client.ask(ber.search)[-1].result_code == ber.SUCCESS


@pytest.mark.parametrize("code", [ber.SUCCESS, ber.INVALID_CREDENTIALS])
def test_a_diagnostic_decides_nothing(start_proxy, backend, code):
    """RFC 4511 §4.1.9: the result code says whether a login failed, whatever Active Directory's text for a failed one."""
    proxy = start_proxy([backend], pool='health.probe = "tcp"', extra="[login_throttle]\nfailures_per_name = 1")
    backend.answer = lambda connection, pdu: connection.send(
        ber.result(pdu.message_id, ber.BIND_RESPONSE, code, "80090308: LdapErr: DSID-0C0903A9, comment: x, data 52e, v1db1")
    )
    with RawClient(proxy.endpoint()) as client:
        codes = [client.ask(ber.bind, "cn=x", "secret")[-1].result_code for _ in range(2)]
    assert codes == [code, ber.SUCCESS if code == ber.SUCCESS else ber.UNWILLING_TO_PERFORM]


@pytest.mark.parametrize("upstream", ["open", "not open yet"])
def test_requests_before_the_clients_unbind_are_carried_out(proxy, backend, upstream):
    """As without a proxy: what was sent before the unbind reaches the directory."""
    with RawClient(proxy.endpoint()) as client:
        if upstream == "open":
            client.ask(ber.search)
        client.send(ber.delete(1, "cn=x"), ber.unbind(2))
        client.read_to_end()
    assert backend.session().wait_for(ber.DELETE_REQUEST).raw == ber.delete(1, "cn=x")


def test_client_that_vanishes_frees_its_upstream(proxy, backend):
    with RawClient(proxy.endpoint()) as client:
        client.ask(ber.search)
        client.reset()
    assert backend.session().closed.wait(10)
    proxy.wait_for("ldaps_proxy_sessions_active", 0)


@pytest.mark.parametrize("kind", ["half", "reset"])
def test_end_inside_a_pdu(proxy, backend, kind):
    """Half a request is no request: the backend hears nothing of it."""
    with RawClient(proxy.endpoint()) as client:
        client.ask(ber.search)
        client.send(ber.delete(2, "cn=x")[:-1])
        client.reset() if kind == "reset" else client.close()
    session = backend.session()
    assert session.closed.wait(10)
    assert session.of(ber.DELETE_REQUEST) == []
    assert bytes(session.received).startswith(ber.search(1))


@pytest.fixture(params=["ldaps", "ldap"])
def half_closing(request, start_proxy, backend):
    """A client that ends its direction by close_notify and FIN, or by FIN alone."""
    proxy = start_proxy([backend], pool='health.probe = "tcp"', listener=f'protocol = "{request.param}"')
    with RawClient(proxy.endpoint(tls=request.param == "ldaps")) as client:
        yield client


def test_a_half_closed_client_gets_what_it_asked_for(half_closing, backend):
    """Three answers are due when the client's direction ends; each is delivered, then the proxy ends the session."""
    backend.answer = answer_nothing
    half_closing.send(*map(ber.search, (1, 2, 3)))
    session = backend.session()
    session.wait_for(ber.SEARCH_REQUEST, 3)
    half_closing.finish_sending()
    # The proxy has seen the end once it delivers an answer given after it. Only then do the others follow.
    for number in (2, 1, 3):
        session.send(ber.entry(number, "cn=late", {}), ber.result(number, ber.SEARCH_DONE))
        assert half_closing.read_result(number)[-1].result_code == ber.SUCCESS
    assert half_closing.read() is None
    assert session.closed.wait(10)


def test_a_half_closed_client_that_is_owed_nothing_ends(half_closing, backend):
    half_closing.ask(ber.search)
    half_closing.finish_sending()
    assert half_closing.read() is None
    assert backend.session().closed.wait(10)


def test_requests_held_behind_a_bind_survive_the_half_close(proxy, backend):
    """They arrived before it, and leave after the bind's answer."""
    backend.answer = answer_nothing
    with RawClient(proxy.endpoint()) as client:
        client.send(ber.bind(1, "cn=x", "secret"), ber.search(2))
        client.finish_sending()
        session = backend.session()
        session.wait_for(ber.BIND_REQUEST)
        session.send(ber.result(1, ber.BIND_RESPONSE))
        session.wait_for(ber.SEARCH_REQUEST)
        session.send(ber.result(2, ber.SEARCH_DONE))
        assert [pdu.message_id for pdu in client.read_to_end()] == [1, 2]


def test_the_proxys_own_words_wait_for_the_end_of_a_long_response(proxy, backend):
    """A long entry passes as it arrives; an answer of the proxy's own to another request must not land inside it."""
    entry, done = ber.entry(1, "cn=long", {"x": [MEGABYTE]}), ber.result(1, ber.SEARCH_DONE)
    backend.answer = lambda connection, pdu: connection.send(entry[:100_000])
    with RawClient(proxy.endpoint()) as client:
        client.send(ber.search(1))
        assert client.read_octets(50_000) == entry[:50_000]
        client.send(ber.bind(2, "cn=x", ""))
        proxy.wait_for("ldaps_proxy_refusals_total", 1, reason="unauthenticated")
        backend.session().send(entry[100_000:], done)
        assert client.read_octets(len(entry) - 50_000) == entry[50_000:]
        assert sorted((pdu.message_id, pdu.result_code) for pdu in (client.read(), client.read())) == [(1, 0), (2, 53)]


def test_words_of_the_proxys_own_do_not_wait_for_ever(start_proxy, backend):
    """A regression test: a backend that stopped amid a long entry left its client without a word until `idle_timeout`."""
    entry = ber.entry(1, "cn=long", {"x": [MEGABYTE]})
    backend.answer = lambda connection, pdu: pdu.tag == ber.SEARCH_REQUEST and connection.send(entry[:100_000])
    limits = '[limits]\noperation_timeout = "200ms"\nwrite_timeout = "300ms"'
    proxy = start_proxy([backend], pool='health.probe = "tcp"', extra=limits)
    with RawClient(proxy.endpoint(), seconds=20, malformed=True) as client:
        client.send(ber.search(1))
        received = b""
        while data := client.socket.recv(1 << 16):
            received += data
        assert received and entry.startswith(received)
    proxy.wait_for("ldaps_proxy_refusals_total", 1, reason="operation_timeout")


def test_a_session_that_ends_inside_a_long_response_ends_without_a_word(proxy, backend):
    entry = ber.entry(1, "cn=long", {"x": [MEGABYTE]})
    backend.answer = lambda connection, pdu: connection.send(entry[:100_000])
    with RawClient(proxy.endpoint(), malformed=True) as client:
        client.send(ber.search(1))
        received = client.read_octets(50_000)
        client.send(b"\x30\x80")
        while data := client.socket.recv(1 << 16):
            received += data
        assert entry.startswith(received)
