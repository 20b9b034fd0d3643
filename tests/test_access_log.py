"""The access log, reconciled with what the clients did."""

import json
import os
import re
import signal
import ssl
import threading
from collections import Counter
from dataclasses import replace
from datetime import datetime, timezone

import pytest

from support import ber
from support.backend import RESPONSE_TAG, answer_everything, answer_nothing
from support.clients import RawClient, search_after_waiting
from support.proxy import config
from support.waiting import eventually

SECRET = "s3cret-of-this-test"


@pytest.fixture
def log_file(tmp_path):
    return tmp_path / "access.log"


@pytest.fixture
def start(start_proxy, log_file):
    """Starts a proxy that writes the log file; `keys` are further lines of [access_log]."""

    def start(backends, keys="", pool='health.probe = "tcp"', listener=""):
        extra = f'[access_log]\noutput = "file"\npath = "{log_file}"\n{keys}'
        return start_proxy(backends, pool=pool, listener=listener, extra=extra)

    return start


def records(log_file, event=None):
    found = [json.loads(line) for line in log_file.read_text().splitlines()]
    return [record for record in found if event in (None, record["event"])]


def written(log_file, sessions):
    """Waits until this many sessions have their record; a session's operations are written before it."""
    eventually(lambda: log_file.exists() and len(records(log_file, "session")) == sessions, f"{sessions} sessions are told")
    return records(log_file)


def test_every_operation_is_told_once_with_its_result_and_backend(start, start_backend, log_file):
    backends = [start_backend(), start_backend()]
    proxy = start(backends)
    asked = Counter()
    clients = 5
    for number in range(clients):
        with RawClient(proxy.endpoint()) as client:
            client.ask(ber.bind, f"cn=app{number}", SECRET)
            for _ in range(number + 1):
                client.ask(ber.search, "dc=x", ber.SUB, ber.equality("cn", SECRET))
            client.ask(ber.delete, "cn=gone,dc=x")
            client.send(ber.unbind(client.next_id()))
            assert client.ended()
        asked.update({"bind": 1, "search": number + 1, "delete": 1, "unbind": 1})
    told = written(log_file, clients)
    operations = [record for record in told if record["event"] == "operation"]
    assert Counter(record["operation"] for record in operations) == asked
    ids = [(record["session"], record["message_id"]) for record in operations]
    assert len(set(ids)) == len(ids)
    answered = [record for record in operations if record["operation"] != "unbind"]
    assert {record["result"] for record in answered} == {"success"}
    assert {record["backend"] for record in answered} <= {str(backend) for backend in backends}
    # What happens within one turn of a session happens at one time: a fast answer may have taken none.
    assert all(record["total_us"] >= record["backend_us"] >= 0 for record in answered)
    searches = [record for record in operations if record["operation"] == "search"]
    assert {(record["dn"], record["scope"], record["filter"]) for record in searches} == {("dc=x", "sub", "(cn=?)")}
    assert all(record["entries"] == 1 and record["bytes_out"] > record["bytes_in"] > 0 for record in searches)
    assert {record["bound_as"] for record in searches} == {f"cn=app{number}" for number in range(clients)}
    assert {record["tls"]["version"] for record in operations} == {"1.3"}
    sessions = [record for record in told if record["event"] == "session"]
    assert {record["ended"] for record in sessions} == {"unbind"}
    assert sum(record["operations"] for record in sessions) == len(operations)
    assert SECRET not in log_file.read_text()


def test_an_operation_ends_between_its_question_and_its_answer(start, start_backend, log_file):
    proxy = start([start_backend()])
    asked = []
    with RawClient(proxy.endpoint()) as client:
        for _ in range(10):
            before = datetime.now(timezone.utc)
            client.ask(ber.search)
            asked.append((before, datetime.now(timezone.utc)))
        client.send(ber.unbind(client.next_id()))
        assert client.ended()
    searches = [record for record in written(log_file, 1) if record.get("operation") == "search"]
    assert len(searches) == len(asked)
    for record, (before, after) in zip(searches, asked):
        assert before <= datetime.fromisoformat(record["time"].replace("Z", "+00:00")) <= after


