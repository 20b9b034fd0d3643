"""design.md's failover table, row by row: what a client sees when its backend is lost, on backends that do as told.

Health looks once and never again, so that only the session itself can notice; the session starts on `first`.
"""

import pytest

from support import ber
from support.backend import RESPONSE_TAG, answer_everything, answer_nothing
from support.clients import RawClient
from support.waiting import eventually

POOL = 'health.probe = "tcp"\nhealth.interval = "1h"\nbalance = "first-available"\n'
ACCOUNT = ("cn=somebody,dc=example,dc=org", "secret")
FAILOVERS = "ldaps_proxy_failovers_total"


@pytest.fixture
def first(start_backend):
    return start_backend()


@pytest.fixture
def second(start_backend):
    return start_backend()


@pytest.fixture
def start(start_proxy, first, second):
    """Starts a proxy before both backends, with more lines for the pool."""

    def start(pool="", backends=(first, second)):
        proxy = start_proxy(backends, pool=POOL + pool)
        proxy.wait_for("ldaps_proxy_backend_up", len(backends))
        return proxy

    return start


@pytest.fixture
def proxy(start):
    return start()


@pytest.fixture
def client(proxy):
    with RawClient(proxy.endpoint()) as client:
        yield client


def bind(client):
    assert client.ask(ber.bind, *ACCOUNT)[-1].result_code == ber.SUCCESS


def answered_by(client):
    """The backend that answers a search; the search must succeed."""
    entry, done = client.ask(ber.search)
    assert done.result_code == ber.SUCCESS
    return entry.attributes["description"][0].decode()


def lose_between_operations(proxy, backend):
    """Kills the backend, and waits until the proxy has noticed."""
    backend.die()
    proxy.wait_for("ldaps_proxy_backend_losses_total", 1)


def lose_in_flight(client, backend, request, answer=answer_nothing):
    """Sends `request` (message 9), and kills the backend once it has taken it and answered as `answer` does."""
    backend.answer = answer
    client.send(request)
    backend.session().wait_for(ber.pdu(request).tag)
    eventually(lambda: backend.session().pdus[-1].raw == request, "the backend has taken the request")
    backend.die()


def assert_failovers(proxy, **expected):
    """What was done is counted by its kind, and nothing else."""
    counted = {dict(labels)["kind"]: value for labels, value in proxy.metrics().get(FAILOVERS).items() if value}
    assert counted == expected


def pdus(backend):
    """What all of a backend's sessions received, oldest first."""
    return [pdu for session in backend.sessions() for pdu in session.pdus]


# Between operations.

def test_between_operations_anonymous(proxy, client, first, second):
    assert answered_by(client) == str(first)
    lose_between_operations(proxy, first)
    assert answered_by(client) == str(second)
    assert [pdu.tag for pdu in pdus(second)] == [ber.SEARCH_REQUEST]
    assert_failovers(proxy, idle=1, connect=1)


def test_between_operations_bound(proxy, client, first, second):
    """The bind is replayed, its answer swallowed: the client sees its search's answer and nothing else."""
    bind(client)
    assert answered_by(client) == str(first)
    lose_between_operations(proxy, first)
    assert answered_by(client) == str(second)
    replay, search = pdus(second)
    assert replay.operation == ber.pdu(ber.bind(1, *ACCOUNT)).operation
    assert search.tag == ber.SEARCH_REQUEST
    assert_failovers(proxy, bind_replay=1, connect=1)


def test_a_backend_that_closes_an_idle_connection_is_an_idle_failover(proxy, client, first, second):
    """Samba closes after 900 s, in good order: the next request opens another upstream."""
    bind(client)
    first.session().close()
    proxy.wait_for("ldaps_proxy_backend_losses_total", 1)
    assert answered_by(client) in (str(first), str(second))
    assert [pdu.tag for pdu in pdus(first) + pdus(second)] == [ber.BIND_REQUEST, ber.BIND_REQUEST, ber.SEARCH_REQUEST]
    assert_failovers(proxy, bind_replay=1)


