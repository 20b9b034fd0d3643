"""Honest clients beside an attack, in a process of their own: two standing sessions, and newcomers that log in, search
and leave, one after the other."""

import json
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

NOTHING = "ou=0x0,dc=x"
"""The base for which the directory has a result without entries."""
PAUSE = 0.01
"""Seconds between two rounds: they are people, not a load."""


class Honest:
    """`rounds(n)` has them work and returns what they saw."""

    def __init__(self, endpoint):
        self._program = subprocess.Popen(
            [sys.executable, __file__, endpoint.host, str(endpoint.port), str(endpoint.ca)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        self.pid = self._program.pid
        assert self._program.stdout.readline() == "ready\n", "the honest clients could not log in"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._program.stdin.close()
        self._program.wait(30)
        self._program.stdout.close()

    def rounds(self, count):
        print(count, file=self._program.stdin, flush=True)
        return Seen(**json.loads(self._program.stdout.readline()))


class Seen:
    """Seconds that each login and each answer to a standing session took, and what failed."""

    def __init__(self, logins, answers, failures):
        self.logins, self.answers, self.failures = sorted(logins), sorted(answers), failures

    def __add__(self, other):
        return Seen(self.logins + other.logins, self.answers + other.answers, self.failures + other.failures)

    def __str__(self):
        shown = ("{} {:.1f}/{:.1f} ms".format(name, *(1000 * one for one in (median(took), percentile(took, 99))))
                 for name, took in (("login", self.logins), ("answer", self.answers)) if took)
        return ", ".join(shown) + f" (p50/p99), {len(self.failures)} failures"


def percentile(ordered, percent):
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def main(host, port, ca):
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from support import ber

    context = ssl.create_default_context(cafile=ca)

    def enter():
        tcp = socket.create_connection((host, int(port)), 30)
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = context.wrap_socket(tcp, server_hostname=host)
        ask(client, ber.bind(1, "cn=honest", "secret"), 1)
        return client

    def ask(client, request, number):
        client.sendall(request)
        answer = b""
        while not (start := ber.header(answer)) or len(answer) < sum(start):
            data = client.recv(4096)
            if not data:
                raise OSError("the connection ended")
            answer += data
        pdu = ber.pdu(answer)
        if (pdu.message_id, pdu.result_code) != (number, 0):
            raise OSError(f"the answer was {pdu}")

    def timed(work, took):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)

    def login():
        with enter() as client:
            ask(client, ber.search(2, NOTHING), 2)
            client.sendall(ber.unbind(3))

    standing = [enter(), enter()]
    print("ready", flush=True)
    for line in sys.stdin:
        logins, answers, failures = [], [], []
        for _ in range(int(line)):
            asking = [(answers, lambda one=one: ask(one, ber.search(2, NOTHING), 2)) for one in standing]
            for took, work in [(logins, login), *asking]:
                try:
                    timed(work, took)
                except OSError as error:
                    failures.append(repr(error))
            time.sleep(PAUSE)
        print(json.dumps({"logins": logins, "answers": answers, "failures": failures}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