def test_the_totals_are_those_of_the_metrics(start, start_backend, log_file):
    proxy = start([start_backend()])
    for _ in range(3):
        with RawClient(proxy.endpoint()) as client:
            client.ask(ber.bind, "cn=x", SECRET)
            client.ask(ber.search)
    told = written(log_file, 3)
    counted = {
        tuple(sorted(dict(labels).items())): value
        for labels, value in proxy.metrics().get("ldaps_proxy_operations_total").items() if value
    }
    logged = Counter(
        (("operation", record["operation"]), ("result", record["result"])) for record in told if record["event"] == "operation"
    )
    assert logged == counted
    assert proxy.metrics().sum("ldaps_proxy_access_log_records_total") == len(told)
    assert proxy.metrics().sum("ldaps_proxy_access_log_dropped_total") == 0


def test_the_proxys_own_answers_say_why(start, start_backend, log_file):
    backend = start_backend()
    proxy = start([backend], pool='health.probe = "tcp"\nconnect_budget = "200ms"', listener="policy.read_only = true")
    with RawClient(proxy.endpoint()) as client:
        client.ask(ber.delete, "cn=x")
        backend.die()
        client.ask(ber.search)
    operations = [record for record in written(log_file, 1) if record["event"] == "operation"]
    assert [(record["result"], record["refusal"]) for record in operations] == [
        ("unwillingToPerform", "read_only"), ("unavailable", "no_backend"),
    ]
    assert not any("backend" in record for record in operations)


def test_a_retried_search_is_one_record(start, start_backend, log_file):
    lost = []

    def lose_the_first(connection, pdu):
        if lost:
            connection.send(ber.result(pdu.message_id, ber.SEARCH_DONE))
        else:
            lost.append(str(connection.backend))
            connection.reset()

    proxy = start([start_backend(lose_the_first), start_backend(lose_the_first)])
    with RawClient(proxy.endpoint()) as client:
        assert client.ask(ber.search)[-1].result_code == ber.SUCCESS
    operation, session = written(log_file, 1)
    assert (operation["retries"], session["failovers"]) == (1, 1)
    assert operation["backend"] not in lost


def test_filters_are_shown_only_when_asked_for(start, start_backend, log_file):
    proxy = start([start_backend()], keys="redact_filters = false")
    with RawClient(proxy.endpoint()) as client:
        client.ask(ber.search, "dc=x", ber.BASE, ber.equality("cn", "jdoe"))
    assert written(log_file, 1)[0]["filter"] == "(cn=jdoe)"


def test_sessions_only(start, start_backend, log_file):
    proxy = start([start_backend()], keys='detail = "sessions"')
    with RawClient(proxy.endpoint()) as client:
        client.ask(ber.search)
    assert [record["event"] for record in written(log_file, 1)] == ["session"]


@pytest.mark.parametrize("half_delivered", [False, True])
def test_a_refused_bind_takes_the_name_from_nothing_asked_before(start, start_backend, log_file, half_delivered):
    """A regression test: what was in flight when a bind was refused was told as if nobody had asked it, a write too."""

    def answer(connection, pdu):
        if pdu.tag == ber.BIND_REQUEST:
            connection.send(ber.result(pdu.message_id, ber.BIND_RESPONSE))
        elif pdu.tag == ber.SEARCH_REQUEST and half_delivered:
            connection.send(ber.entry(pdu.message_id, "cn=x", {"a": ["y" * 60_000]})[:50_000])

    proxy = start([start_backend(answer)])
    with RawClient(proxy.endpoint()) as client:
        assert client.ask(ber.bind, "cn=app", SECRET)[-1].result_code == ber.SUCCESS
        client.send(ber.search(6))
        if half_delivered:
            assert client.socket.recv(1000)
        client.send(ber.delete(7, "cn=gone"), ber.bind(8, "cn=other", ""))
        while client.socket.recv(1 << 16):
            pass
    told = {record["message_id"]: record for record in written(log_file, 1) if record["event"] == "operation"}
    assert [told[number].get("bound_as") for number in (6, 7, 8)] == ["cn=app", "cn=app", None]


def test_what_a_lost_backend_was_answering_is_told(start, start_backend, log_file):
    """A regression test: where the loss left the client inside an entry, nothing that was in flight had a record."""

    def answer(connection, pdu):
        if pdu.tag == ber.SEARCH_REQUEST:
            connection.send(ber.entry(pdu.message_id, "cn=x", {"a": ["y" * 60_000]})[:50_000])
        else:
            connection.reset()

    proxy = start([start_backend(answer)])
    with RawClient(proxy.endpoint()) as client:
        client.send(ber.search(6))
        assert client.socket.recv(1000)
        client.send(ber.delete(7, "cn=gone"))
        while client.socket.recv(1 << 16):
            pass
    told = [(record["operation"], record["message_id"]) for record in written(log_file, 1) if record["event"] == "operation"]
    assert told == [("search", 6), ("delete", 7)]


