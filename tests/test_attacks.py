"""Under each attack honest clients' new logins and standing sessions go on, and memory stays within its bound. How much
slower they get is measured by bench/attacks: a wall clock proves nothing in a test suite."""

import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from support import attacks, ber
from support.backend import RESPONSE_TAG, answer_nothing
from support.clients import RawClient
from support.honest import Honest
from support.samba import BASE, USERS
from support.waiting import eventually

TCP = 'health.probe = "tcp"'
CONNECTIONS = "ldaps_proxy_connections_total"
MEGABYTE = 1 << 20
BUFFERS = 64 * MEGABYTE
LIMITS = f"""[limits]
buffer_memory = {BUFFERS}
connections_per_address = 6000
max_connections = 6200
"""
PER_CONNECTION = 40 * 1024
"""Octets that TLS and a session may take for a connection, above all buffers."""


@pytest.fixture
def directory():
    program = Path(__file__).parent / "support" / "directory.py"
    with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True) as process:
        yield process.stdout.readline().strip()
        process.kill()


@pytest.mark.deadline(180)
@pytest.mark.parametrize("name", attacks.ATTACKS)
def test_honest_clients_go_on(start_proxy, directory, name):
    attacks.allow_many_sockets()
    limits = LIMITS.replace("6000", "100") if name == "connection flood" else LIMITS
    proxy = start_proxy([directory], pool=TCP, trusted=["127.0.0.0/8"], listener=attacks.LISTENER.get(name, ""),
                        extra=limits + attacks.EXTRA.get(name, ""))
    with Honest(proxy.endpoint()) as honest:
        quiet, before = honest.rounds(20), resident(proxy)
        with attacks.against(proxy, name) as flood:
            attacked = honest.rounds(40)
            if flood:
                eventually(lambda: flood.count >= 20, "the attack was one")
            count, most = proxy.metrics().sum("ldaps_proxy_limit_used", limit="connections"), peak(proxy)
        print(f"{name}: quiet {quiet}; attacked {attacked}; {before >> 20} to {most >> 20} MiB, {count:.0f} connections")
        assert not attacked.failures
        assert most - before < BUFFERS + PER_CONNECTION * max(count, 100)
        proxy.wait_for("ldaps_proxy_sessions_active", 2)
    outcomes = proxy.metrics().get(CONNECTIONS)
    if name == "slowloris":
        assert count >= 5000
    if name == "connection flood":
        assert sum(value for labels, value in outcomes.items() if ("outcome", "address_limit") in labels) > 0
    proxy.wait_for("ldaps_proxy_backend_sessions", 0)


@pytest.mark.deadline(120)
def test_buffers_of_all_sessions_have_a_bound(start_proxy, start_backend):
    """Twenty clients hold 5 MB of an add each that they don't finish; a bound of 32 MiB ends those above it with busy."""
    bound = 32 * MEGABYTE
    proxy = start_proxy([start_backend()], pool=TCP, extra=f"[limits]\nbuffer_memory = {bound}")
    upload = ber.add(2, "cn=x", {"a": [b"v" * 8_000_000]})[:5_000_000]
    ended = []

    def hold(client):
        try:
            client.send(upload)
            ended.extend(pdu for pdu in client.read_to_end() if pdu.message_id == 0)
        except (OSError, AssertionError):  # told while it was still sending
            ended.append(None)

    with RawClient(proxy.endpoint()) as honest:
        clients = [RawClient(proxy.endpoint()) for _ in range(20)]
        for client in clients:
            assert client.ask(ber.bind, "cn=x", "secret")[-1].result_code == ber.SUCCESS
        before = resident(proxy)
        threads = [threading.Thread(target=hold, args=(client,), daemon=True) for client in clients]
        for thread in threads:
            thread.start()
        refusals = "ldaps_proxy_refusals_total"
        eventually(lambda: proxy.metrics().sum(refusals, reason="buffer_memory") >= 5, "five clients are told")
        used = proxy.metrics().sum("ldaps_proxy_limit_used", limit="buffer_memory")
        assert honest.ask(ber.search)[-1].result_code == ber.SUCCESS, "small sessions go on"
        # What one read adds to a session before it is asked for its account.
        assert used <= bound + len(clients) * 64 * 1024
        # A buffer that grows is held twice while it is copied.
        assert peak(proxy) - before < 2 * bound
        for client in clients:
            client.socket.settimeout(0)  # wakes the thread that uses it
            client.close()
        for thread in threads:
            thread.join(30)
    assert any(pdu is not None and pdu.is_notice(ber.BUSY) and "limits.buffer_memory" in pdu.diagnostic for pdu in ended), ended
    eventually(lambda: proxy.metrics().sum("ldaps_proxy_limit_used", limit="buffer_memory") == 0, "all is given back")
    metrics = proxy.metrics()
    assert metrics.sum("ldaps_proxy_sessions_ended_total", reason="buffer_memory") == metrics.sum(refusals, reason="buffer_memory")