def test_the_last_bind_is_the_one_replayed(proxy, client, first, second):
    bind(client)
    other = ("cn=other,dc=example,dc=org", "secret-2")
    assert client.ask(ber.bind, *other)[-1].result_code == ber.SUCCESS
    lose_between_operations(proxy, first)
    answered_by(client)
    assert [pdu.operation for pdu in pdus(second) if pdu.tag == ber.BIND_REQUEST] == [ber.pdu(ber.bind(1, *other)).operation]
    assert_failovers(proxy, bind_replay=1, connect=1)


def test_after_a_failed_bind_nothing_is_replayed(proxy, client, first, second):
    """Rule 25: a failed bind leaves the session anonymous, whatever the backend keeps."""
    bind(client)
    first.answer = lambda connection, pdu: connection.send(
        ber.result(pdu.message_id, ber.BIND_RESPONSE, ber.INVALID_CREDENTIALS)
    )
    assert client.ask(ber.bind, "cn=somebody", "wrong")[-1].result_code == ber.INVALID_CREDENTIALS
    lose_between_operations(proxy, first)
    answered_by(client)
    assert [pdu.tag for pdu in pdus(second)] == [ber.SEARCH_REQUEST]
    assert_failovers(proxy, idle=1, connect=1)


def test_the_replay_is_refused(proxy, client, first, second):
    """52 to what is in flight, a notice, the end: never on as anonymous."""
    bind(client)
    lose_between_operations(proxy, first)
    second.answer = lambda connection, pdu: connection.send(
        ber.result(pdu.message_id, ber.BIND_RESPONSE, ber.INVALID_CREDENTIALS)
    )
    client.send(ber.search(9))
    answer, notice = client.read_to_end()
    assert (answer.message_id, answer.tag, answer.result_code) == (9, ber.SEARCH_DONE, ber.UNAVAILABLE)
    assert notice.is_notice(ber.UNAVAILABLE)
    assert [pdu.tag for pdu in pdus(second)] == [ber.BIND_REQUEST]
    assert_failovers(proxy, replay_refused=1, connect=1)


def test_a_refused_replay_stops_those_of_the_same_account(start, first, second):
    """300 sessions, one changed password, one bad bind at the directory."""
    proxy = start()
    clients = [RawClient(proxy.endpoint()) for _ in range(300)]
    for client in clients:
        bind(client)
    second.answer = lambda connection, pdu: connection.send(
        ber.result(pdu.message_id, ber.BIND_RESPONSE, ber.INVALID_CREDENTIALS)
    )
    first.die()
    for client in clients:
        client.send(ber.search(9))
    for client in clients:
        assert client.read_to_end()[-1].is_notice(ber.UNAVAILABLE)
        client.close()
    assert [pdu.tag for pdu in pdus(second)] == [ber.BIND_REQUEST]


@pytest.mark.parametrize("code", [ber.OPERATIONS_ERROR, ber.UNWILLING_TO_PERFORM])
def test_only_invalid_credentials_stop_those_of_the_same_account(start, first, second, code):
    """Any other code may be that backend's own trouble, and says nothing of the password."""
    proxy = start()
    with RawClient(proxy.endpoint()) as unlucky, RawClient(proxy.endpoint()) as lucky:
        bind(unlucky)
        bind(lucky)
        second.answer = lambda connection, pdu: connection.send(ber.result(pdu.message_id, ber.BIND_RESPONSE, code))
        first.die()
        unlucky.send(ber.search(9))
        assert unlucky.read_to_end()[-1].is_notice(ber.UNAVAILABLE)
        second.answer = answer_everything
        assert answered_by(lucky) == str(second)


