"""What an operator sees: /metrics, /healthz, /readyz."""

import json
import re
import socket

import pytest

from support import ber
from support.backend import answer_nothing
from support.clients import RawClient, search_after_waiting
from support.process import run
from support.proxy import BINARY, config
from support.waiting import eventually

FIXED_SERIES = {
    "ldaps_proxy_sessions_active": {},
    "ldaps_proxy_connections_total": {"listener": "ldaps", "outcome": "accepted"},
    "ldaps_proxy_operations_total": {"operation": "search", "result": "success"},
    "ldaps_proxy_operation_duration_seconds_count": {"operation": "search"},
    "ldaps_proxy_backend_up": {"pool": "directory"},
    "ldaps_proxy_backend_sessions": {"pool": "directory"},
    "ldaps_proxy_backend_operations_in_flight": {"pool": "directory"},
    "ldaps_proxy_failovers_total": {"kind": "connect"},
    "ldaps_proxy_bind_failures_total": {"sub_code": "52e"},
    "ldaps_proxy_certificate_expiry_timestamp_seconds": {},
}
"""contract.md: these exist from the start. Each with labels that one of its series has."""


@pytest.fixture
def backend(start_backend):
    return start_backend()


@pytest.fixture
def proxy(start_proxy, backend):
    return start_proxy([backend], pool='health.probe = "tcp"')


@pytest.mark.parametrize(("name", "labels"), FIXED_SERIES.items(), ids=FIXED_SERIES)
def test_fixed_series_exist_from_the_start(proxy, backend, name, labels):
    series = proxy.metrics().get(name, **labels)
    assert series
    if name.startswith("ldaps_proxy_backend_"):
        assert proxy.metrics().get(name, backend=str(backend))
    if "expiry" in name:
        assert all(value > 1.7e9 for value in series.values())
    elif name != "ldaps_proxy_backend_up":
        assert set(series.values()) == {0}


def test_every_untrusted_outcome_and_limit_starts_at_zero(proxy):
    outcomes = {dict(labels)["outcome"] for labels in proxy.metrics().get("ldaps_proxy_connections_total")}
    assert {"accepted", "untrusted", "limit", "handshake_failed"} <= outcomes


def test_operations_are_counted_by_kind_and_result(proxy, backend):
    def answer(connection, pdu):
        code = {ber.SEARCH_REQUEST: ber.NO_SUCH_OBJECT, ber.BIND_REQUEST: ber.INVALID_CREDENTIALS}.get(pdu.tag, 4711)
        tag = {ber.SEARCH_REQUEST: ber.SEARCH_DONE, ber.BIND_REQUEST: ber.BIND_RESPONSE}.get(pdu.tag, ber.DELETE_RESPONSE)
        connection.send(ber.result(pdu.message_id, tag, code, "80090308: LdapErr: DSID-0C0903A9, comment: AcceptSecurityContext error, data 775, v1db1"))

    backend.answer = answer
    with RawClient(proxy.endpoint()) as client:
        client.ask(ber.search)
        client.ask(ber.search)
        client.ask(ber.bind, "cn=x", "y")
        client.ask(ber.delete, "cn=x")
        metrics = proxy.metrics()
    operations = "ldaps_proxy_operations_total"
    assert metrics.sum(operations, operation="search", result="noSuchObject") == 2
    assert metrics.sum(operations, operation="bind", result="invalidCredentials") == 1
    assert metrics.sum(operations, operation="delete", result="other") == 1
    assert metrics.sum("ldaps_proxy_bind_failures_total", sub_code="775") == 1
    assert metrics.sum("ldaps_proxy_operation_duration_seconds_count", operation="search", backend=str(backend)) == 2


def test_requests_that_are_forwarded_unread_are_counted(proxy, backend):
    with RawClient(proxy.endpoint()) as client:
        client.ask(ber.search)
        client.ask(lambda number: ber.message(number, ber.tlv(ber.MODIFY_REQUEST)))
    assert backend.session().of(ber.MODIFY_REQUEST), "the backend judges it"
    assert proxy.metrics().sum("ldaps_proxy_undecoded_requests_total") == 1


