"""The reconciliation of access logs itself: a log that agrees with itself and not with what happened is found out."""

import json

import pytest

from support import ber, ledger, reconcile
from support.clients import RawClient
from support.proxy import config

PASSWORD = "s3cret-of-this-log"


@pytest.fixture
def told(start_proxy, start_backend, certificate, tmp_path):
    """Two sessions, one at each of two backends: what was told of them, to be changed and checked."""
    backends, log_file = [start_backend(), start_backend()], tmp_path / "access.log"
    extra = f'[access_log]\noutput = "file"\npath = "{log_file}"'
    proxy = start_proxy(text=config(certificate, backends, pool='health.probe = "tcp"\nbalance = "round-robin"', extra=extra))
    for count in (1, 2):
        with RawClient(proxy.endpoint()) as client:
            client.ask(ber.bind, "cn=x", PASSWORD)
            for _ in range(count):
                client.ask(ber.search, "dc=x")
            client.send(ber.unbind(client.next_id()))
            assert client.ended()
    proxy.terminate()
    assert proxy.wait() == 0
    return Told(log_file, ledger.take(proxy.ports()), [str(backend) for backend in backends])


class Told:
    def __init__(self, log_file, conversations, backends):
        self.log_file, self.conversations, self.backends = log_file, conversations, backends
        self.records = [json.loads(line) for line in log_file.read_text().splitlines()]
        self.first_session = self.records[0]["session"]

    def of_the_first(self, **fields):
        """The first session's record with these fields."""
        wanted = {"session": self.first_session, **fields}.items()
        return next(record for record in self.records if wanted <= record.items())

    def check(self, *, whole=True):
        self.log_file.write_text("".join(json.dumps(record) + "\n" for record in self.records))
        return reconcile.check(self.log_file, whole, self.conversations, ledger.answers)


def test_what_happened_is_believed(told):
    assert told.check() == len(told.records) == 2 + 3 + 4


def tell_twice(told):
    search = told.of_the_first(operation="search")
    told.records.insert(0, search)
    told.of_the_first(event="session")["operations"] += 1


def forget(operation):
    def mutate(told):
        told.records.remove(told.of_the_first(operation=operation))
        told.of_the_first(event="session")["operations"] -= 1

    return mutate


def forget_the_session(told):
    told.records = [record for record in told.records if record["session"] != told.first_session]


def change(which, **fields):
    return lambda told: told.of_the_first(operation=which).update(fields)


def name_the_other_backend(told):
    """Which has answered that messageID as well, but to the other session."""
    search = told.of_the_first(operation="search")
    search["backend"] = next(backend for backend in told.backends if backend != search["backend"])


MUTATIONS = {
    "told twice": (tell_twice, "told and never sent"),
    "an answered request is not told": (forget("search"), "read and not told so"),
    "a request without an answer is not told": (forget("unbind"), "sent and not told"),
    "a session is not told": (forget_the_session, "read and not told so"),
    "another result": (change("search", result="busy", result_code=51), "read and not told so"),
    "another messageID": (change("search", message_id=77), "told and never sent"),
    "another operation": (change("search", operation="compare"), "told and never sent"),
    "the other backend": (name_the_other_backend, "are told"),
    "no backend of ours": (change("search", backend="192.0.2.1:389"), "which is no backend"),
    "a password": (change("bind", dn=PASSWORD), "holds a password"),
}


@pytest.mark.parametrize(("mutate", "complaint"), MUTATIONS.values(), ids=MUTATIONS)
def test_what_did_not_happen_is_found_out(told, mutate, complaint):
    mutate(told)
    with pytest.raises(AssertionError, match=complaint):
        told.check()


def test_a_killed_proxy_may_lose_records_but_tells_nothing_wrong(told):
    told.records.remove(told.of_the_first(event="session"))
    told.records.remove(told.of_the_first(operation="unbind"))
    told.check(whole=False)
    change("search", result="busy", result_code=51)(told)
    with pytest.raises(AssertionError, match="another result"):
        told.check(whole=False)


def test_what_is_no_request_must_be_meant(told):
    meant, slip = told.conversations
    meant.malformed = True
    meant.note_sent(b"\x30\x80")
    told.check()
    slip.note_sent(b"\x30\x80")
    with pytest.raises(AssertionError, match="malformed=True"):
        told.check()


def test_what_a_backend_answered_is_forgotten_with_its_test():
    """Those before this one had backends. A server of another kind with the port of one was taken for it."""
    assert not ledger.answers