def test_the_text_form_is_one_line_a_record(start, start_backend, log_file):
    proxy = start([start_backend()], keys='format = "text"')
    with RawClient(proxy.endpoint()) as client:
        client.ask(ber.bind, "cn=a\nb", SECRET)
        client.ask(ber.search, "dc=x")
    eventually(lambda: log_file.exists() and " ended: " in log_file.read_text(), "the session is told")
    lines = log_file.read_text().splitlines()
    assert len(lines) == 3 and SECRET not in log_file.read_text()
    assert '"cn=a\\nb"' in lines[0] and " search " in lines[1] and "success (0)" in lines[1]


def test_a_moved_file_is_opened_again_on_sigusr1(start, start_backend, log_file):
    proxy = start([start_backend()])
    with RawClient(proxy.endpoint()) as client:
        client.ask(ber.search)
    written(log_file, 1)
    moved = log_file.with_suffix(".1")
    os.rename(log_file, moved)
    proxy.process.signal(signal.SIGUSR1)
    eventually(log_file.exists, "the file is there again")
    with RawClient(proxy.endpoint()) as client:
        client.ask(ber.search)
    assert len(written(log_file, 1)) == 2 and len(records(moved)) == 2


def test_older_sessions_write_their_own_log_to_the_end(start, start_backend, log_file):
    """A regression test: once a reload had named another file, the old one was neither opened again on SIGUSR1 nor written out
    at the end, though the sessions that were there before still write to it."""
    proxy = start([start_backend()])
    other, moved = log_file.with_name("other.log"), log_file.with_suffix(".1")
    with RawClient(proxy.endpoint()) as older:
        older.ask(ber.search)
        eventually(lambda: log_file.exists() and records(log_file, "operation"), "its search is told")
        proxy.config_file.write_text(proxy.config_file.read_text().replace(str(log_file), str(other)))
        proxy.reload()
        proxy.wait_for("ldaps_proxy_reloads_total", 1, result="applied")
        os.rename(log_file, moved)
        proxy.process.signal(signal.SIGUSR1)
        eventually(log_file.exists, "its file is there again")
        with RawClient(proxy.endpoint()) as newer:
            for client in (older, newer):
                client.send(*(ber.search(number) for number in range(2, 102)))
                for number in range(2, 102):
                    client.read_result(number)
            proxy.terminate()
            assert proxy.wait() == 0
    assert [len(records(file, "operation")) for file in (moved, log_file, other)] == [1, 100, 100]
    assert [len(records(file, "session")) for file in (moved, log_file, other)] == [0, 1, 1]


def test_the_file_is_opened_again_during_a_drain(start, start_backend, log_file):
    """A regression test: SIGUSR1 was not heard once the process had been told to end, which may take hours."""
    backend = start_backend()
    proxy = start([backend])
    moved = log_file.with_suffix(".1")
    with RawClient(proxy.endpoint()) as client:
        client.ask(ber.search)
        eventually(lambda: log_file.exists() and records(log_file, "operation"), "its search is told")
        backend.answer = answer_nothing
        client.send(ber.search(2))
        backend.session().wait_for(ber.SEARCH_REQUEST, 2)
        proxy.terminate()
        eventually(lambda: proxy.http("/readyz")[0] == 503, "it drains")
        os.rename(log_file, moved)
        proxy.process.signal(signal.SIGUSR1)
        eventually(log_file.exists, "the file is there again")
        backend.session().send(ber.result(2, ber.SEARCH_DONE))
        assert client.read_result(2)[-1].result_code == ber.SUCCESS
        assert proxy.wait() == 0
    assert [len(records(file, "operation")) for file in (moved, log_file)] == [1, 1]


def test_what_is_queued_is_written_before_the_end(start, start_backend, log_file):
    proxy = start([start_backend()])
    with RawClient(proxy.endpoint()) as client:
        client.send(*(ber.search(number) for number in range(1, 101)))
        for number in range(1, 101):
            client.read_result(number)
        proxy.terminate()
        assert proxy.wait() == 0
    assert len(records(log_file, "operation")) == 100


