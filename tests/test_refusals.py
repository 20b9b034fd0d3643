"""Every reason for which the proxy itself answers is counted, and told to the client and in the access log."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from support import ber
from support.backend import RESPONSE_TAG, answer_everything, answer_nothing
from support.clients import RawClient
from support.ledger import RESULTS
from support.reference import names_a_test, words

ACCOUNT = ("cn=ann", "secret")
TIME_LIMIT_EXCEEDED, INSUFFICIENT_ACCESS_RIGHTS = 3, 50


def answers(code, tag):
    """A backend that answers requests of this kind with a result of its own."""
    def answer(connection, pdu):
        if pdu.tag == tag:
            return connection.send(ber.result(pdu.message_id, RESPONSE_TAG[tag], code))
        return answer_everything(connection, pdu)

    return answer


def loses(tag, *, entries=0):
    """A backend that is gone when it gets a request of this kind; a search may have entries by then."""
    def answer(connection, pdu):
        if pdu.tag == tag:
            connection.send(*[ber.entry(pdu.message_id, "cn=x", {})] * entries)
            return connection.close()
        return answer_everything(connection, pdu)

    return answer


def forgets_the_account(connection, pdu):
    """It goes at the first search, and refuses the bind when it is back."""
    is_back = len(connection.backend.sessions()) > 1
    return (answers(ber.INVALID_CREDENTIALS, ber.BIND_REQUEST) if is_back else loses(ber.SEARCH_REQUEST))(connection, pdu)


@dataclass(frozen=True)
class Case:
    """The last of `requests` is refused; each is answered before the next one is sent, unless they are `pipelined`."""

    reason: str
    code: int
    requests: tuple
    listener: str = ""
    pool: str = ""
    extra: str = ""
    tls: bool = True
    backend: Callable = answer_everything
    backend_is_gone: bool = False
    seat_is_taken: bool = False
    pipelined: bool = False


def case(reason, code, *requests, **others):
    built = tuple(build(number) if callable(build) else build for number, build in enumerate(requests, 1))
    return Case(reason, code, built, **others)


def bind(name="cn=ann", password="secret"):
    return lambda number: ber.bind(number, name, password)


def policy(key):
    return {"listener": f"policy.{key}"}


SEARCH = lambda number: ber.search(number, "dc=x", ber.SUB)
DELETE = lambda number: ber.delete(number, "cn=x")
MODIFY = lambda number: ber.modify(number, "cn=x", {"a": ["b"]})
UNWILLING = ber.UNWILLING_TO_PERFORM

REFUSED = [
    # No backend, or no longer the one.
    case("no_backend", ber.UNAVAILABLE, SEARCH, backend_is_gone=True, pool='connect_budget = "200ms"'),
    case("queue_full", ber.BUSY, SEARCH, seat_is_taken=True),
    case("queue_timeout", ber.BUSY, SEARCH, seat_is_taken=True, pool='queue = 1\nqueue_timeout = "100ms"'),
    case("backend_lost", ber.UNAVAILABLE, SEARCH, backend=loses(ber.SEARCH_REQUEST), pool='failover.mode = "none"'),
    case("lost_mid_result", ber.UNAVAILABLE, SEARCH, backend=loses(ber.SEARCH_REQUEST, entries=1)),
    case("outcome_unknown", ber.UNAVAILABLE, DELETE, backend=loses(ber.DELETE_REQUEST)),
    case("pinned", ber.UNAVAILABLE, MODIFY, SEARCH, backend=loses(ber.SEARCH_REQUEST)),
    case("replay_refused", ber.UNAVAILABLE, bind(), SEARCH, backend=forgets_the_account),
    # Limits.
    case("operation_timeout", TIME_LIMIT_EXCEEDED, SEARCH, backend=answer_nothing, extra='[limits]\noperation_timeout = "100ms"'),
    case("operations_in_flight", ber.BUSY, SEARCH, SEARCH, backend=answer_nothing, pipelined=True,
         extra="[limits]\noperations_in_flight = 1"),
    case("filter_depth", ber.BUSY, lambda number: ber.search(number, "dc=x", filter=ber.tlv(0xA2, ber.tlv(0xA2, ber.present("cn")))),
         extra="[limits]\nfilter_depth = 1"),
    case("throttled_name", UNWILLING, bind(), bind(), backend=answers(ber.INVALID_CREDENTIALS, ber.BIND_REQUEST),
         extra="[login_throttle]\nfailures_per_name = 1"),
    case("throttled_address", UNWILLING, bind("cn=ann"), bind("cn=bob"),
         backend=answers(ber.INVALID_CREDENTIALS, ber.BIND_REQUEST), extra="[login_throttle]\nfailures_per_address = 1"),
    # The protocol.
    case("protocol_error", ber.PROTOCOL_ERROR, lambda number: ber.sasl_bind(number, "GSSAPI", b"token"), SEARCH,
         backend=answers(ber.SASL_BIND_IN_PROGRESS, ber.BIND_REQUEST)),
    case("undecodable", ber.PROTOCOL_ERROR, lambda number: ber.message(number, ber.tlv(ber.SEARCH_REQUEST, b"\xff\xff"))),
    case("start_tls", ber.OPERATIONS_ERROR, lambda number: ber.extended(number, ber.START_TLS)),
    case("confidentiality_required", ber.CONFIDENTIALITY_REQUIRED, bind(), listener='protocol = "ldap"', tls=False),
    # Policy.
    case("read_only", UNWILLING, DELETE, **policy("read_only = true")),
    case("anonymous", INSUFFICIENT_ACCESS_RIGHTS, SEARCH, **policy("allow_anonymous = false")),
    case("anonymous", UNWILLING, bind("", ""), **policy("allow_anonymous = false")),
    case("unauthenticated", UNWILLING, bind("cn=ann", "")),
    case("operation", UNWILLING, DELETE, **policy('operations = ["bind", "search"]')),
    case("extended_operation", UNWILLING, lambda number: ber.extended(number, "1.2.3"), **policy("extended_operations = []")),
    case("sasl_mechanism", UNWILLING, lambda number: ber.sasl_bind(number, "PLAIN"), **policy('sasl_mechanisms = ["GSSAPI"]')),
    case("base_dn", UNWILLING, lambda number: ber.search(number, "dc=other"), **policy('base_dns = ["dc=ours"]')),
    case("control", UNWILLING, lambda number: ber.search(number, controls=[ber.control("1.2.3")]),
         **policy('denied_controls = ["1.2.3"]')),
    case("size_limit", UNWILLING, SEARCH, **policy("max_size_limit = 10")),
    case("bind_name", UNWILLING, bind("cn=ann"), **policy('denied_bind_names = ["cn=ann"]')),
]

# What is refused so ends the session instead: the client reads a notice of disconnection with this code. None inside a
# security layer that the client believes it has.
ENDED = {
    "request_size": (ber.PROTOCOL_ERROR, [lambda number: ber.search(number, "cn=" + "x" * 2000)],
                     "request_size", {"extra": '[limits]\nsearch_size = "1 KiB"\nrequest_size_anonymous = "1 KiB"'}),
    "sasl_layer": (None, [lambda number: ber.sasl_bind(number, "GSSAPI", b"token"), b"\x00\x00\x00\x01x"],
                   "policy", policy('sasl_layer = "refuse"')),
}
ELSEWHERE = {
    "buffer_memory": "test_attacks.py::test_buffers_of_all_sessions_have_a_bound",
    "draining": "test_shutdown.py::test_drain_ends_at_its_timeout",
}


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: f"{case.reason}-{case.code}")
def test_a_refusal_is_counted_and_told(start_proxy, start_backend, case):
    backend = start_backend(case.backend)
    address = f'{{ address = "{backend}", max_sessions = 1 }}' if case.seat_is_taken else backend
    proxy = start_proxy([address], listener=case.listener, pool=f'health.probe = "tcp"\n{case.pool}', extra=case.extra)
    if case.backend_is_gone:
        backend.stop_listening()
    with RawClient(proxy.endpoint(tls=case.tls)) as other, RawClient(proxy.endpoint(tls=case.tls)) as client:
        if case.seat_is_taken:
            other.ask(ber.search)
        *earlier, refused = case.requests
        for request in earlier:
            client.send(request)
            if not case.pipelined:
                result_of(client, request)
        client.send(refused)
        answer = result_of(client, refused)
        assert answer.result_code == case.code
        assert answer.diagnostic
        assert counted(proxy) == {case.reason: 1}
    told = [record for record in proxy.told(sessions=2) if "refusal" in record]
    assert [(record["refusal"], record["result_code"], record["message_id"]) for record in told] == [
        (case.reason, case.code, answer.message_id)
    ]


@pytest.mark.parametrize(("reason", "case"), ENDED.items(), ids=ENDED)
def test_a_refusal_that_ends_the_session_is_counted_and_told(start_proxy, start_backend, reason, case):
    code, requests, ended, keys = case
    proxy = start_proxy([start_backend()], pool='health.probe = "tcp"', **keys)
    *earlier, refused = (build(number) if callable(build) else build for number, build in enumerate(requests, 1))
    with RawClient(proxy.endpoint(), malformed=True) as client:
        for request in earlier:
            client.send(request)
            result_of(client, request)
        client.send(refused)
        notices = client.read_to_end()
        assert [notice.is_notice(code) and bool(notice.diagnostic) for notice in notices] == [True] * (code is not None)
        assert counted(proxy) == {reason: 1}
    assert [record["ended"] for record in proxy.told(sessions=1) if record["event"] == "session"] == [ended]


def test_every_reason_has_its_case():
    here = {case.reason for case in REFUSED} | ENDED.keys()
    assert here | ELSEWHERE.keys() == words("`reason` of a refusal")
    assert not here & ELSEWHERE.keys()
    for reason, where in ELSEWHERE.items():
        assert names_a_test(where, reason), where


def result_of(client, request):
    """The result of `request`, whatever comes before it."""
    wanted = ber.pdu(request).message_id
    return next(pdu for pdu in iter(client.read, None) if pdu.message_id == wanted and pdu.tag in RESULTS)


def counted(proxy):
    """Refusals by reason, those that happened."""
    return {dict(labels)["reason"]: count for labels, count in proxy.metrics().get("ldaps_proxy_refusals_total").items() if count}
