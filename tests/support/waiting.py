"""Waiting for something to become true, always with a deadline."""

import time

SECONDS = 20
"""How long a test waits for an event that takes well under a second on an idle machine."""


class NotInTime(AssertionError):
    """What was waited for did not happen before the deadline."""


def eventually(question, what, seconds=SECONDS, pause=0.02):
    """Asks `question()` until its answer is true, and returns that answer. An OSError counts as "not yet"."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            answer = question()
        except OSError as error:
            answer, last = None, error
        else:
            last = answer
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise NotInTime(f"not within {seconds} s: {what} (last answer: {last!r})")
        time.sleep(pause)