def test_who_logs_in_again_takes_back_what_a_replay_was_refused(start, first, second):
    """A password that hadn't reached that backend yet is right, as its next login shows."""
    proxy = start()
    with RawClient(proxy.endpoint()) as refused, RawClient(proxy.endpoint()) as later:
        bind(refused)
        bind(later)
        second.answer = lambda connection, pdu: connection.send(
            ber.result(pdu.message_id, ber.BIND_RESPONSE, ber.INVALID_CREDENTIALS)
        )
        first.die()
        refused.send(ber.search(9))
        assert refused.read_to_end()[-1].is_notice(ber.UNAVAILABLE)
        second.answer = answer_everything
        with RawClient(proxy.endpoint()) as again:
            bind(again)
        assert answered_by(later) == str(second)


def test_a_refused_replay_does_not_stop_other_accounts(start, first, second):
    proxy = start()

    def answer(connection, pdu):
        if pdu.tag == ber.BIND_REQUEST and pdu.operation == ber.pdu(ber.bind(1, *ACCOUNT)).operation:
            return connection.send(ber.result(pdu.message_id, ber.BIND_RESPONSE, ber.INVALID_CREDENTIALS))
        return answer_everything(connection, pdu)

    with RawClient(proxy.endpoint()) as refused, RawClient(proxy.endpoint()) as other:
        bind(refused)
        other.ask(ber.bind, "cn=other", "secret")
        second.answer = answer
        first.die()
        refused.send(ber.search(9))
        assert refused.read_to_end()[-1].is_notice(ber.UNAVAILABLE)
        assert answered_by(other) == str(second)


# In flight.

SEARCH = ber.search(9, "dc=x", ber.SUB)
RETRIED = {
    "search": (SEARCH, "retry_search"),
    "compare": (ber.compare(9, "cn=x", "a", "b"), "retry_compare"),
    "simple bind": (ber.bind(9, *ACCOUNT), "retry_bind"),
    "search with known critical controls": (
        ber.search(9, "dc=x", controls=[ber.control("2.16.840.1.113730.3.4.2", critical=True)]), "retry_search",
    ),
    "search with an unknown control, not critical": (
        ber.search(9, "dc=x", controls=[ber.control("1.2.3.4")]), "retry_search",
    ),
}


@pytest.mark.parametrize(("request_", "kind"), RETRIED.values(), ids=RETRIED.keys())
def test_unanswered_reads_and_binds_are_sent_again_once(proxy, client, first, second, request_, kind):
    lose_in_flight(client, first, request_)
    assert client.read_result(9)[-1].result_code == ber.SUCCESS
    assert [pdu.raw for pdu in pdus(second)] == [request_]
    assert_failovers(proxy, idle=1, **{kind: 1})


def test_reads_of_a_bound_session_are_sent_again_after_the_replay(proxy, client, first, second):
    bind(client)
    lose_in_flight(client, first, SEARCH)
    assert client.read_result(9)[-1].result_code == ber.SUCCESS
    assert [pdu.tag for pdu in pdus(second)] == [ber.BIND_REQUEST, ber.SEARCH_REQUEST]
    assert_failovers(proxy, bind_replay=1, retry_search=1)


def test_a_pipelined_lot_is_judged_one_by_one(proxy, client, first, second):
    """Two searches untouched, one half answered, one write: each gets what its own row says, and exactly one end."""
    def answer(connection, pdu):
        if pdu.message_id == 3:
            connection.send(ber.entry(3, "cn=part", {}))

    first.answer = answer
    client.send(ber.search(1), ber.search(2), ber.search(3), ber.modify(4, "cn=x", {"a": ["b"]}))
    assert client.read().entry_name == "cn=part"
    first.session().wait_for(ber.MODIFY_REQUEST)
    first.die()
    seen = {}
    for _ in range(6):
        pdu = client.read()
        seen.setdefault(pdu.message_id, []).append(None if pdu.tag == ber.SEARCH_ENTRY else pdu.result_code)
    assert seen == {1: [None, 0], 2: [None, 0], 3: [ber.UNAVAILABLE], 4: [ber.UNAVAILABLE]}
    assert sorted(pdu.message_id for pdu in pdus(second)) == [1, 2]
    assert_failovers(proxy, retry_search=2, lost_mid_result=1, outcome_unknown=1, idle=1)


