"""Load that notices everything that goes wrong, and the faults to put it through."""

import threading
import time
from collections import Counter

from . import ber
from .clients import RawClient
from .waiting import eventually


class Load:
    """`sessions` clients, each on one connection, that run `operation(client, number)` over and over, from entering until
    `stop` or leaving. `operation` sends one request and returns its PDUs; its default reads an entry.

    Afterwards `done` is the number of operations answered with success, `failed` the other answers, `dropped` what ended
    a connection, `longest` the seconds that the slowest operation took.
    """

    def __init__(self, endpoint, sessions, account, operation):
        self._endpoint, self._account, self._operation = endpoint, account, operation
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(n,), daemon=True) for n in range(sessions)]
        self._lock = threading.Lock()
        self._rounds = [0] * sessions
        self.failed, self.dropped, self.longest = [], [], 0.0

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

    def assert_unharmed(self):
        """Nothing failed, nobody was dropped."""
        self.stop()
        harm = Counter(map(str, self.failed)) + Counter(self.dropped)
        assert not harm, f"beside {self.done} operations that succeeded: {harm.most_common(5)}"

    def _work(self, number):
        try:
            with RawClient(self._endpoint) as client:
                client.bind(self._account)
                while not self._stopped.is_set():
                    began = time.monotonic()
                    final = self._operation(client, number)[-1]
                    took = time.monotonic() - began
                    with self._lock:
                        self.longest = max(self.longest, took)
                        if final.result_code == ber.SUCCESS:
                            self._rounds[number] += 1
                        else:
                            self.failed.append((final.result_code, final.diagnostic))
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
