"""A name server on loopback whose answers a test changes."""

import socket
import struct
import threading

A, SRV, AAAA = 1, 33, 28
NO_ERROR, SERVER_FAILURE, NAME_ERROR = 0, 2, 3
TTL = 1


class NameServer:
    """Answers A and SRV questions over UDP. `set(name, …)` gives a name its records, `None` takes it away."""

    def __init__(self):
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.host, self.port = self._socket.getsockname()
        self._records = {}
        self.fails = False
        self.questions = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._socket.close()

    def __str__(self):
        return f"{self.host}:{self.port}"

    def set_addresses(self, name, *addresses):
        self._records[name.lower()] = {A: [socket.inet_aton(address) for address in addresses]}

    def set_services(self, name, *services):
        """Each is `(priority, weight, port, target)`."""
        records = [struct.pack("!HHH", *numbers) + _labels(target) for *numbers, target in services]
        self._records[name.lower()] = {SRV: records}

    def _serve(self):
        while True:
            try:
                query, client = self._socket.recvfrom(4096)
                self._socket.sendto(self._answer(query), client)
            except OSError:
                return

    def _answer(self, query):
        self.questions += 1
        name, end = _name(query, 12)
        question_type = struct.unpack_from("!H", query, end)[0]
        types = self._records.get(name)
        records = [] if types is None or self.fails else types.get(question_type, [])
        code = SERVER_FAILURE if self.fails else NAME_ERROR if types is None else NO_ERROR
        header = query[:2] + struct.pack("!HHHHH", 0x8580 | code, 1, len(records), 0, 0)
        answers = (struct.pack("!HHHIH", 0xC00C, question_type, 1, TTL, len(record)) + record for record in records)
        return header + query[12:end + 4] + b"".join(answers)


def _name(message, at):
    """The name that starts at this octet, in lower case, and where it ends."""
    labels = []
    while length := message[at]:
        labels.append(message[at + 1:at + 1 + length].decode())
        at += 1 + length
    return ".".join(labels).lower(), at + 1


def _labels(name):
    labels = [label.encode() for label in name.split(".") if label]
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
