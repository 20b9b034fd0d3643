"""What is malformed never reaches a backend; what merely looks unusual reaches it unchanged (RFC 4511 §4.1.1, §5.1)."""

import pytest

from support import ber
from support.backend import answer_nothing
from support.clients import RawClient

SEARCH = ber.search(1)
BODY = SEARCH[2:]


def envelope(message_id, operation=ber.tlv(ber.UNBIND_REQUEST)):
    """An LDAPMessage whose messageID element is given as it stands."""
    return ber.tlv(0x30, message_id, operation)


MALFORMED = {
    "outer tag SET": b"\x31" + SEARCH[1:],
    "outer tag application": b"\x70" + SEARCH[1:],
    "plain HTTP": b"GET / HTTP/1.1\r\nHost: directory\r\n\r\n",
    "indefinite length": b"\x30\x80" + BODY + b"\x00\x00",
    "five length octets": b"\x30\x85" + len(BODY).to_bytes(5, "big") + BODY,
    "eight length octets": b"\x30\x88" + len(BODY).to_bytes(8, "big") + BODY,
    "reserved length octet": b"\x30\xff" + BODY,
    "empty message": b"\x30\x00",
    "no operation": ber.tlv(0x30, ber.integer(1)),
    "messageID no INTEGER": envelope(ber.octets("1")),
    "messageID without octets": envelope(b"\x02\x00"),
    "messageID of five octets": envelope(b"\x02\x05\x00\x00\x00\x00\x01"),
    "messageID negative": envelope(ber.integer(-1)),
    "messageID over 2^31-1": envelope(b"\x02\x05\x00\x80\x00\x00\x00"),
    "messageID zero in a request": ber.message(0, ber.tlv(ber.DELETE_REQUEST, b"cn=x")),
    "messageID reaches past its message": b"\x30\x03\x02\x04\x01",
    "operation longer than its message": b"\x30\x07\x02\x01\x01\x63\x50\x00\x00",
    "operation indefinite": b"\x30\x07\x02\x01\x01\x63\x80\x00\x00",
    "operation unknown": ber.message(1, ber.tlv(0x7E, b"")),
    "operation is a response": ber.result(1, ber.SEARCH_DONE),
    "operation is a notice": ber.notice_of_disconnection(ber.UNAVAILABLE),
}


@pytest.fixture
def backend(start_backend):
    return start_backend()


@pytest.fixture
def proxy(start_proxy, backend):
    return start_proxy([backend], pool='health.probe = "tcp"')