def test_a_search_that_has_entries_delivered_is_not_repeated(proxy, client, first, second):
    """Never duplicates, never silently short."""
    lose_in_flight(
        client, first, SEARCH,
        answer=lambda connection, pdu: connection.send(ber.entry(9, "cn=1", {}), ber.entry(9, "cn=2", {})[:-1]),
    )
    entry, done = client.read_result(9)
    assert entry.entry_name == "cn=1"
    assert done.result_code == ber.UNAVAILABLE
    assert "mid-result" in done.diagnostic
    assert pdus(second) == []
    assert answered_by(client) == str(second)
    assert_failovers(proxy, lost_mid_result=1, idle=1)


WRITES = {
    "add": ber.add(9, "cn=x", {"a": ["b"]}),
    "modify": ber.modify(9, "cn=x", {"a": ["b"]}),
    "delete": ber.delete(9, "cn=x"),
    "modifyDN": ber.modify_dn(9, "cn=x", "cn=y"),
    "extended": ber.extended(9, "1.3.6.1.4.1.4203.1.11.1", b"\x30\x00"),
}


@pytest.mark.parametrize("request_", WRITES.values(), ids=WRITES.keys())
def test_a_write_is_never_sent_twice(proxy, client, first, second, request_):
    """Rule 23. The session goes on."""
    lose_in_flight(client, first, request_)
    [answer] = client.read_result(9)
    assert (answer.tag, answer.result_code) == (RESPONSE_TAG[ber.pdu(request_).tag], ber.UNAVAILABLE)
    assert "outcome unknown" in answer.diagnostic
    assert answered_by(client) == str(second)
    assert [pdu.tag for pdu in pdus(second)] == [ber.SEARCH_REQUEST]
    assert_failovers(proxy, outcome_unknown=1, idle=1)


NOT_RETRIED = {
    "unknown critical control": (
        (ber.search(9, "dc=x", controls=[ber.control("1.2.3.4", critical=True)]),), {"exhausted": 1},
    ),
    "search behind an unanswered write": (
        (ber.delete(8, "cn=x"), ber.search(9, "dc=x")), {"outcome_unknown": 1, "exhausted": 1},
    ),
}


@pytest.mark.parametrize(("requests", "failovers"), NOT_RETRIED.values(), ids=NOT_RETRIED.keys())
def test_searches_that_may_not_be_repeated(proxy, client, first, second, requests, failovers):
    first.answer = answer_nothing
    client.send(*requests[:-1])
    lose_in_flight(client, first, requests[-1])
    answers = {pdu.message_id: pdu.result_code for pdu in (client.read() for _ in requests)}
    assert answers == {ber.pdu(request).message_id: ber.UNAVAILABLE for request in requests}
    assert pdus(second) == []
    assert_failovers(proxy, **failovers)


def test_one_retry_and_no_more(start, start_backend, first, second):
    """A request that loses one upstream is tried on one other, not on every backend in turn."""
    third = start_backend()
    proxy = start(backends=(first, second, third))

    def poisoned(connection, pdu):
        if pdu.tag == ber.SEARCH_REQUEST and pdu.message_id == 9:
            connection.reset()
        else:
            answer_everything(connection, pdu)

    for backend in (first, second, third):
        backend.answer = poisoned
    with RawClient(proxy.endpoint()) as client:
        client.send(ber.search(9))
        assert client.read_result(9)[-1].result_code == ber.UNAVAILABLE
        assert len([pdu for backend in (first, second, third) for pdu in pdus(backend)]) == 2
    assert_failovers(proxy, retry_search=1, idle=1, exhausted=1)
    assert proxy.metrics().sum("ldaps_proxy_backend_losses_total") == 2


