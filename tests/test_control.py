"""Steering a running proxy: the commands and the API behind them."""

import http.client
import json

import pytest

from support import ber
from support.clients import RawClient
from support.process import Process, run
from support.proxy import BINARY
from support.waiting import eventually

TOKEN = "a-token-of-this-test"


@pytest.fixture
def pair(start_backend):
    return [start_backend(), start_backend()]


@pytest.fixture
def socket(tmp_path):
    return tmp_path / "admin.sock"


@pytest.fixture
def token(tmp_path):
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    return path


@pytest.fixture
def proxy(start_proxy, pair, socket):
    return start_proxy(pair, pool='health.probe = "tcp"', extra=f'socket = "{socket}"')


@pytest.fixture
def command(socket):
    """Runs a command against the proxy's socket; `(exit code, standard output, standard error)`."""

    def command(*words, admin=f"unix:{socket}", **options):
        done = run([BINARY, *words, "--admin", admin], check=False, **options)
        return done.returncode, done.stdout, done.stderr

    return command


def test_status_and_sessions_show_who_is_there(proxy, pair, command):
    with RawClient(proxy.endpoint()) as client:
        client.ask(ber.bind, "cn=\x1b[2Japp,dc=x", "secret")
        code, status, _ = command("status")
        assert code == 0 and "ready" in status.splitlines()[0] and all(str(backend) in status for backend in pair)
        code, sessions, _ = command("sessions")
        assert code == 0 and r"cn=\u{1b}[2Japp,dc=x" in sessions, "a client can't move the operator's cursor"
        assert "secret" not in sessions + status
        [session] = json.loads(command("sessions", "--json")[1])["sessions"]
        assert (session["operations"], session["in_flight"]) == (1, 0)
        assert session["received"] > len("cn=app") and session["sent"] > 0
        for backend in pair:
            backend.answer = lambda connection, pdu: None
        client.send(ber.search(2))
        eventually(lambda: json.loads(command("sessions", "--json")[1])["sessions"][0]["in_flight"] == 1, "it is shown")
        status = json.loads(command("status", "--json")[1])
        assert sum(backend["operations_in_flight"] for backend in status["backends"]) == 1
    code, status, _ = command("status", "--json")
    assert code == 0 and json.loads(status)["backends"][0]["name"] == str(pair[0])


def test_the_status_that_is_watched_is_shown_again_when_it_changes(proxy, pair, socket, command, tmp_path):
    clear = "\x1b[H\x1b[2J"
    watch = Process([BINARY, "status", "--watch", "--admin", f"unix:{socket}"], directory=tmp_path)
    try:
        eventually(lambda: watch.stdout().endswith("\n"), "the first table is shown")
        assert command("drain", str(pair[0]))[0] == 0
        eventually(lambda: "draining" in watch.stdout(), "a later one shows the drained backend")
    finally:
        watch.close()
    nothing, first, *_, last = watch.stdout().split(clear)
    assert nothing == ""
    for table in (first, last):
        assert table.startswith("ldaps-proxy ") and all(str(backend) in table for backend in pair)
    assert "draining" not in first
    assert [str(pair[0]) in line for line in last.splitlines() if "draining" in line] == [True]


def test_drain_waits_until_the_last_session_has_left(proxy, pair, command, socket, tmp_path):
    with RawClient(proxy.endpoint()) as client:
        for backend in pair:
            backend.answer = lambda connection, pdu: None
        client.send(ber.search(1))
        used = eventually(lambda: next((backend for backend in pair if backend.sessions()), None), "a backend serves")
        drain = Process([BINARY, "drain", str(used), "--admin", f"unix:{socket}"], directory=tmp_path)
        try:
            eventually(lambda: "1 sessions" in drain.stdout(), "it shows what it waits for")
            assert drain.returncode() is None, "the operation in flight keeps it waiting"
            used.session().send(ber.result(1, ber.SEARCH_DONE))
            assert client.read_result(1)[-1].result_code == ber.SUCCESS, "draining loses nothing"
            assert drain.wait() == 0
            assert "0 sessions" in drain.stdout().splitlines()[-1]
        finally:
            drain.close()
    code, enabled, _ = command("enable", str(used))
    assert code == 0 and "draining" not in enabled


def test_a_drained_backend_gets_no_new_session(proxy, pair, command):
    assert command("drain", str(pair[0]))[0] == 0
    for _ in range(4):
        with RawClient(proxy.endpoint()) as client:
            client.ask(ber.search)
    assert not pair[0].sessions() and len(pair[1].sessions()) == 4