def test_truncated_tls_executes_nothing(start_proxy, start_backend):
    """A FIN without close_notify inside a request: half a delete must not be taken for a delete."""
    backend = start_backend()
    proxy = start_proxy([backend], pool=TCP)
    with RawClient(proxy.endpoint()) as client:
        client.ask(ber.search)
        client.send(ber.delete(2, "cn=victim,dc=x")[:-5])
        socket.socket.shutdown(client.socket, socket.SHUT_WR)
        assert client.ended()
    assert backend.session().closed.wait(10)
    assert backend.session().of(ber.DELETE_REQUEST) == []
    assert proxy.metrics().sum("ldaps_proxy_sessions_ended_total", reason="client_lost") == 1


def test_renegotiation_is_refused(start_proxy, start_backend):
    """TLS 1.2. The client learns of it, at the latest, when the proxy next has something to say: here that its time is up."""
    proxy = start_proxy([start_backend()], pool=TCP, extra='[limits]\nfirst_request_timeout = "1s"')
    endpoint = proxy.endpoint()
    command = ["openssl", "s_client", "-connect", f"{endpoint.host}:{endpoint.port}", "-tls1_2", "-CAfile", str(proxy.ca)]
    done = subprocess.run(command, input="R\n", capture_output=True, text=True, timeout=30, check=False)
    assert "RENEGOTIATING" in done.stderr
    assert "no renegotiation" in done.stderr, done.stderr
    with RawClient(endpoint) as client:
        assert client.ask(ber.search)[-1].result_code == ber.SUCCESS


