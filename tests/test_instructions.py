"""What an operation costs, in instructions of our own code: they repeat, as seconds on a shared machine don't.

`python3 -m pytest tests/test_instructions.py --update-instructions` writes the counts down anew; say in the commit why they moved.
"""

import contextlib
import json
import re
import socket
import threading
from pathlib import Path

import pytest

from support import ber
from support.clients import RawClient
from support.process import run

BASELINE = Path(__file__).with_name("instructions.json")
ROUNDS = 150
CYCLES = 50
# Share by which a count may grow before somebody has to look. Between runs it differs by less than one in a hundred.
MARGIN = 0.1
# The second is what the linker may call a session's future, where another's code is the same to the letter.
OWN = re.compile(r"ldaps_proxy::|<core::pin::Pin<P> as core::future::future::Future>::poll")


class Directory:
    """One connection after the other: answers `many` searches with one write, each with an entry of 500 octets."""

    def __init__(self):
        self.many = 1
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self._listener.getsockname())
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._answer, args=[connection], daemon=True).start()

    def _answer(self, connection):
        with connection, contextlib.suppress(ConnectionError):
            self._answer_all(connection)

    def _answer_all(self, connection):
        requests = b""
        while data := connection.recv(1 << 16):
            requests += data
            ids = []
            rest = requests
            while rest and len(rest) >= sum(ber.header(rest)):
                length = sum(ber.header(rest))
                ids.append(ber.pdu(rest[:length]).message_id)
                rest = rest[length:]
            if len(ids) == self.many:
                connection.sendall(b"".join(
                    ber.entry(number, "cn=x,dc=corp", {"x": ["y" * 460]}) + ber.result(number, ber.SEARCH_DONE) for number in ids
                ))
                requests = rest


@pytest.mark.deadline(240)
@pytest.mark.parametrize("log", ["off", "file"])
def test_an_operation_costs_what_it_did(start_proxy, tmp_path, request, log):
    directory = Directory()
    out = tmp_path / "callgrind"
    path = f'path = "{tmp_path / "access.log"}"\n' if log == "file" else ""
    proxy = start_proxy(
        [directory.address], pool='health.probe = "tcp"\nhealth.interval = "1h"',
        extra=f'[access_log]\noutput = "{log}"\n{path}[runtime]\nworkers = 1',
        under=["valgrind", "--quiet", "--tool=callgrind", f"--callgrind-out-file={out}"],
    )
    counts = {}
    with RawClient(proxy.endpoint(), seconds=60) as client:
        for number, many in enumerate((1, 16), start=1):
            directory.many = many
            ask(client, many, 5)
            run(["callgrind_control", "--zero", str(proxy.process.pid)])
            ask(client, many, ROUNDS)
            run(["callgrind_control", "--dump", str(proxy.process.pid)])
            counts[f"{many} in flight"] = round(own_instructions(f"{out}.{number}") / (ROUNDS * many))
        run(["callgrind_control", "--zero", str(proxy.process.pid)])
        directory.many = 1
        for _ in range(CYCLES):
            cycle(proxy)
        proxy.wait_for("ldaps_proxy_sessions_active", 1)
        run(["callgrind_control", "--dump", str(proxy.process.pid)])
        counts["a session"] = round(own_instructions(f"{out}.3") / CYCLES)
    if log == "file":
        counts = {f"{name}, logged": count for name, count in counts.items()}
    print(counts)
    if request.config.getoption("--update-instructions"):
        BASELINE.write_text(json.dumps(json.loads(BASELINE.read_text()) | counts, indent=1) + "\n")
    baseline = json.loads(BASELINE.read_text())
    grown = {name: (baseline[name], count) for name, count in counts.items() if count > baseline[name] * (1 + MARGIN)}
    assert not grown, f"{grown}: look what grew (callgrind_annotate {out}.2), or write the counts down anew and say why"


def cycle(proxy):
    """Connect, search, unbind."""
    with RawClient(proxy.endpoint(), seconds=60) as client:
        client.ask(ber.search)
        client.send(ber.unbind(9))
        assert client.read() is None


def ask(client, many, rounds):
    for _ in range(rounds):
        first = ask.next_id
        ask.next_id += many
        client.send(*map(ber.search, range(first, first + many)))
        for number in range(first, first + many):
            assert client.read_result(number)[-1].result_code == ber.SUCCESS


ask.next_id = 1


def own_instructions(file):
    """Instructions in functions of ours: cryptography and the system's libraries differ from processor to processor."""
    listing = run(["callgrind_annotate", "--threshold=100", "--auto=no", file]).stdout
    lines = re.findall(r"^ *([\d,]+) \(.*?\) +\S*?:(.*)$", listing, re.MULTILINE)
    return sum(int(count.replace(",", "")) for count, function in lines if OWN.search(function))