def test_one_clients_poison_does_not_empty_the_pool(start, first, second):
    """A query on which the backend hangs up: one address alone ejects nobody."""
    proxy = start()
    for backend in (first, second):
        backend.answer = lambda connection, pdu: (
            connection.reset() if pdu.message_id == 9 else answer_everything(connection, pdu)
        )
    for _ in range(12):
        with RawClient(proxy.endpoint()) as client:
            client.send(ber.search(9))
            assert client.read_result(9)[-1].result_code == ber.UNAVAILABLE
    assert proxy.metrics().sum("ldaps_proxy_backend_up") == 2
    with RawClient(proxy.endpoint()) as client:
        assert answered_by(client) in (str(first), str(second))


@pytest.mark.parametrize("code", [ber.BUSY, ber.UNAVAILABLE])
def test_a_backends_notice_that_it_goes_is_a_loss(proxy, client, first, second, code):
    lose_in_flight_by_notice(client, first, code)
    assert client.read_result(9)[-1].result_code == ber.SUCCESS
    assert [pdu.tag for pdu in pdus(second)] == [ber.SEARCH_REQUEST]
    assert_failovers(proxy, retry_search=1, idle=1)


def test_a_backends_other_notice_is_for_the_client(proxy, client, first, second):
    lose_in_flight_by_notice(client, first, ber.PROTOCOL_ERROR)
    assert client.read_to_end()[-1].is_notice(ber.PROTOCOL_ERROR)
    assert pdus(second) == []
    assert_failovers(proxy)


def lose_in_flight_by_notice(client, backend, code):
    def answer(connection, pdu):
        connection.send(ber.notice_of_disconnection(code, "going"))
        connection.close()

    backend.answer = answer
    client.send(ber.search(9))


# Sessions whose state lives in the backend.

def _sasl(client):
    assert client.ask(ber.sasl_bind, "GSS-SPNEGO", b"token")[-1].result_code == ber.SUCCESS


def _search(*controls, attributes=(), filter=None):
    def ask(client):
        assert client.ask(ber.search, "dc=x", controls=controls, attributes=attributes, filter=filter)[-1].result_code == 0

    return ask


def _write(client):
    assert client.ask(ber.modify, "cn=x", {"a": ["b"]})[-1].result_code == ber.SUCCESS


def _write_then_bind(client):
    """Whoever the session is now, it must not read where its write may be missing."""
    _write(client)
    bind(client)


def _paging(cookie):
    return ber.control("1.2.840.113556.1.4.319", ber.tlv(0x30, ber.integer(5), ber.octets(cookie)))


PINNED = {
    "SASL bind": _sasl,
    "open paging cookie": _search(_paging(b"")),
    "virtual list view": _search(ber.control("2.16.840.1.113730.3.4.9", b"\x30\x00")),
    "DirSync": _search(ber.control("1.2.840.113556.1.4.841", b"\x30\x00", critical=True)),
    "highestCommittedUSN": _search(attributes=["highestCommittedUSN"]),
    "uSNChanged in a filter": _search(filter=ber.tlv(0xA5, ber.octets("usnchanged"), ber.octets("1"))),
    "recent write": _write,
    "recent write, then another bind": _write_then_bind,
}


@pytest.mark.parametrize("tie", PINNED.values(), ids=PINNED.keys())
@pytest.mark.parametrize("when", ["idle", "in flight"])
def test_pinned_sessions_end_with_a_notice(proxy, client, first, second, tie, when):
    first.answer = answer_with_open_cookie
    tie(client)
    if when == "idle":
        lose_between_operations(proxy, first)
    else:
        lose_in_flight(client, first, ber.search(9))
    *answers, notice = client.read_to_end()
    assert notice.is_notice(ber.UNAVAILABLE)
    assert [(pdu.message_id, pdu.result_code) for pdu in answers] == ([] if when == "idle" else [(9, ber.UNAVAILABLE)])
    assert pdus(second) == []
    assert_failovers(proxy, pinned=1)