def test_a_full_disk_stops_no_client(start_proxy, start_backend):
    proxy = start_proxy([start_backend()], pool='health.probe = "tcp"', extra='[access_log]\noutput = "file"\npath = "/dev/full"')
    with RawClient(proxy.endpoint()) as client:
        client.ask(ber.search)
    proxy.wait_for("ldaps_proxy_access_log_dropped_total", 2)
    assert proxy.log().count("access log can't be written") == 1


def test_waiting_for_a_seat_and_connecting_are_told_apart(start_proxy, start_backend, certificate, log_file):
    """One seat: the second session's search waits in the queue until the first one leaves."""
    backend = start_backend()
    seat = f'{{ address = "{backend}", max_sessions = 1 }}'
    pool, extra = 'queue = 1\nhealth.probe = "tcp"\nqueue_timeout = "30s"', f'[access_log]\noutput = "file"\npath = "{log_file}"'
    text = config(certificate, [backend], pool=pool, extra=extra).replace(f"'{backend}'", seat)
    proxy = start_proxy(text=text)
    with RawClient(proxy.endpoint()) as first, RawClient(proxy.endpoint()) as second:
        first.ask(ber.search)
        assert search_after_waiting(proxy, first, second)[-1].result_code == ber.SUCCESS
        second.ask(ber.search)
        port = second.socket.getsockname()[1]
    told = [record for record in written(log_file, 2) if record.get("operation") == "search"]
    # Sessions are numbered when their handshakes end, so the first client's may be the second.
    is_second = lambda record: record["client"].endswith(f":{port}")
    at_once, queued, later = sorted(told, key=lambda record: (is_second(record), record["message_id"]))
    assert queued["queue_us"] > at_once["queue_us"]
    assert queued["total_us"] >= queued["queue_us"] + queued["connect_us"] + queued["backend_us"] - 3
    assert (later["queue_us"], later["connect_us"]) == (0, 0)


def test_start_tls_is_an_operation_and_a_failed_handshake_still_a_session(start, start_backend, certificate, authority, log_file):
    keys = f'tls.certificate = "{certificate.certificate}"\ntls.private_key = "{certificate.private_key}"'
    proxy = start([start_backend()], listener=f'protocol = "ldap"\n{keys}')
    for context in (ssl.create_default_context(cafile=authority.ca), ssl.create_default_context()):
        with RawClient(proxy.endpoint(tls=False)) as client:
            client.ask(ber.extended, ber.START_TLS)
            try:
                client.socket = context.wrap_socket(client.socket, server_hostname="127.0.0.1")
            except ssl.SSLCertVerificationError:
                continue
            client.send(ber.unbind(client.next_id()))
            assert client.ended()
    told = written(log_file, 2)
    operations = [record for record in told if record["event"] == "operation"]
    assert [(record["operation"], record.get("oid"), record.get("result"), "tls" in record) for record in operations] == [
        ("extended", ber.START_TLS, "success", False), ("unbind", None, None, True), ("extended", ber.START_TLS, "success", False),
    ]
    ended = [(record["ended"], record["operations"], "tls" in record) for record in told if record["event"] == "session"]
    assert ended == [("unbind", 2, True), ("handshake_failed", 1, False)]


def test_an_operation_nobody_awaits_any_more_is_told_when_its_backend_dies(start, start_backend, log_file):
    backends = [start_backend(answer_nothing), start_backend(answer_nothing)]
    proxy = start(backends)
    with RawClient(proxy.endpoint()) as client:
        client.send(ber.search(1), ber.abandon(2, 1), ber.search(3))
        used = eventually(lambda: [backend for backend in backends if backend.sessions()], "a backend is used")[0]
        used.session().wait_for(ber.SEARCH_REQUEST, 2)
        other = next(backend for backend in backends if backend is not used)
        other.answer = answer_everything
        used.die()
        client.read_result(3)
    operations = [record for record in written(log_file, 1) if record["event"] == "operation"]
    assert Counter((record["message_id"], record["operation"], record.get("result")) for record in operations) == Counter([
        (2, "abandon", None), (1, "search", None), (3, "search", "success"),
    ])


def test_it_goes_to_standard_output(start_proxy, start_backend):
    proxy = start_proxy([start_backend()], pool='health.probe = "tcp"', extra='[access_log]\noutput = "stdout"')
    with RawClient(proxy.endpoint()) as client:
        client.ask(ber.search)
    eventually(lambda: '"event":"session"' in proxy.process.stdout(), "the session is told")
    told = [json.loads(line) for line in proxy.process.stdout().splitlines()]
    assert [(record["event"], record.get("operation")) for record in told] == [("operation", "search"), ("session", None)]