SPOOFED = {
    "from a peer that may send none, v1": ("127.0.0.1", attacks.proxy_v1("198.51.100.7")),
    "from a peer that may send none, v2": ("127.0.0.1", attacks.proxy_v2("198.51.100.7")),
    "by an untrusted client of its own": ("127.0.0.2", attacks.proxy_v2("203.0.113.9")),
    "v1 by an untrusted client": ("127.0.0.2", attacks.proxy_v1("203.0.113.9")),
    "two headers, the second one trusted": ("127.0.0.2", attacks.proxy_v2("203.0.113.9") + attacks.proxy_v2("198.51.100.7")),
    "two headers, the first one trusted": ("127.0.0.2", attacks.proxy_v2("198.51.100.7") + attacks.proxy_v2("198.51.100.7")),
    "LOCAL, of a balancer that isn't trusted itself": ("127.0.0.2", b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"),
    "a name for an address": ("127.0.0.2", b"PROXY TCP4 localhost 127.0.0.1 1 2\r\n"),
    "v1 without an end": ("127.0.0.2", b"PROXY TCP4 " + b"1" * 200),
    "v2 that announces 64 KiB": ("127.0.0.2", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff" + bytes(66000)),
}


@pytest.mark.parametrize(("source", "header"), SPOOFED.values(), ids=SPOOFED.keys())
def test_a_spoofed_proxy_header_lets_nobody_in(start_proxy, start_backend, source, header):
    """Headers are believed from `proxy_protocol_from` alone, and then the client they name must be trusted."""
    backend = start_backend()
    proxy = start_proxy([backend], pool=TCP, trusted=["198.51.100.0/24", "127.0.0.1/32"],
                        listener='proxy_protocol_from = ["127.0.0.2/32"]')
    endpoint = proxy.endpoint()
    with socket.create_connection((endpoint.host, endpoint.port), 20, source_address=(source, 0)) as tcp:
        context = ssl.create_default_context(cafile=str(proxy.ca))
        with pytest.raises(OSError):
            tcp.sendall(header)
            context.wrap_socket(tcp, server_hostname="127.0.0.1").sendall(ber.search(1))
    assert backend.sessions() == []
    assert proxy.metrics().sum(CONNECTIONS, outcome="accepted") == 0
    with RawClient(endpoint) as client:
        assert client.ask(ber.search)[-1].result_code == ber.SUCCESS, "honest clients go on"


OID = ber.START_TLS.encode()
DISGUISES = {
    "as it is": b"\x80\x16" + OID,
    "with a NUL": b"\x80\x17" + OID + b"\0",
    "with a NUL and more": b"\x80\x19" + OID + b"\0.1",
    "in a longer length": b"\x80\x84\0\0\0\x16" + OID,
    "behind an indefinite length": b"\x80\x80\x16" + OID,
    "in five length octets": b"\x80\x85\0\0\0\0\x16" + OID,
    "in eight length octets": b"\x80\x88\0\0\0\0\0\0\0\x16" + OID,
}
"""Requests that Samba takes for StartTLS, which crashes its worker."""


@pytest.mark.parametrize("content", DISGUISES.values(), ids=DISGUISES.keys())
def test_start_tls_in_disguise_reaches_no_domain_controller(start_proxy, start_backend, content):
    backend = start_backend()
    proxy = start_proxy([backend], pool=TCP)
    with RawClient(proxy.endpoint()) as client:
        assert client.ask(ber.search)[-1].result_code == ber.SUCCESS
        client.send(ber.message(2, b"\x77" + ber.length(len(content)) + content))
        assert client.read_result(2)[-1].result_code in (ber.OPERATIONS_ERROR, ber.PROTOCOL_ERROR)
        client.send(ber.search(3))
        assert client.read_result(3)[-1].result_code == ber.SUCCESS
    assert backend.session().of(ber.EXTENDED_REQUEST) == []


def test_samba_itself_takes_the_disguises(dc):
    """Why they matter; if a later Samba refuses them, so much the better, and this test may go."""
    host, _, port = dc.backend.rpartition(":")
    taken = []
    for name, content in DISGUISES.items():
        with socket.create_connection((host, int(port)), 20) as tcp:
            tcp.sendall(ber.message(1, b"\x77" + ber.length(len(content)) + content))
            answer = ber.pdu(tcp.recv(4096))
            if answer.result_code == ber.SUCCESS:
                taken.append(name)
    assert taken


@pytest.fixture
def backend(start_backend):
    return start_backend()


@pytest.fixture
def client(start_proxy, backend):
    with RawClient(start_proxy([backend], pool=TCP).endpoint()) as client:
        yield client


def test_a_refused_bind_leaves_the_session_anonymous(client, backend):
    """RFC 4513 §4: a bind leaves the session anonymous from its receipt until it succeeds, whoever refuses it."""
    client.ask(ber.bind, "cn=ann", "secret")
    assert client.ask(ber.bind, "cn=bob", "")[-1].result_code == ber.UNWILLING_TO_PERFORM
    assert client.ask(ber.search, "dc=after")[-1].result_code == ber.SUCCESS
    first, second = backend.session(0), backend.session(1)
    assert [pdu.tag for pdu in first.pdus] == [ber.BIND_REQUEST], "nothing more under the old identity"
    assert [pdu.tag for pdu in second.pdus] == [ber.SEARCH_REQUEST], "and no bind is replayed"
    assert first.closed.wait(10)


def test_a_refused_bind_amid_pipelined_requests(client, backend):
    client.ask(ber.bind, "cn=ann", "secret")
    client.send(ber.bind(10, "cn=bob", ""), ber.delete(11, "cn=x"), ber.bind(12, "cn=ann", "secret"), ber.delete(13, "cn=y"))
    for number, code in ((10, ber.UNWILLING_TO_PERFORM), (11, 0), (12, 0), (13, 0)):
        assert client.read_result(number)[-1].result_code == code
    assert [pdu.message_id for pdu in backend.session(1).pdus] == [11, 12, 13]


def test_a_refused_bind_in_the_middle_of_a_sasl_bind(client, backend):
    """The half that the backend knows must not be completed by a bind of somebody else."""
    backend.answer = lambda connection, pdu: connection.send(ber.result(
        pdu.message_id, RESPONSE_TAG[pdu.tag], ber.SASL_BIND_IN_PROGRESS if pdu.tag == ber.BIND_REQUEST else 0))
    assert client.ask(ber.sasl_bind, "GSS-SPNEGO", b"token")[-1].result_code == ber.SASL_BIND_IN_PROGRESS
    assert client.ask(ber.bind, "cn=bob", "")[-1].result_code == ber.UNWILLING_TO_PERFORM
    assert client.ask(ber.search)[-1].result_code == ber.SUCCESS
    assert [pdu.tag for pdu in backend.session(1).pdus] == [ber.SEARCH_REQUEST]


def test_a_refused_bind_with_operations_in_flight_ends_the_session(client, backend):
    """RFC 4511 §4.2.1: they complete or are abandoned first. What they were asked as can't be kept."""
    client.ask(ber.bind, "cn=ann", "secret")
    backend.answer = answer_nothing
    client.send(ber.search(7), ber.delete(8, "cn=x"))
    backend.session().wait_for(ber.DELETE_REQUEST)
    client.send(ber.bind(9, "cn=bob", ""))
    *results, notice = client.read_to_end()
    assert [(pdu.message_id, pdu.result_code) for pdu in results] == [(7, 52), (8, 52), (9, 53)]
    assert notice.is_notice(ber.UNWILLING_TO_PERFORM)


def test_a_refused_bind_of_an_anonymous_session_keeps_its_upstream(client, backend):
    client.ask(ber.search)
    assert client.ask(ber.bind, "cn=bob", "")[-1].result_code == ber.UNWILLING_TO_PERFORM
    client.ask(ber.search)
    assert len(backend.sessions()) == 1


def test_a_bind_refused_by_the_throttle(start_proxy, backend):
    def answer(connection, pdu):
        wrong = pdu.tag == ber.BIND_REQUEST and b"wrong" in pdu.raw
        connection.send(ber.result(pdu.message_id, RESPONSE_TAG[pdu.tag], 49 if wrong else 0))

    backend.answer = answer
    proxy = start_proxy([backend], pool=TCP, extra="[login_throttle]\nfailures_per_name = 1")
    with RawClient(proxy.endpoint()) as client:
        assert client.ask(ber.bind, "bob", "wrong")[-1].result_code == 49
        assert client.ask(ber.bind, "ann", "secret")[-1].result_code == 0
        assert client.ask(ber.bind, "bob", "wrong")[-1].result_code == 53
        assert client.ask(ber.search)[-1].result_code == 0
    assert [pdu.tag for pdu in backend.session(1).pdus] == [ber.SEARCH_REQUEST]


def test_a_refused_bind_with_samba(start_proxy, dc):
    proxy = start_proxy([dc.backend])
    with RawClient(proxy.endpoint()) as client:
        client.bind(USERS[0])
        assert client.ask(ber.search, BASE)[-1].result_code == ber.SUCCESS
        assert client.ask(ber.bind, USERS[1].name, "")[-1].result_code == ber.UNWILLING_TO_PERFORM
        assert client.ask(ber.search, BASE)[-1].result_code == ber.OPERATIONS_ERROR, "as to anybody anonymous"


def test_a_password_without_a_name_is_no_login(start_proxy, start_backend):
    """Samba takes it for anonymous; it must not get an authenticated client's limits."""
    proxy = start_proxy([start_backend()], pool=TCP)
    with RawClient(proxy.endpoint()) as client:
        assert client.ask(ber.bind, "", "secret")[-1].result_code == ber.SUCCESS
        client.send(ber.add(9, "cn=x", {"a": [b"v" * 300_000]}))
        assert client.read_to_end()[-1].is_notice(ber.PROTOCOL_ERROR)


def test_a_filter_nested_too_deeply_is_refused_in_every_disguise(start_proxy, start_backend):
    backend = start_backend()
    proxy = start_proxy([backend], pool=TCP, extra="[limits]\nfilter_depth = 3")
    filters = ber.present("a")
    for _ in range(4):
        filters = ber.tlv(0xA2, filters)
    disguised = b"\xa2\x80" + filters[1:]
    with RawClient(proxy.endpoint()) as client:
        answer = client.ask(ber.search, filter=filters)[-1]
        assert (answer.result_code, "limits.filter_depth" in answer.diagnostic) == (ber.BUSY, True)
        assert client.ask(ber.search, filter=disguised)[-1].result_code == ber.PROTOCOL_ERROR
        assert client.ask(ber.search, filter=filters[2:])[-1].result_code == ber.SUCCESS
    assert proxy.metrics().sum("ldaps_proxy_refusals_total", reason="filter_depth") == 1
    assert len(backend.session().of(ber.SEARCH_REQUEST)) == 1


def resident(proxy):
    """Resident octets now; `peak` counts from here."""
    Path(f"/proc/{proxy.process.pid}/clear_refs").write_text("5")
    return _status(proxy, "VmRSS")


def peak(proxy):
    return _status(proxy, "VmHWM")


def _status(proxy, key):
    status = Path(f"/proc/{proxy.process.pid}/status").read_text()
    return int(status.split(f"{key}:")[1].split()[0]) * 1024
