"""A DNS server on loopback that says what a test wants."""

import socket
import struct
import threading

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset


class NameServer:
    """Answers from `records`, `{(name, type): [text]}` with names in lower case; other names don't exist.

    A test may replace `records` at any time. `ttl` is that of every answer. While `silent`, questions are read and not
    answered; while it `fails`, the answer is SERVFAIL. `asked` are the questions so far.
    """

    def __init__(self, records=None, ttl=0):
        self.records = records or {}
        self.ttl = ttl
        self.silent = self.fails = False
        self.asked = []
        self._tcp = socket.create_server(("127.0.0.1", 0))
        self.address = self._tcp.getsockname()
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind(self.address)
        for work in (self._serve_udp, self._serve_tcp):
            threading.Thread(target=work, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for listening in (self._tcp, self._udp):
            try:
                listening.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            listening.close()

    def __str__(self):
        return "{}:{}".format(*self.address)

    def _serve_udp(self):
        while True:
            try:
                question, client = self._udp.recvfrom(4096)
                if not question:
                    return
                if answer := self._answer(question):
                    self._udp.sendto(answer, client)
            except OSError:
                return

    def _serve_tcp(self):
        while True:
            try:
                client, _ = self._tcp.accept()
            except OSError:
                return
            with client, client.makefile("rb") as stream:
                while len(size := stream.read(2)) == 2:
                    if answer := self._answer(stream.read(*struct.unpack("!H", size))):
                        client.sendall(struct.pack("!H", len(answer)) + answer)

    def _answer(self, octets):
        query = dns.message.from_wire(octets)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        kind = dns.rdatatype.to_text(question.rdtype)
        self.asked.append((name, kind))
        if self.silent:
            return None
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.AA | dns.flags.RA
        if self.fails:
            answer.set_rcode(dns.rcode.SERVFAIL)
        elif found := self.records.get((name, kind)):
            answer.answer.append(dns.rrset.from_text_list(question.name, self.ttl, "IN", kind, found))
        elif not any(known == name for known, _ in self.records):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        return answer.to_wire()
