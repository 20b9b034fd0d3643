"""Load that notices everything that goes wrong, and the faults to put it through."""

import threading
import time
from collections import Counter

from . import ber
from .clients import RawClient
from .waiting import eventually


class Load:
    """`sessions` clients, each on one connection, that run `operation(client, number)` over and over, from entering until
    `stop` or leaving, with `pause` seconds between two. `operation` sends one request and returns its PDUs.

    Afterwards `done` is the number of operations answered with success, `failed` the other answers, `dropped` what ended
    a connection, `duplicated` how many entries came twice in one answer, `longest` the seconds that the slowest operation
    took.
    """

    def __init__(self, endpoint, sessions, account, operation, *, pause=0):
        self._endpoint, self._account, self._operation, self._pause = endpoint, account, operation, pause
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(n,), daemon=True) for n in range(sessions)]
        self._lock = threading.Lock()
        self._rounds = [0] * sessions
        self.failed, self.dropped, self.duplicated, self.longest = [], [], 0, 0.0

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        self.wait_for_rounds(2)
        return self

    def __exit__(self, *_):
        self.stop()

    @property
    def done(self):
        return sum(self._rounds)

    def wait_for_rounds(self, count=3, seconds=60):
        """Waits until every session that is still there has finished `count` more operations."""
        goals = [rounds + count for rounds in self._rounds]
        eventually(
            lambda: all(
                rounds >= goal or not thread.is_alive()
                for rounds, goal, thread in zip(self._rounds, goals, self._threads)
            ),
            f"every session finishes {count} operations", seconds,
        )

    def stop(self):
        """Lets every session finish what it is at, and waits for that."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(60)

    def counts(self):
        """For people."""
        return {
            "tried": self.done + len(self.failed), "failed": len(self.failed), "duplicated": self.duplicated,
            "sessions dropped": len(self.dropped), "s the longest": round(self.longest, 2),
        }

    def assert_unharmed(self):
        """Nothing failed, nobody was dropped."""
        self.stop()
        harm = Counter(map(str, self.failed)) + Counter(self.dropped) + Counter({"duplicate entries": self.duplicated})
        assert not harm, f"beside {self.done} operations that succeeded: {harm.most_common(5)}"

    def _work(self, number):
        try:
            with RawClient(self._endpoint) as client:
                client.bind(self._account)
                while not self._stopped.is_set():
                    began = time.monotonic()
                    answer = self._operation(client, number)
                    took = time.monotonic() - began
                    final, names = answer[-1], [pdu.entry_name for pdu in answer if pdu.tag == ber.SEARCH_ENTRY]
                    with self._lock:
                        self.longest = max(self.longest, took)
                        self.duplicated += len(names) - len(set(names))
                        if final.result_code == ber.SUCCESS:
                            self._rounds[number] += 1
                        else:
                            self.failed.append((final.result_code, final.diagnostic))
                    if self._pause:
                        self._stopped.wait(self._pause)
        except Exception as error:
            with self._lock:
                self.dropped.append(repr(error))


def reading(base, scope=ber.BASE, attributes=("description",)):
    """The operation that reads `base`, with at least one entry in its answer."""
    def read(client, _number):
        answer = client.ask(ber.search, base, scope, attributes=attributes)
        assert answer[-1].result_code != ber.SUCCESS or len(answer) > 1, "an empty result"
        return answer

    return read


class Figures:
    """What one fault cost, for docs/failures.md: printed at the end of the run, and never compared with anything."""

    shown = []

    def __init__(self, test):
        self.test, self.load, self.counts = test, None, {}
        self.ejected, self.recovered = [], []
        Figures.shown.append(self)

    def count(self, **counts):
        """What no `load` counts: `tried`, `failed`, `duplicated`, or anything else worth saying."""
        self.counts |= counts

    def time_to_eject(self, proxy, backend, **options):
        """Waits until the backend is down, and notes how long that takes from now on."""
        self.ejected.append(_seconds(lambda: proxy.wait_for(UP, 0, backend=backend, **options)))

    def time_to_recover(self, proxy, backend, **options):
        """Waits until it is up again. The server must answer by now."""
        self.recovered.append(_seconds(lambda: proxy.wait_for(UP, 1, backend=backend, **options)))

    def __str__(self):
        counts = {**(self.load.counts() if self.load else {}), **self.counts}
        times = [(self.ejected, "out after"), (self.recovered, "back after")]
        return "; ".join([
            f"{self.test}: " + ", ".join(f"{count} {what}" for what, count in counts.items()),
            *(f"{words} {', '.join(f'{one:.2f}' for one in seconds)} s" for seconds, words in times if seconds),
        ])


UP = "ldaps_proxy_backend_up"


def _seconds(wait):
    began = time.monotonic()
    wait()
    return time.monotonic() - began