def test_drain_gives_up_waiting_when_told_and_leaves_it_drained(proxy, pair, command):
    with RawClient(proxy.endpoint()) as client:
        for backend in pair:
            backend.answer = lambda connection, pdu: None
        client.send(ber.search(1))
        used = eventually(lambda: next((backend for backend in pair if backend.sessions()), None), "a backend serves")
        code, _, error = command("drain", str(used), "--timeout", "0")
        assert code == 1 and "stays drained" in error
        assert f"{used}" in command("status")[1] and "draining" in command("status")[1]


def test_an_unknown_backend_is_an_error_that_names_the_known(proxy, pair, command):
    code, _, error = command("drain", "192.0.2.1:389")
    assert code == 1 and "192.0.2.1:389" in error and str(pair[0]) in error


def test_kill_ends_one_session_and_no_other(proxy, command):
    with RawClient(proxy.endpoint()) as doomed, RawClient(proxy.endpoint()) as other:
        doomed.ask(ber.bind, "cn=doomed", "x")
        other.ask(ber.bind, "cn=other", "x")
        number = next(line.split()[0] for line in command("sessions")[1].splitlines() if "cn=doomed" in line)
        assert command("kill", number)[0] == 0
        assert doomed.ended_or_notice()
        other.ask(ber.search)
    assert command("kill", "999999")[0] == 1


def test_the_log_level_changes_while_it_runs(proxy, command):
    code, _, error = command("log-level", "loud")
    assert code == 1 and "loud" in error
    assert "DEBUG" not in proxy.log()
    assert command("log-level", "debug")[0] == 0
    with RawClient(proxy.endpoint()) as client:
        client.ask(ber.search)
    run([BINARY, "healthcheck", "--admin", "http://{}:{}".format(*proxy.admin)])
    eventually(lambda: "DEBUG" in proxy.log(), "debug lines appear")


def test_healthcheck_follows_readiness(start_proxy, start_backend, socket, command):
    backend = start_backend()
    proxy = start_proxy([backend], pool='health.probe = "tcp"\nhealth.interval = "100ms"', extra=f'socket = "{socket}"')
    assert command("healthcheck")[0] == 0
    backend.stop_listening()
    proxy.wait_for("ldaps_proxy_backend_up", 0)
    code, _, error = command("healthcheck")
    assert code == 1 and "directory" in error, "it says which pool"
    assert command("healthcheck", "--alive")[0] == 0
    proxy.terminate()
    proxy.wait()
    assert command("healthcheck", "--alive")[0] == 1
    assert not socket.exists(), "the socket goes with the proxy"


def test_a_bad_reload_says_what_is_wrong_and_changes_nothing(proxy, command):
    good = proxy.config_file.read_text()
    proxy.config_file.write_text(good + "\n[limits]\nmax_conections = 5\n")
    code, _, error = command("reload")
    assert code == 1 and "max_conections" in error and "max_connections" in error
    metrics = proxy.metrics()
    assert metrics.sum("ldaps_proxy_reloads_total", result="rejected") == 1
    assert metrics.sum("ldaps_proxy_last_reload_successful") == 0
    proxy.config_file.write_text(good + "\n[limits]\nmax_connections = 5\n")
    code, changes, _ = command("reload")
    assert code == 0 and "limits" in changes
    eventually(lambda: proxy.metrics().sum("ldaps_proxy_limit", limit="connections") == 5, "the limit is in force")


def test_over_tcp_changes_need_the_token(start_proxy, pair, token, command):
    proxy = start_proxy(pair, pool='health.probe = "tcp"', extra=f'token_file = "{token}"')
    admin = "http://{}:{}".format(*proxy.admin)
    code, _, error = command("drain", str(pair[0]), admin=admin)
    assert code == 1 and "Bearer" in error
    assert command("drain", str(pair[0]), "--token-file", token, admin=admin)[0] == 0
    for header, value in {"Origin": "http://evil.example", "Host": "evil.example"}.items():
        connection = http.client.HTTPConnection(*proxy.admin, timeout=10)
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json", header: value}
        connection.request("POST", "/api/v1/enable", json.dumps({"backend": str(pair[0])}), headers)
        assert connection.getresponse().status == 403, header
        connection.close()
    assert "draining" in command("status", admin=admin)[1], "the foreign page enabled nothing"


def test_usage_errors_exit_2(command):
    assert command("drain")[0] == 2
    assert command("status", admin="nonsense")[0] == 2


def test_a_proxy_that_is_not_there_is_an_error(command):
    code, _, error = command("status")
    assert code == 1 and "admin.sock" in error