@pytest.mark.parametrize("octets", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_as_the_first_request(proxy, backend, octets):
    with RawClient(proxy.endpoint(), malformed=True) as client:
        client.send(octets)
        assert_notice_and_end(client)
    assert backend.sessions() == []


@pytest.mark.parametrize("octets", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_after_good_requests(proxy, backend, octets):
    """The backend has seen the good request, octet for octet, and nothing of what follows it."""
    with RawClient(proxy.endpoint(), malformed=True) as client:
        assert client.ask(ber.search)[-1].result_code == ber.SUCCESS
        client.send(octets)
        assert_notice_and_end(client)
    session = backend.session()
    assert session.closed.wait(10)
    assert _without_unbind(session.received) == SEARCH


def test_announced_length_is_refused_at_once(proxy, backend):
    """The limit applies as soon as the length is known: no body is waited for, none is stored."""
    with RawClient(proxy.endpoint(), seconds=5, malformed=True) as client:
        client.send(b"\x30\x84\x7f\xff\xff\xff")
        assert_notice_and_end(client)
    assert backend.sessions() == []


UNUSUAL = {
    "length in one more octet": b"\x30\x81" + bytes([len(BODY)]) + BODY,
    "length in four octets": b"\x30\x84" + len(BODY).to_bytes(4, "big") + BODY,
    "operation's length in four octets": ber.tlv(
        0x30, ber.integer(1), b"\x63" + ber.length(len(BODY) - 5, long_form=4) + BODY[5:]
    ),
    "messageID in four octets": ber.tlv(0x30, b"\x02\x04\x00\x00\x00\x01", BODY[3:]),
    "greatest messageID": ber.search(2**31 - 1),
    "unknown control, not critical": ber.search(1, controls=[ber.control("1.2.3", b"\x00\xff\x80")]),
    "unknown control, critical": ber.search(1, controls=[ber.control("1.2.3", critical=True)]),
    "trailing component": ber.tlv(0x30, BODY, ber.octets("later version", tag=0x8F)),
    "attribute of binary octets": ber.search(1, filter=ber.equality("objectGUID", bytes(range(256)))),
    "unknown filter choice": ber.search(1, filter=ber.tlv(0xAF, b"\x04\x00")),
    "unknown extended operation": ber.extended(1, "1.2.3.4", b"\x00\xff"),
    "bind with version 2": ber.bind(1, "cn=x", "secret", version=2),
    "password that is no text": ber.bind(1, "cn=x", b"\xff\xfe\x00"),
    "SASL without credentials": ber.sasl_bind(1, "EXTERNAL"),
    "SASL with empty credentials": ber.sasl_bind(1, "EXTERNAL", b""),
    "name as a constructed string": ber.message(
        1, ber.tlv(ber.SEARCH_REQUEST, ber.tlv(0x24, ber.octets("dc=x")), ber.search(1)[9:])
    ),
    "authentication choice unknown": ber.message(
        1, ber.tlv(ber.BIND_REQUEST, ber.integer(3), ber.octets(""), ber.octets("x", tag=0x8A))
    ),
}


@pytest.mark.parametrize("octets", UNUSUAL.values(), ids=UNUSUAL.keys())
def test_unusual_requests_are_forwarded_as_received(proxy, backend, octets):
    with RawClient(proxy.endpoint()) as client:
        client.send(octets)
        assert client.read_result(ber.pdu(octets).message_id)[-1].result_code == ber.SUCCESS
        assert backend.session().received == octets


@pytest.mark.parametrize("tag", [ber.BIND_REQUEST, ber.SEARCH_REQUEST], ids=["bind", "search"])
def test_what_cannot_be_read_is_answered(proxy, backend, tag):
    """RFC 4511 §4.1.1: its envelope is right, so the session goes on. Forwarded, it might be something we don't know of."""
    with RawClient(proxy.endpoint()) as client:
        client.send(ber.message(1, ber.tlv(tag, b"\xff\xff")))
        assert client.read_result(1)[-1].result_code == ber.PROTOCOL_ERROR
        client.send(ber.search(2))
        assert client.read_result(2)[-1].result_code == ber.SUCCESS
    assert [pdu.message_id for pdu in backend.session().pdus][:1] == [2]


@pytest.mark.parametrize("size", [1, 2, 7, 50])
def test_any_split_of_the_octets_gives_the_same_pdus(proxy, backend, size):
    stream = ber.bind(1, "cn=x", "secret") + ber.search(2, "dc=x", ber.SUB) + ber.extended(3, "1.2.3")
    with RawClient(proxy.endpoint()) as client:
        client.send(stream[:len(ber.bind(1, "cn=x", "secret"))])
        client.read_result(1)
        rest = stream[len(ber.bind(1, "cn=x", "secret")):]
        for start in range(0, len(rest), size):
            client.send(rest[start:start + size])
        client.read_result(2)
        client.read_result(3)
        assert backend.session().received == stream


UNUSUAL_RESPONSES = {
    "long lengths": b"\x30\x84\x00\x00\x00\x10\x02\x01\x01\x65\x84\x00\x00\x00\x07\x0a\x01\x00\x04\x00\x04\x00",
    "unknown result code": ber.result(1, ber.SEARCH_DONE, 4711),
    "referral": ber.result(1, ber.SEARCH_DONE, 10, "", ber.tlv(0xA3, ber.octets("ldap://elsewhere/"))),
    "extended tag as the final one": ber.result(1, ber.EXTENDED_RESPONSE, 12, "no such control"),
    "control": ber.result(1, ber.SEARCH_DONE, controls=[ber.control("1.2.3", b"\xff")]),
}


@pytest.mark.parametrize("octets", UNUSUAL_RESPONSES.values(), ids=UNUSUAL_RESPONSES.keys())
def test_unusual_responses_are_forwarded_as_received(proxy, backend, octets):
    entry, intermediate = ber.entry(1, "cn=\\C3", {"x": [bytes(range(256))]}), ber.message(1, ber.tlv(0x79))
    backend.answer = lambda connection, pdu: connection.send(entry, intermediate, ber.reference(1, "ldap://a/"), octets)
    with RawClient(proxy.endpoint()) as client:
        client.send(ber.search(1))
        assert [pdu.raw for pdu in client.read_result(1)] == [entry, intermediate, ber.reference(1, "ldap://a/"), octets]
        # The operation is over: its messageID may be used again.
        backend.answer = lambda connection, pdu: connection.send(ber.result(1, ber.SEARCH_DONE))
        client.send(ber.search(1))
        assert client.read_result(1)[-1].result_code == ber.SUCCESS


def test_a_messageid_in_use_is_refused(proxy, backend):
    """RFC 4511 §4.1.1.1: unique among the operations in progress."""
    backend.answer = answer_nothing
    with RawClient(proxy.endpoint()) as client:
        client.send(ber.search(1))
        backend.session().wait_for(ber.SEARCH_REQUEST)
        client.send(ber.search(1, "dc=other"))
        assert_notice_and_end(client)
    assert len(backend.session().of(ber.SEARCH_REQUEST)) == 1


def assert_notice_and_end(client):
    *_, notice = client.read_to_end()
    assert notice.is_notice(ber.PROTOCOL_ERROR), notice
    assert notice.diagnostic


def _without_unbind(received):
    """The proxy may end its upstream with an unbind of its own."""
    return received[:len(SEARCH)] if received[len(SEARCH):] == ber.unbind(2) else received
