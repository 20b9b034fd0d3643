"""What must hold for the access log of any proxy, whatever a test did to it."""

import json
import re
from collections import Counter, defaultdict
from pathlib import Path

REFERENCE = Path(__file__).parents[2] / "docs" / "access-log.md"
FIELDS = set(re.findall(r"^\| `(\w+)` \|", REFERENCE.read_text(), re.M))
COMMON = {"event", "time", "session", "client", "listener", "bytes_in", "bytes_out"}
OF_OPERATION = {"message_id", "operation", "entries", "references", "retries", "queue_us", "connect_us", "backend_us", "total_us"}
OF_SESSION = {"tunnel", "operations", "failovers", "duration_us", "ended"}
WITHOUT_RESPONSE = {"unbind", "abandon"}

passwords = set()
"""Those the clients of this run have sent: none may be in any log."""


def note_password(password):
    """Remembers a password that can't be anything else by chance."""
    text = password.decode(errors="replace") if isinstance(password, bytes) else password
    if 6 <= len(text) <= 64 and text not in _WORDS:
        passwords.add(text)


_WORDS = {"secret", "password"}


def check(log_file, whole, conversations=(), answers=None, configuration=""):
    """Raises for the first line or session that can't be right. `whole`: the proxy ended in good order, so that every
    session has its end. `conversations` are those of its raw clients, `answers` those of all scripted backends (see
    `ledger`); other backends stand in the `configuration`."""
    text = log_file.read_text()
    if leaked := [password for password in passwords if password in text]:
        raise AssertionError(f"{log_file} holds a password: {leaked}")
    lines = text.splitlines()
    if not whole and not text.endswith("\n"):
        lines = lines[:-1]  # a killed proxy may be cut off in the middle of one
    operations, sessions = defaultdict(list), {}
    for line in lines:
        record = json.loads(line)
        _check_record(record)
        number = record["session"]
        assert number not in sessions, f"a record after its session's end: {line}"
        if record["event"] == "operation":
            operations[number].append(record)
        else:
            sessions[number] = record
            told = operations.get(number, [])
            assert record["operations"] == len(told), f"{len(told)} operations are told: {line}"
            who = {(known["client"], known["listener"]) for known in told}
            assert who <= {(record["client"], record["listener"])}, line
    if whole:
        assert not operations.keys() - sessions.keys(), f"sessions without an end: {operations.keys() - sessions.keys()}"
    told = [record for records in operations.values() for record in records]
    _check_clients(told, sessions.values(), conversations, whole)
    _check_backends(told, answers or {}, configuration)
    return len(lines)


READ_TO_THE_END = {"unbind", "client_closed", "idle_timeout"}
"""Ends of a session before which the proxy has read all that the client sent."""


def _check_clients(operations, sessions, conversations, whole):
    """Each request a raw client sent is told once and nothing else is, with the result the client read."""
    own = _grouped(operations, lambda record: record["client"])
    ends = _grouped(sessions, lambda record: record["client"])
    for client, its in _grouped(conversations, lambda conversation: conversation.client).items():
        sent = Counter(request for conversation in its for request in conversation.sent)
        read = Counter(result for conversation in its for result in conversation.results)
        told = Counter((record["message_id"], record["operation"]) for record in own[client])
        results = Counter((record["message_id"], record["result_code"]) for record in own[client] if "result_code" in record)
        assert told <= sent, f"{client}: told and never sent: {told - sent}"
        if not whole:
            # Records may be lost with the process, but none is wrong.
            numbers = {number for number, _ in told}
            wrong = {(number, code) for number, code in read if number in numbers} - results.keys()
            assert not wrong, f"{client}: told with another result than was read: {wrong}"
            continue
        assert read <= results, f"{client}: read and not told so: {read - results}"
        if ends[client] and all(record["ended"] in READ_TO_THE_END for record in ends[client]):
            assert told == sent, f"{client}: sent and not told: {sent - told}"
        slip = any(conversation.opaque and not conversation.malformed for conversation in its)
        assert not slip or any(record["tunnel"] for record in ends[client]), (
            f"{client} sent what is no LDAP after {sent}: RawClient(…, malformed=True) if that is meant"
        )


def _grouped(things, key):
    groups = defaultdict(list)
    for thing in things:
        groups[key(thing)].append(thing)
    return groups


def _check_backends(operations, answers, configuration):
    """The backend of a record has answered that messageID, as often as records say so."""
    told = Counter((record["backend"].rpartition("/")[2], record["message_id"]) for record in operations if "backend" in record)
    for (backend, message_id), count in told.items():
        if backend in answers:
            answered = answers[backend][message_id]
            assert count <= answered, f"{backend} answered {message_id} {answered} times, {count} are told"
        else:
            # 389 need not be written.
            assert backend.removesuffix(":389") in configuration, f"an answer from {backend}, which is no backend"


def _check_record(record):
    expected = COMMON | {"operation": OF_OPERATION, "session": OF_SESSION}[record["event"]]
    assert expected <= record.keys() <= FIELDS, f"fields {record.keys() ^ expected}: {record}"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", record["time"]), record
    if record["event"] == "session":
        return
    # Each is cut to whole microseconds.
    assert record["queue_us"] + record["connect_us"] + record["backend_us"] <= record["total_us"], record
    assert ("result" in record) == ("result_code" in record), record
    if record["operation"] in WITHOUT_RESPONSE:
        assert "result" not in record, record
    by_proxy = "refusal" in record or record.get("oid") == "1.3.6.1.4.1.1466.20037"
    assert ("backend" in record) == ("result" in record and not by_proxy), f"who answered? {record}"
    assert "sub_code" not in record or record["result_code"] == 49, record
