"""A server under test as a child process: its output in a file, its whole tree ended by process ids."""

import os
import signal
import subprocess
import tempfile
from pathlib import Path

from .waiting import eventually


class Process:
    """Runs `argv` as the leader of a session of its own; every descendant is known by that session's id.

    The kernel ends the leader if the tests die first, so that an interrupted run leaves nothing behind.
    """

    def __init__(self, argv, *, directory, env=None, stdin=subprocess.DEVNULL):
        self.argv = [str(word) for word in argv]
        self.name = Path(self.argv[0]).name
        self._out = _log_file(directory, f"{self.name}-out-")
        self._err = _log_file(directory, f"{self.name}-err-")
        self._child = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", "--", *self.argv],
            stdin=stdin, stdout=self._out, stderr=self._err, cwd=directory,
            env={**os.environ, **(env or {})}, start_new_session=True,
        )

    @property
    def pid(self):
        return self._child.pid

    @property
    def stdin(self):
        return self._child.stdin

    def stdout(self):
        """All that was written to standard output so far."""
        return Path(self._out.name).read_text(errors="replace")

    def stderr(self):
        """All that was written to standard error so far."""
        return Path(self._err.name).read_text(errors="replace")

    def returncode(self):
        """The exit code, or None while it runs."""
        return self._child.poll()

    def wait(self, seconds=30):
        """Waits for the leader to exit and returns its exit code."""
        try:
            return self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} still runs after {seconds} s; its log:\n{self.stderr()}") from None

    def signal(self, number):
        """Signals the leader alone."""
        self._child.send_signal(number)

    def signal_tree(self, number):
        """Signals the leader and every descendant."""
        for pid in self.tree():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass

    def tree(self):
        """Process ids of the leader and its living descendants, the leader first."""
        return sorted((pid for pid, session in _sessions() if session == self.pid), key=lambda pid: pid != self.pid)

    def kill(self):
        """Ends the whole tree at once, as a power cut would."""
        self.signal_tree(signal.SIGKILL)
        self._child.wait(10)
        # Processes forked while the list was read.
        eventually(lambda: self.signal_tree(signal.SIGKILL) or not self.tree(), f"the tree of {self.name} is gone")

    def close(self):
        """Asks the leader to stop, then makes sure that nothing of it is left."""
        if self._child.poll() is None:
            self.signal_tree(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            try:
                self._child.wait(5)
            except subprocess.TimeoutExpired:
                pass
        self.kill()
        if self._child.stdin:
            self._child.stdin.close()
        self._out.close()
        self._err.close()


def run(argv, *, seconds=60, check=True, **options):
    """Runs a short command to its end; its output as text. Raises with that output where `check` and it fails."""
    done = subprocess.run(
        [str(word) for word in argv], stdin=None if "input" in options else subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=seconds, **options,
    )
    if check and done.returncode != 0:
        raise AssertionError(f"{argv} exited {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done


def _log_file(directory, prefix):
    return tempfile.NamedTemporaryFile(mode="wb", dir=directory, prefix=prefix, suffix=".log", delete=False)


def _sessions():
    """`(pid, session id)` of every living process; zombies hold nothing and are left out."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                stat = Path(entry.path, "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            state, _parent, _group, session = stat.rpartition(")")[2].split()[:4]
            if state != "Z":
                yield int(entry.name), int(session)
