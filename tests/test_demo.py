"""`ldaps-proxy demo`: one command, one line to paste, and a failover to watch. Its ports are fixed by the contract, so
each test runs it in a network namespace of its own."""

import os
import pty
import shlex
import subprocess

import pytest

from support.process import Process, run
from support.proxy import BINARY
from support.waiting import eventually


class Demo:
    """The demo in a private network namespace."""

    def __init__(self, directory, stdin=subprocess.PIPE, program=('"$0"', "demo")):
        self.process = Process(
            ["unshare", "--net", "sh", "-c", f"ip link set lo up && exec {' '.join(program)}", BINARY],
            directory=directory, stdin=stdin,
        )
        self.line = eventually(self._printed, "the demo prints its line")

    def _printed(self):
        assert self.process.returncode() is None, self.process.stderr()
        lines = [line for line in self.process.stdout().splitlines(keepends=True) if line.startswith("LDAPTLS_CACERT=")]
        return lines[0].rstrip("\n") if lines and lines[0].endswith("\n") else None

    def sh(self, command, check=True):
        """Runs a command line in the demo's namespace, in a plain shell."""
        return run(
            ["nsenter", f"--net=/proc/{self.process.pid}/ns/net", "env", "-i", "PATH=/usr/bin:/bin", "sh", "-c", command],
            check=check, seconds=30,
        )

    def say(self, line):
        """Types a line at the demo's prompt."""
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def metric(self, name):
        """The values of a metric's series, by their labels as written."""
        text = self.sh(_FETCH.format(path="/metrics")).stdout
        rows = (line.rpartition(" ") for line in text.splitlines() if line.startswith(name))
        return {labels: float(value) for labels, _, value in rows}


_FETCH = """/usr/bin/python3 -c 'import urllib.request; print(urllib.request.urlopen("http://127.0.0.1:9636{path}", timeout=10).read().decode())'"""


@pytest.fixture
def demo(tmp_path):
    demo = Demo(tmp_path)
    yield demo
    demo.process.close()


def test_the_line_works_as_it_stands(demo):
    assert demo.process.stdout().count("LDAPTLS_CACERT=") == 1
    assert "-H ldaps://127.0.0.1:1636" in demo.line
    assert "\x1b" not in demo.line
    assert "sAMAccountName: Administrator" in demo.sh(demo.line).stdout


def test_it_outlives_one_of_its_directories(demo):
    """Each of the two is stopped in turn at the prompt; the line goes on working. With both stopped it says 52."""
    demo.say("stop 1")
    eventually(lambda: sorted(demo.metric("ldaps_proxy_backend_up").values()) == [0, 1], "one directory is down")
    assert "sAMAccountName: Administrator" in demo.sh(demo.line).stdout
    demo.say("start 1")
    eventually(lambda: sorted(demo.metric("ldaps_proxy_backend_up").values()) == [1, 1], "both are up")
    demo.say("stop 2")
    assert "sAMAccountName: Administrator" in demo.sh(demo.line).stdout
    demo.say("stop 1")
    eventually(lambda: sorted(demo.metric("ldaps_proxy_backend_up").values()) == [0, 0], "both are down")
    assert demo.sh(demo.line, check=False).returncode == 52
    demo.say("start 1")
    eventually(lambda: demo.sh(demo.line, check=False).returncode == 0, "the line works again")


def test_it_runs_on_without_standard_input(tmp_path):
    demo = Demo(tmp_path, stdin=subprocess.DEVNULL)
    try:
        assert "sAMAccountName: Administrator" in demo.sh(demo.line).stdout
        assert demo.process.returncode() is None
    finally:
        demo.process.close()


def test_quit_ends_it(demo):
    demo.say("quit")
    assert demo.process.wait() == 0


def test_page_and_health(demo):
    for path in ("/", "/healthz", "/readyz"):
        assert demo.sh(_FETCH.format(path=path)).stdout


_IN_THE_BACKGROUND = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp("sh", ["sh", "-mc", '"$0" demo & wait', sys.argv[1]])
"""


def test_it_serves_in_the_background_of_a_terminal(tmp_path):
    """A regression test: a job in the background that reads from its terminal is stopped, all of it."""
    leader, terminal = pty.openpty()
    with os.fdopen(leader, "wb"), os.fdopen(terminal, "rb") as stdin:
        demo = Demo(tmp_path, stdin=stdin, program=("/usr/bin/python3", "-c", shlex.quote(_IN_THE_BACKGROUND), '"$0"'))
        try:
            assert "numEntries: 1" in demo.sh(demo.line).stdout
        finally:
            demo.process.close()