def test_what_failed_lately_is_told_with_its_reason(start_proxy, backend):
    """A refused bind, a refused operation, a client that speaks no LDAP, a lost upstream, a dead backend, a bad reload."""
    proxy = start_proxy([backend], pool='health.probe = "tcp"\nconnect_budget = "200ms"', listener="policy.read_only = true")

    def answer(connection, pdu):
        if pdu.tag == ber.BIND_REQUEST:
            connection.send(ber.result(pdu.message_id, ber.BIND_RESPONSE, ber.INVALID_CREDENTIALS, ", data 775, v1db1"))

    backend.answer = answer
    with RawClient(proxy.endpoint()) as client:
        client.ask(ber.bind, "cn=ann", "s3cret")
        client.ask(ber.bind, "cn=ann", "s3cret")
        client.ask(ber.delete, "cn=x")
        client.send(ber.search(client.next_id()))
        backend.session().wait_for(ber.SEARCH_REQUEST)
        backend.die()
        client.read_result(4)
    proxy.wait_for("ldaps_proxy_backend_up", 0)
    with RawClient(proxy.endpoint()) as client:
        client.send(b"GET / HTTP/1.1\r\n\r\n")
        client.ended()
    with pytest.raises(OSError):
        RawClient(proxy.endpoint(), source="127.0.0.9")
    proxy.config_file.write_text("nonsense = true")
    proxy.reload()
    proxy.wait_for("ldaps_proxy_reloads_total", 1, result="rejected")
    _, body = proxy.http("/api/v1/status")
    failures = {failure["reason"]: failure for failure in json.loads(body)["recent_failures"]}
    assert {reason: (failures[reason]["subject"], failures[reason]["count"]) for reason in failures} == {
        "bind_refused": ("127.0.0.1", 2),
        "read_only": ("127.0.0.1", 1),
        "upstream_lost": (str(backend), 1),
        "no_backend": ("directory", 1),
        "backend_down": (str(backend), 1),
        "protocol_error": ("127.0.0.1", 1),
        "untrusted": ("127.0.0.9", 1),
        "reload_rejected": ("configuration", 1),
    }
    assert "cn=ann" in failures["bind_refused"]["detail"] and "775" in failures["bind_refused"]["detail"]
    assert str(backend) in failures["no_backend"]["detail"] and "nonsense" in failures["reload_rejected"]["detail"]
    assert "s3cret" not in body


def test_what_passes_is_counted_to_the_octet(start_proxy, backend):
    """In cleartext the client's octets are what the proxy reads: requests and responses, as they are, on both sides."""
    proxy = start_proxy([backend], pool='health.probe = "tcp"', listener='protocol = "ldap"')
    requests = [ber.search(1, "dc=x"), ber.delete(2, "cn=x"), ber.unbind(3)]
    with RawClient(proxy.endpoint(tls=False)) as client:
        responses = []
        for request in requests[:2]:
            client.send(request)
            responses += [pdu.raw for pdu in client.read_result(ber.pdu(request).message_id)]
        client.send(requests[2])
        assert client.ended()
    *operations, session = proxy.told(sessions=1)
    sent, received = sum(map(len, requests)), sum(map(len, responses))
    assert [record["bytes_in"] for record in operations] == list(map(len, requests))
    assert [record["bytes_out"] for record in operations] == [len(b"".join(responses[:2])), len(responses[2]), 0]
    assert (session["bytes_in"], session["bytes_out"]) == (sent, received)
    metrics = proxy.metrics()
    counted = {
        name: metrics.sum(f"ldaps_proxy_{name}_bytes_total")
        for name in ("listener_received", "backend_sent", "backend_received", "listener_sent")
    }
    assert counted == {
        "listener_received": sent, "backend_sent": sent, "backend_received": received, "listener_sent": received,
    }


def test_how_long_handshakes_and_the_wait_for_a_backend_take_is_measured(start_proxy, backend):
    proxy = start_proxy([f'{{ address = "{backend}", max_sessions = 1 }}'], pool='health.probe = "tcp"\nqueue = 1')
    with RawClient(proxy.endpoint()) as first, RawClient(proxy.endpoint()) as second:
        first.ask(ber.search)
        search_after_waiting(proxy, first, second)
        metrics = proxy.metrics()
    assert metrics.sum("ldaps_proxy_handshake_duration_seconds_count", listener="ldaps") == 2
    assert metrics.sum("ldaps_proxy_queue_duration_seconds_count", pool="directory") == 1
    assert metrics.sum("ldaps_proxy_backend_connect_duration_seconds_count", backend=str(backend)) == 2
    for name in ("handshake", "queue", "backend_connect"):
        assert metrics.sum(f"ldaps_proxy_{name}_duration_seconds_sum") > 0, name


def test_operations_in_flight_rise_and_fall(proxy, backend):
    backend.answer = answer_nothing
    with RawClient(proxy.endpoint()) as client:
        client.send(ber.search(1), ber.search(2))
        proxy.wait_for("ldaps_proxy_backend_operations_in_flight", 2)
        backend.session().wait_for(ber.SEARCH_REQUEST, 2)
        backend.session().send(ber.result(1, ber.SEARCH_DONE))
        client.read_result(1)
        proxy.wait_for("ldaps_proxy_backend_operations_in_flight", 1)
        backend.session().send(ber.result(2, ber.SEARCH_DONE))
    proxy.wait_for("ldaps_proxy_backend_operations_in_flight", 0)


def test_metrics_are_well_formed(proxy):
    """The Prometheus text format: a HELP and a TYPE for each family, no family twice."""
    _, text = proxy.http("/metrics")
    families = re.findall(r"^# TYPE (\S+) (counter|gauge|histogram|summary)$", text, re.MULTILINE)
    assert len(families) == len(dict(families)) > 10
    assert "summary" not in dict(families).values()
    described = set(re.findall(r"^# HELP (\S+) \S", text, re.MULTILINE))
    assert described == dict(families).keys()


