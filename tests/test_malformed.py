"""Thousands of malformed requests over TLS, each judged by an independent oracle; see support/malformed.py for what
malformed means. The backend records every octet it gets."""

import itertools
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from support import ber, malformed
from support.backend import RESPONSE_TAG
from support.waiting import eventually

LANES = 8
"""Connections at a time."""
PROBE = 0x7FFFFFF0
"""The messageID of the request that shows whether a session goes on."""


@pytest.mark.deadline(240)
def test_malformed_requests(start_proxy):
    cases = malformed.cases()
    assert len(cases) >= 5000
    with Recorder() as recorder:
        proxy = start_proxy([recorder], pool='health.probe = "tcp"')
        lanes = [Lane(proxy, recorder, version) for _ in range(LANES // 2) for version in VERSIONS]
        with ThreadPoolExecutor(LANES) as pool:
            work = [pool.submit(lane.run, cases[number::LANES]) for number, lane in enumerate(lanes)]
            found = list(itertools.chain.from_iterable(one.result() for one in work))
        assert not found, f"{len(found)} of {len(cases)} cases:\n" + "\n".join(found[:30])
        assert recorder.strangers == [], "octets of a session that had nothing good to say"
        proxy.wait_for("ldaps_proxy_sessions_active", 0)
        assert proxy.process.returncode() is None
        assert "panicked" not in proxy.log()


VERSIONS = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


class Lane:
    """Runs cases one after the other, each on the session of the one before it while that goes on."""

    numbers = itertools.count()

    def __init__(self, proxy, recorder, version):
        self._endpoint, self._recorder = proxy.endpoint(), recorder
        self._context = ssl.create_default_context(cafile=str(proxy.ca))
        self._context.minimum_version = self._context.maximum_version = version
        self._session = None
        self._client = None

    def run(self, cases):
        """What went wrong, a line for each case that did."""
        found = []
        for number, (name, octets) in enumerate(cases):
            verdict = malformed.judge(octets)
            try:
                # What is refused at once is tried as a session's first octets too.
                self.case(octets, verdict, first=number % 2 and not verdict.forwarded and not verdict.answers)
            except (AssertionError, OSError, ber.Malformed) as error:
                found.append(f"{name} ({octets[:48].hex()}): {verdict.session}, expected: {error!r}")
                self.leave()
        self.leave()
        return found

    def case(self, octets, verdict, first):
        if first:
            self.leave()
            self._client = self.connect()
        elif self._client is None:
            self.begin()
        self._client.sendall(octets)
        for message_id, code in verdict.answers:
            if verdict.session == malformed.OPEN:
                answer = self.read()
                assert (answer.message_id, answer.result_code) == (message_id, code), answer
        if verdict.session == malformed.OPEN:
            self.probe(verdict, first)
        else:
            self.end(verdict, first)

    def probe(self, verdict, first):
        """The session goes on; when the probe is answered, all before it has arrived."""
        probe = ber.search(PROBE, "cn=probe")
        self._client.sendall(probe)
        answer = self.read()
        assert (answer.message_id, answer.result_code) == (PROBE, ber.SUCCESS), answer
        if first:  # of a session that the recorder can't tell from others
            self._recorder.forget(probe)
            return self.leave()
        assert self._recorded.take() == verdict.forwarded + probe
        if verdict.binds:
            self.leave()
        return None

    def end(self, verdict, first):
        if verdict.session in (malformed.WAITS, malformed.DOOMED):
            # Our FIN without close_notify: what the proxy has to say is said, then it leaves as well.
            socket.socket.shutdown(self._client, socket.SHUT_WR)
        words = list(iter(self.read, None))
        self.leave()
        notices = [word for word in words if word.message_id == 0]
        rest = [(word.message_id, word.result_code) for word in words if word.message_id]
        assert rest == verdict.answers[:len(rest)], rest
        if verdict.session == malformed.ENDS:
            assert len(notices) == 1 and words[-1].is_notice(ber.PROTOCOL_ERROR) and words[-1].diagnostic, words
        elif verdict.session != malformed.DOOMED:
            assert not notices, notices
        if not first:
            assert self._recorded.closed.wait(10), "the upstream stays open"
            assert self._recorded.take() == verdict.forwarded

    def begin(self):
        """A session whose upstream is open and known to the recorder."""
        self._client = self.connect()
        marker = ber.search(1, f"cn=session-{next(Lane.numbers)}")
        self._client.sendall(marker)
        assert self.read().result_code == ber.SUCCESS
        self._recorded = self._recorder.find(marker)

    def connect(self):
        tcp = socket.create_connection((self._endpoint.host, self._endpoint.port), 20)
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = self._context.wrap_socket(tcp, server_hostname="127.0.0.1", session=self._session)
        if client.version() == "TLSv1.2":
            self._session = client.session
        self._received = b""
        return client

    def read(self):
        """The next PDU; None at the end of the connection."""
        while True:
            start = ber.header(self._received)
            if start and len(self._received) >= sum(start):
                pdu, self._received = self._received[:sum(start)], self._received[sum(start):]
                return ber.pdu(pdu)
            data = self._client.recv(1 << 16)
            if not data:
                assert not self._received, f"the end inside a PDU: {self._received.hex()}"
                return None
            self._received += data

    def leave(self):
        if self._client:
            self._client.close()
            self._client = None


class Recorder:
    """A backend that keeps every octet, asks no more of a request than its envelope, and answers success."""

    def __init__(self):
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._lock = threading.Lock()
        self._known, self.strangers = {}, []

    def __str__(self):
        return "{}:{}".format(*self._listener.getsockname())

    def __enter__(self):
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def find(self, marker):
        """The session whose first request this is."""
        with self._lock:
            return self._known[marker]

    def forget(self, request):
        """A session that consists of this request is no stranger."""
        with self._lock:
            self.strangers.remove(request)

    def _accept(self):
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer):
        session, unframed, first = None, b"", True
        try:
            while data := peer.recv(1 << 18):
                if session:
                    session.add(data)
                unframed += data
                while (start := ber.header(unframed)) and len(unframed) >= sum(start):
                    pdu, unframed = unframed[:sum(start)], unframed[sum(start):]
                    if first:
                        first, session = False, self._greet(pdu)
                        if session and unframed:
                            session.add(unframed)
                    number, tag, _ = malformed.contents(pdu, start[0], len(pdu))
                    if tag in RESPONSE_TAG:
                        peer.sendall(ber.result(number, RESPONSE_TAG[tag]))
        except OSError:
            pass
        finally:
            peer.close()
            if session:
                session.closed.set()
            elif unframed:
                with self._lock:
                    self.strangers.append(unframed)

    def _greet(self, pdu):
        with self._lock:
            if b"cn=session-" not in pdu:
                self.strangers.append(pdu)
                return None
            self._known[pdu] = Recorded()
            return self._known[pdu]


class Recorded:
    """What one session's backend got after its marker."""

    def __init__(self):
        self._octets = bytearray()
        self.closed = threading.Event()

    def add(self, octets):
        self._octets += octets

    def take(self):
        """All octets since the last time."""
        taken = bytes(self._octets)
        self._octets = bytearray()
        return taken