def answer_with_open_cookie(connection, pdu):
    if pdu.tag == ber.SEARCH_REQUEST and pdu.controls:
        return connection.send(ber.result(pdu.message_id, ber.SEARCH_DONE, controls=[_paging(b"more")]))
    return answer_everything(connection, pdu)


def test_a_finished_paging_ties_to_nothing(proxy, client, first, second):
    pages = iter([b"more", b""])
    # A probe's search asks for no pages.
    first.answer = lambda connection, pdu: connection.send(
        ber.result(pdu.message_id, ber.SEARCH_DONE, controls=[_paging(next(pages))] if pdu.controls else ())
    )
    for cookie in (b"", b"more"):
        client.ask(ber.search, "dc=x", controls=[_paging(cookie)])
    lose_between_operations(proxy, first)
    assert answered_by(client) == str(second)
    assert_failovers(proxy, idle=1, connect=1)


def test_a_write_ties_for_its_affinity_only(start, first, second):
    proxy = start('failover.write_affinity = "0s"')
    with RawClient(proxy.endpoint()) as client:
        _write(client)
        lose_between_operations(proxy, first)
        assert answered_by(client) == str(second)
    assert_failovers(proxy, idle=1, connect=1)


# Other modes.

@pytest.mark.parametrize("mode", ["connect", "none"])
def test_other_modes_end_the_session(start, first, second, mode):
    proxy = start(f'failover.mode = "{mode}"')
    with RawClient(proxy.endpoint()) as client:
        answered_by(client)
        lose_in_flight(client, first, ber.search(9))
        answer, notice = client.read_to_end()
        assert (answer.message_id, answer.result_code) == (9, ber.UNAVAILABLE)
        assert notice.is_notice(ber.UNAVAILABLE)
    assert pdus(second) == []
    assert_failovers(proxy, exhausted=1)


def test_mode_none_tries_one_backend(start, first, second):
    proxy = start('failover.mode = "none"')
    first.stop_listening()
    with RawClient(proxy.endpoint()) as client:
        assert client.ask(ber.search)[-1].result_code == ber.UNAVAILABLE
    assert pdus(second) == []
    assert_failovers(proxy, exhausted=1)


def test_bound_sessions_end_where_binds_are_not_replayed(start, first, second):
    proxy = start("failover.replay_bind = false")
    with RawClient(proxy.endpoint()) as client:
        bind(client)
        first.die()
        client.send(ber.search(9))
        assert client.read_to_end()[-1].is_notice(ber.UNAVAILABLE)
    assert pdus(second) == []
    assert_failovers(proxy, pinned=1)


# Nobody waits for ever.

@pytest.mark.deadline(120)
def test_backends_that_accept_and_hang_cost_the_budget_once(start, first, second):
    """20 bound sessions of one account lose their backend, and the other one hangs: all are answered within the
    connect budget and a little, not one after the other."""
    proxy = start('connect_timeout = "1s"\nconnect_budget = "2s"')
    clients = [RawClient(proxy.endpoint(), seconds=15) for _ in range(20)]
    for client in clients:
        bind(client)
    second.answer = answer_nothing
    first.die()
    for client in clients:
        client.send(ber.search(9))
    answers = [client.read() for client in clients]
    assert {answer.result_code for answer in answers} == {ber.UNAVAILABLE}


def test_every_session_of_a_dead_backend_moves(start, first, second):
    """50 clients with a search in flight each, all at once: 50 answers from the other backend."""
    proxy = start()
    clients = [RawClient(proxy.endpoint()) for _ in range(50)]
    for client in clients:
        bind(client)
    first.answer = answer_nothing
    for client in clients:
        client.send(ber.search(9))
    eventually(lambda: len(pdus(first)) == 100, "all searches are in flight")
    first.die()
    for client in clients:
        entry, done = client.read_result(9)
        assert entry.attributes["description"] == [str(second).encode()]
        assert done.result_code == ber.SUCCESS
        client.close()
    assert proxy.metrics().sum(FAILOVERS, kind="retry_search") == 50
