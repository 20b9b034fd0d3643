"""A scriptable LDAP backend: it records every byte it received and answers as a test tells it."""

import socket
import threading

from . import ber, ledger
from .clients import reset
from .waiting import eventually


class FakeBackend:
    """Listens on an ephemeral port; `answer(connection, pdu)` is called for every PDU, one thread a connection.

    By default every request succeeds, and an entry's `description` tells the backend (`str(backend)`). Health probes that
    only connect leave no trace: see `sessions`.
    """

    def __init__(self, answer=None, address="127.0.0.1", port=0):
        self.answer = answer or answer_everything
        self.connections = []
        self._lock = threading.Lock()
        self._family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.host, self.port = address, port
        self._listen()
        self.port = self._listener.getsockname()[1]
        ledger.forget_answers(str(self))
        self._spawn(self._accept, self._listener)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __str__(self):
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def sessions(self):
        """Connections that sent at least one octet, oldest first."""
        with self._lock:
            return [connection for connection in self.connections if connection.received]

    def session(self, number=0):
        """Waits for the session with this number and returns it."""
        eventually(lambda: len(self.sessions()) > number, f"{self} has {number + 1} sessions")
        return self.sessions()[number]

    def open(self):
        """Sessions that neither side has ended."""
        return [connection for connection in self.sessions() if not connection.closed.is_set()]

    def stop_listening(self):
        """From now on connects are refused; connections stay."""
        # shutdown wakes the accepting thread; close alone would leave the port open under it.
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._listener.close()

    def listen_again(self):
        """Listens on the same port as before."""
        self._listen()
        self._spawn(self._accept, self._listener)

    def die(self):
        """As a killed server: refuses connects, resets every connection."""
        self.stop_listening()
        with self._lock:
            connections = list(self.connections)
        for connection in connections:
            connection.reset()

    def close(self):
        self.stop_listening()
        with self._lock:
            connections = list(self.connections)
        for connection in connections:
            connection.close()

    def _listen(self):
        self._listener = socket.create_server((self.host, self.port), family=self._family, backlog=128)

    def _accept(self, listener):
        while True:
            try:
                accepted, _ = listener.accept()
            except OSError:
                return
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = BackendConnection(self, accepted)
            with self._lock:
                self.connections.append(connection)
            self._spawn(self._serve, connection)

    def _serve(self, connection):
        try:
            for pdu in connection:
                self.answer(connection, pdu)
        except OSError as error:
            connection.error = error
        except ber.Malformed:
            connection.drain()  # no LDAP any more: a tunnel, or what must never have come; recorded all the same
        finally:
            connection.close()

    @staticmethod
    def _spawn(work, *arguments):
        threading.Thread(target=work, args=arguments, daemon=True).start()


class BackendConnection:
    """One upstream connection as the backend sees it."""

    def __init__(self, backend, accepted):
        self.backend = backend
        self.received = bytearray()
        self.pdus = []
        self.closed = threading.Event()
        self.error = None
        self._socket = accepted
        self._sending = threading.Lock()
        self._answers = ledger.Answers(str(backend))

    def __iter__(self):
        """PDUs as they arrive, until the peer ends the connection."""
        read = 0
        while True:
            start = ber.header(self.received[read:read + 6])
            if start is not None and len(self.received) >= read + sum(start):
                pdu = ber.pdu(bytes(self.received[read:read + sum(start)]))
                read += sum(start)
                self.pdus.append(pdu)
                yield pdu
                continue
            data = self._socket.recv(1 << 18)
            if not data:
                return
            self.received += data

    def drain(self):
        """Records what arrives, until the end, without understanding it."""
        try:
            while data := self._socket.recv(1 << 18):
                self.received += data
        except OSError as error:
            self.error = error

    def send(self, *pdus):
        """All of it, blocking while the peer doesn't read."""
        octets = b"".join(pdus)
        with self._sending:
            self._answers.note_sent(octets)
            self._socket.sendall(octets)

    def of(self, tag):
        """PDUs received so far with this operation tag."""
        return [pdu for pdu in self.pdus if pdu.tag == tag]

    def wait_for(self, tag, count=1):
        """Waits until `count` PDUs with this tag arrived, and returns the last of them."""
        eventually(lambda: len(self.of(tag)) >= count, f"{count} PDUs with tag {tag:#x} arrive")
        return self.of(tag)[count - 1]

    def wait_for_octets(self, count):
        """Waits until at least `count` octets arrived in all."""
        eventually(lambda: len(self.received) >= count, f"{count} octets arrive")

    def unread(self):
        """Octets that have arrived and wait for the reading thread, which is the one to ask."""
        try:
            return self._socket.recv(1 << 18, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b""

    def reset(self):
        """Closes with a TCP reset."""
        self.closed.set()
        try:
            self._socket.shutdown(socket.SHUT_RD)  # wakes the reading thread, which would hold the socket open
            reset(self._socket)
        except OSError:
            pass

    def close(self):
        self.closed.set()
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._socket.close()


RESPONSE_TAG = {
    ber.BIND_REQUEST: ber.BIND_RESPONSE,
    ber.SEARCH_REQUEST: ber.SEARCH_DONE,
    ber.MODIFY_REQUEST: ber.MODIFY_RESPONSE,
    ber.ADD_REQUEST: ber.ADD_RESPONSE,
    ber.DELETE_REQUEST: ber.DELETE_RESPONSE,
    ber.MODIFY_DN_REQUEST: ber.MODIFY_DN_RESPONSE,
    ber.COMPARE_REQUEST: ber.COMPARE_RESPONSE,
    ber.EXTENDED_REQUEST: ber.EXTENDED_RESPONSE,
}
"""The final response's tag for each request that has one."""


def answer_everything(connection, pdu):
    """Success to every request; a search gets one entry first. In one piece: a backend that dies in the middle of a result
    is a test of its own."""
    answer = []
    if pdu.tag == ber.SEARCH_REQUEST:
        answer.append(ber.entry(pdu.message_id, "cn=fake", {"description": [str(connection.backend)]}))
    if pdu.tag in RESPONSE_TAG:
        answer.append(ber.result(pdu.message_id, RESPONSE_TAG[pdu.tag]))
    connection.send(*answer)


def answer_nothing(_connection, _pdu):
    """Accepts and hangs."""
