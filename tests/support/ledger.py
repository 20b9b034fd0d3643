"""What raw clients sent and read and what scripted backends answered: the other side of the access log."""

from collections import Counter, defaultdict

from . import ber

OPERATIONS = {
    ber.BIND_REQUEST: "bind", ber.UNBIND_REQUEST: "unbind", ber.SEARCH_REQUEST: "search", ber.MODIFY_REQUEST: "modify",
    ber.ADD_REQUEST: "add", ber.DELETE_REQUEST: "delete", ber.MODIFY_DN_REQUEST: "modifyDN", ber.COMPARE_REQUEST: "compare",
    ber.ABANDON_REQUEST: "abandon", ber.EXTENDED_REQUEST: "extended",
}
"""The access log's word for each request."""
RESULTS = {
    ber.BIND_RESPONSE, ber.SEARCH_DONE, ber.MODIFY_RESPONSE, ber.ADD_RESPONSE, ber.DELETE_RESPONSE, ber.MODIFY_DN_RESPONSE,
    ber.COMPARE_RESPONSE, ber.EXTENDED_RESPONSE,
}

answers = defaultdict(Counter)
"""By a scripted backend's address: how many final responses it sent for each messageID."""

_conversations = defaultdict(list)
"""By the port a client connected to."""


class Conversation:
    """One client's connection: its whole requests in order, and the results it read.

    `opaque` once it sent what is no request. That must be meant, by a test of malformed octets or because the session has
    become a tunnel; what follows is nobody's to compare.
    """

    def __init__(self, client, *, malformed=False):
        self.client, self.malformed = client, malformed
        self.sent, self.results = [], []
        self.opaque = False
        self._rest = bytearray()

    def note_sent(self, octets):
        if self.opaque:
            return
        self._rest += octets
        try:
            for pdu in whole_pdus(self._rest):
                self.sent.append((pdu.message_id, OPERATIONS[pdu.tag]))
        except (ValueError, KeyError, IndexError):
            self.opaque = True

    def note_read(self, pdu):
        if not self.opaque and pdu.message_id and pdu.tag in RESULTS:
            self.results.append((pdu.message_id, pdu.result_code))


class Answers:
    """What a scripted backend sends on one connection. Malformed responses are its own test's to judge."""

    def __init__(self, backend):
        self._counted = answers[backend]
        self._rest, self._opaque = bytearray(), False

    def note_sent(self, octets):
        if self._opaque:
            return
        self._rest += octets
        try:
            self._counted.update(pdu.message_id for pdu in whole_pdus(self._rest) if pdu.tag in RESULTS)
        except (ValueError, IndexError):
            self._opaque = True


def begin(client_socket, *, malformed):
    """The conversation of a socket that has just been connected."""
    conversation = Conversation(name_of(client_socket.getsockname()), malformed=malformed)
    _conversations[client_socket.getpeername()[1]].append(conversation)
    return conversation


def take(ports):
    """The conversations with those ports, which are forgotten: the next server there is another one."""
    return [conversation for port in ports for conversation in _conversations.pop(port, [])]


def forget_answers(backend):
    """A new backend has this address now."""
    answers[backend] = Counter()


def whole_pdus(octets):
    """Takes each whole LDAPMessage off the front of a bytearray."""
    while (start := ber.header(octets)) is not None and len(octets) >= sum(start):
        raw = bytes(octets[:sum(start)])
        del octets[:sum(start)]
        yield ber.pdu(raw)


def name_of(address):
    """A socket's address as the access log writes it."""
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