# Which operations are told.

TOLD = {
    "all": ("", [1, 2, 3, 4, 5, 6, 7, 8, 9]),
    "none that goes well": ("sample = 0", [3]),
    "one of three that go well": ("sample = 3", [1, 3, 5, 8]),
    "none that goes well at once": ('sample = 0\nslower_than = "1s"', [3, 7]),
}


@pytest.mark.parametrize(("keys", "told"), TOLD.values(), ids=TOLD)
def test_which_operations_are_told(start, start_backend, log_file, keys, told):
    """What failed always is: the third request does. The seventh is slow, where somebody cares."""
    def answer(connection, pdu):
        if pdu.tag == ber.COMPARE_REQUEST and "slower_than" in keys:
            threading.Event().wait(1.5)  # no event to wait for: this is what a slow directory is
        code = ber.NO_SUCH_OBJECT if pdu.tag == ber.DELETE_REQUEST else ber.SUCCESS
        connection.send(ber.result(pdu.message_id, RESPONSE_TAG[pdu.tag], code))

    proxy = start([start_backend(answer)], keys=keys)
    with RawClient(proxy.endpoint()) as client:
        for number in range(1, 10):
            kind = {3: (ber.delete, "cn=x"), 7: (ber.compare, "cn=x", "a", "b")}.get(number, (ber.search,))
            client.ask(*kind)
        client.finish_sending()
        *operations, session = written(log_file, 1)
    assert [record["message_id"] for record in operations] == told
    assert session["operations"] == 9, "the session knows of all"


# What is told of them.

WRONG_PASSWORD = "80090308: LdapErr: DSID-0C0903A9, comment: AcceptSecurityContext error, data 52e, v1db1"


def answer_as_a_directory(connection, pdu):
    """Refuses cn=ann; a search finds an entry and a reference."""
    if b"cn=ann" in pdu.raw:
        return connection.send(ber.result(pdu.message_id, ber.BIND_RESPONSE, ber.INVALID_CREDENTIALS, WRONG_PASSWORD))
    if pdu.tag == ber.SEARCH_REQUEST:
        connection.send(ber.entry(pdu.message_id, "cn=x", {}), ber.reference(pdu.message_id, "ldap://elsewhere/"))
    return connection.send(ber.result(pdu.message_id, RESPONSE_TAG[pdu.tag])) if pdu.tag in RESPONSE_TAG else None


REQUESTS = [
    ber.bind(1, "cn=ann", SECRET),
    ber.bind(2, "cn=app", SECRET),
    ber.search(
        3, "dc=x", ber.SUB, ber.equality("cn", SECRET), ["cn", "mail"], size_limit=10, time_limit=20,
        controls=[ber.control("1.2.840.113556.1.4.319", b"0\x05\x02\x01\x05\x04\x00", critical=True), ber.control("1.2.3")],
    ),
    ber.extended(4, ber.WHO_AM_I),
    ber.unbind(5),
]


@pytest.fixture
def spoken(start, start_backend, log_file):
    """Plays REQUESTS in one session of a proxy with these keys: `(who, backend, octets out of each)`."""
    def play(keys=""):
        backend = start_backend(answer_as_a_directory)
        proxy = start([backend], keys=keys)
        with RawClient(replace(proxy.endpoint(), host="localhost")) as client:
            host, port = client.socket.getsockname()[:2]
            suite = client.socket.cipher()[0]
            out = []
            for request in REQUESTS[:-1]:
                client.send(request)
                out.append(sum(len(pdu.raw) for pdu in client.read_result(ber.pdu(request).message_id)))
            client.send(REQUESTS[-1])
            assert client.ended()
        return f"{host}:{port}", suite, str(backend), [*out, 0]

    return play