def test_which_build_it_is(proxy):
    [(labels, value)] = proxy.metrics().get("ldaps_proxy_build_info").items()
    version = run([BINARY, "--version"]).stdout.split()[1]
    assert (value, dict(labels)["version"]) == (1, version)
    assert "AWS-LC" in dict(labels)["crypto"]


def test_readiness_follows_the_backends(start_proxy, backend):
    proxy = start_proxy([backend], pool='health.probe = "tcp"\nhealth.interval = "100ms"')
    backend.stop_listening()
    proxy.wait_for("ldaps_proxy_backend_up", 0)
    assert proxy.http("/readyz")[0] == 503
    assert proxy.http("/healthz")[0] == 200
    backend.listen_again()
    proxy.wait_for("ldaps_proxy_backend_up", 1)
    assert proxy.http("/readyz")[0] == 200


def test_a_copy_is_ready_while_one_of_its_pools_is(start_proxy, certificate, backend, start_backend):
    """A regression test: one pool's outage, even one's that no listener uses, took every copy away from the others' clients."""
    dead, text = start_backend(), config(certificate, [backend], pool='health.probe = "tcp"')
    dead.close()
    pools = [f"""[pools.{name}]\nbackends = ["{dead}"]\nhealth.probe = "tcp"\nhealth.interval = "100ms"\n""" for name in ("other", "unused")]
    listener = """[[listener]]\nname = "other"\naddress = "127.0.0.1:0"\nprotocol = "ldap"\npool = "other"\ntrusted_networks = ["127.0.0.0/8"]\n"""
    proxy = start_proxy(text="\n".join([text, listener, *pools]))
    proxy.wait_for("ldaps_proxy_backend_up", 0, pool="other")
    proxy.wait_for("ldaps_proxy_backend_up", 0, pool="unused")
    assert proxy.http("/readyz")[0] == 200
    backend.close()
    eventually(lambda: proxy.http("/readyz")[0] == 503, "no pool is left")
    assert "unused" not in proxy.http("/readyz")[1]


def test_the_health_address_serves_nothing_but_health(start_proxy, backend):
    proxy = start_proxy([backend], pool='health.probe = "tcp"', extra='[health]\naddress = "127.0.0.1:0"')
    host, port = proxy.health
    for path, status in {"/healthz": 200, "/readyz": 200, "/metrics": 404, "/": 404, "/api/v1/status": 404}.items():
        assert proxy.http(path, address=(host, port))[0] == status, path


V2 = b"\r\n\r\n\0\r\nQUIT\n"
PROXY_HEADERS = {
    "v2": V2 + b"\x21\x11\0\x0c" + bytes([192, 0, 2, 1, 10, 0, 0, 1, 0x03, 0xE8, 0x1F, 0x90]),
    "v2 of the balancer's own": V2 + b"\x20\0\0\0",
    "v1": b"PROXY TCP4 192.0.2.1 10.0.0.1 1000 8080\r\n",
    "none": b"",
}


@pytest.mark.parametrize("header", PROXY_HEADERS.values(), ids=PROXY_HEADERS)
def test_the_health_address_takes_a_proxy_header(start_proxy, backend, header):
    """A Network Load Balancer whose target group has PROXY protocol on sends the header with its health checks too: hyper
    took it for a bad request, and no target ever became healthy."""
    proxy = start_proxy([backend], pool='health.probe = "tcp"', extra='[health]\naddress = "127.0.0.1:0"')
    eventually(lambda: proxy.http("/readyz")[0] == 200, "it is ready")
    request = header + b"GET /readyz HTTP/1.1\r\nHost: balancer\r\n\r\n"
    for pieces in ([request], [bytes([octet]) for octet in request]):
        assert said(proxy.health, pieces).startswith(b"HTTP/1.1 200 "), len(pieces)


@pytest.mark.parametrize("header", [V2 + b"\x31\x11\0\0", b"PROXY TCP4 nonsense\r\n"], ids=["v2", "v1"])
def test_the_health_address_closes_after_a_malformed_proxy_header(start_proxy, backend, header):
    proxy = start_proxy([backend], pool='health.probe = "tcp"', extra='[health]\naddress = "127.0.0.1:0"')
    assert said(proxy.health, [header + b"GET /healthz HTTP/1.1\r\nHost: balancer\r\n\r\n"]) == b""
    assert proxy.http("/healthz", address=proxy.health)[0] == 200


def said(address, pieces):
    """All that is answered to these pieces, each in a segment of its own, until the other side closes or resets."""
    with socket.create_connection(address, timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            connection.sendall(piece)
        answer = b""
        try:
            while received := connection.recv(4096):
                answer += received
        except ConnectionResetError:
            pass
        return answer


def test_unknown_paths_and_methods(proxy):
    assert proxy.http("/nonsense")[0] == 404
    assert proxy.http("/api/v1/drain", method="POST")[0] in (401, 403), "TCP is read-only without a token"