def test_every_field_has_its_value(spoken, log_file):
    client, suite, backend, out = spoken()
    *operations, session = [
        {field: value for field, value in record.items() if not re.fullmatch(r"time|session|\w+_us", field)}
        for record in written(log_file, 1)
    ]
    who = {"client": client, "listener": "ldaps", "tls": {"version": "1.3", "suite": suite, "server_name": "localhost"}}
    success = {"backend": backend, "result_code": 0, "result": "success"}
    expected = [
        {"operation": "bind", "dn": "cn=ann", "mechanism": "simple", **success,
         "result_code": 49, "result": "invalidCredentials", "sub_code": "52e"},
        {"operation": "bind", "dn": "cn=app", "mechanism": "simple", **success, "bound_as": "cn=app"},
        {"operation": "search", "dn": "dc=x", "scope": "sub", "filter": "(cn=?)", "attributes": ["cn", "mail"],
         "size_limit": 10, "time_limit": 20, "controls": ["!1.2.840.113556.1.4.319", "1.2.3"], **success, "bound_as": "cn=app"},
        {"operation": "extended", "oid": ber.WHO_AM_I, **success, "bound_as": "cn=app"},
        {"operation": "unbind", "bound_as": "cn=app"},
    ]
    assert operations == [
        {"event": "operation", **who, "message_id": number, "entries": found, "references": found, "retries": 0,
         "bytes_in": len(request), "bytes_out": octets, **fields}
        for number, (request, octets, found, fields) in enumerate(zip(REQUESTS, out, (0, 0, 1, 0, 0), expected), 1)
    ]
    assert session == {
        "event": "session", **who, "bound_as": "cn=app", "backend": backend, "tunnel": False, "operations": len(REQUESTS),
        "failovers": 0, "bytes_in": sum(map(len, REQUESTS)), "bytes_out": sum(out), "ended": "unbind",
    }


def test_the_text_form_has_them_as_well(spoken, log_file):
    client, suite, backend, out = spoken(keys='format = "text"')
    eventually(lambda: log_file.exists() and " ended: " in log_file.read_text(), "the session is told")
    durations = r"\d+\.\d{3} ms(?: (?:queue|connect|backend) \d+\.\d{3} ms)*"
    lines = [re.sub(durations, "TIMES", line.partition(" ")[2]) for line in log_file.read_text().splitlines()]
    number = re.match(r"session (\d+)", lines[0])[1]
    who = f'session {number} {client} on ldaps TLS 1.3 {suite} for "localhost"'
    asked = [
        'anonymous #1 bind "simple" "cn=ann": invalidCredentials (49) 52e',
        'as "cn=app" #2 bind "simple" "cn=app": success (0)',
        'as "cn=app" #3 search "dc=x" sub "(cn=?)" attributes ["cn", "mail"] size limit 10 time limit 20'
        ' controls ["!1.2.840.113556.1.4.319", "1.2.3"]: success (0)',
        f'as "cn=app" #4 extended "{ber.WHO_AM_I}": success (0)',
    ]
    more = ["", "", ", 1 entries, 1 references", ""]
    assert lines[:4] == [
        f"{who} {words} from {backend}, TIMES, {len(request)} bytes in, {octets} out{rest}"
        for words, request, octets, rest in zip(asked, REQUESTS, out, more)
    ]
    assert lines[4] == f'{who} as "cn=app" #5 unbind: no result, TIMES, {len(REQUESTS[-1])} bytes in, 0 out'
    assert re.sub(r"after \d+\.\d{3} s", "after TIME", lines[5]) == (
        f'{who} as "cn=app" ended: unbind, after TIME, {len(REQUESTS)} operations,'
        f' {sum(map(len, REQUESTS))} bytes in, {sum(out)} out, on {backend}'
    )


@pytest.mark.deadline(180)
def test_a_reader_that_never_reads_stops_no_client(start, start_backend, log_file):
    """What the queue doesn't hold is lost and counted; what it holds is there when somebody reads."""
    os.mkfifo(log_file)
    reader = os.open(log_file, os.O_RDONLY | os.O_NONBLOCK)
    try:
        proxy = start([start_backend()], listener="policy.read_only = true")
        dropped = "ldaps_proxy_access_log_dropped_total"
        with RawClient(proxy.endpoint()) as client:
            while not proxy.metrics().sum(dropped):
                numbers = [client.next_id() for _ in range(1000)]
                client.send(*(ber.delete(number, "cn=" + "x" * 200) for number in numbers))
                for number in numbers:
                    assert client.read_result(number)[-1].result_code == ber.UNWILLING_TO_PERFORM
            assert client.ask(ber.search)[-1].result_code == ber.SUCCESS
            os.set_blocking(reader, True)
            assert json.loads(os.read(reader, 4096).splitlines()[0])["message_id"] == 1
    finally:
        os.close(reader)
