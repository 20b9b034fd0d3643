"""Steering a running proxy: the commands and the API behind them."""

import http.client
import json
import signal
import ssl
from socket import create_connection

import pytest

from support import ber
from support.backend import answer_nothing
from support.clients import SECONDS, RawClient
from support.dns import NameServer
from support.net import closed_port
from support.process import Process, run
from support.proxy import BINARY, config
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


def occupied(client, pair):
    """The backend that a first search of the client's has reached, which neither answers."""
    for backend in pair:
        backend.answer = answer_nothing
    client.send(ber.search(1))
    return eventually(lambda: next((backend for backend in pair if backend.sessions()), None), "a backend serves")


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
            backend.answer = answer_nothing
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
        used = occupied(client, pair)
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
        used = occupied(client, pair)
        code, _, error = command("drain", str(used), "--timeout", "0")
        assert code == 1 and "stays drained" in error
        assert f"{used}" in command("status")[1] and "draining" in command("status")[1]


def test_a_session_that_has_just_written_leaves_when_it_may(start_proxy, pair, socket, command):
    """A regression test: what tied it to its backend for a while made it forget that it was to leave."""
    pool = 'health.probe = "tcp"\nfailover.write_affinity = "1s"'
    proxy = start_proxy(pair, pool=pool, extra=f'socket = "{socket}"')
    with RawClient(proxy.endpoint()) as client:
        assert client.ask(ber.delete, "cn=x")[-1].result_code == ber.SUCCESS
        used, other = sorted(pair, key=lambda backend: not backend.sessions())
        assert command("drain", str(used))[0] == 0
        assert client.ask(ber.search)[-1].result_code == ber.SUCCESS
        assert other.open()


def test_no_session_leaves_for_a_backend_that_is_down(start_proxy, pair, socket, command):
    """A regression test: the drain was an outage."""
    pool = 'health.probe = "tcp"\nhealth.interval = "100ms"\nhealth.fall = 1'
    proxy = start_proxy(pair, pool=pool, extra=f'socket = "{socket}"')
    with RawClient(proxy.endpoint()) as client:
        client.ask(ber.search)
        used, other = sorted(pair, key=lambda backend: not backend.sessions())
        other.stop_listening()
        proxy.wait_for("ldaps_proxy_backend_up", 0, backend=str(other))
        assert command("drain", str(used), "--timeout", "0")[0] == 1
        assert client.ask(ber.search)[-1].result_code == ber.SUCCESS
        assert used.open()


@pytest.mark.parametrize("ended", [False, True])
def test_drain_says_when_a_reload_takes_the_backend_away(proxy, pair, command, socket, tmp_path, ended):
    """A regression test: it printed nothing and was content, though the sessions went on. The command stands still for the
    reload, so that it sees both at once where the session `ended` as well."""
    with RawClient(proxy.endpoint()) as client:
        used = occupied(client, pair)
        drain = Process([BINARY, "drain", str(used), "--admin", f"unix:{socket}"], directory=tmp_path)
        try:
            eventually(lambda: "1 sessions" in drain.stdout(), "it shows what it waits for")
            drain.signal(signal.SIGSTOP)
            other = next(backend for backend in pair if backend is not used)
            reloaded(proxy, command, (f"'{pair[0]}', '{pair[1]}'", f"'{other}'"))
            if ended:
                client.close()
                proxy.wait_for("ldaps_proxy_sessions_active", 0)
            drain.signal(signal.SIGCONT)
            assert drain.wait() == (0 if ended else 1)
        finally:
            drain.close()
    said = drain.stdout().splitlines()[-1] if ended else drain.stderr()
    assert f"{used} is no backend any more" in said and ("no session is left" if ended else "1 sessions are left") in said


def test_an_unknown_backend_is_an_error_that_names_the_known(proxy, pair, command):
    code, _, error = command("drain", "192.0.2.1:389")
    assert code == 1 and "192.0.2.1:389" in error and str(pair[0]) in error


def test_kill_ends_one_session_and_no_other(proxy, command):
    with RawClient(proxy.endpoint()) as doomed, RawClient(proxy.endpoint()) as other:
        doomed.ask(ber.bind, "cn=doomed", "x")
        other.ask(ber.bind, "cn=other", "x")
        number = next(line.split()[0] for line in command("sessions")[1].splitlines() if "cn=doomed" in line)
        assert command("kill", number)[:2] == (0, f"session {number} is told to end\n")
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


def test_the_form_of_the_log_changes_while_it_runs_and_workers_at_the_next_start(proxy, command):
    changes = reloaded(proxy, command, ("[admin]", '[runtime]\nworkers = 1\n[log]\nformat = "json"\n[admin]'))
    assert changes == ['log.format: "text" -> "json"', "runtime.workers: none -> 1 (takes effect at the next start)"]
    line = eventually(lambda: [line for line in proxy.log().splitlines() if '"reloaded"' in line], "the reload is told")[0]
    assert json.loads(line)["level"] == "INFO"


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
    assert "\\n" not in error and len(error.splitlines()) > 2, "as `check` shows it"
    metrics = proxy.metrics()
    assert metrics.sum("ldaps_proxy_reloads_total", result="rejected") == 1
    assert metrics.sum("ldaps_proxy_last_reload_successful") == 0
    proxy.config_file.write_text(good + "\n[limits]\nmax_connections = 5\n")
    code, changes, _ = command("reload")
    assert code == 0 and "limits" in changes
    eventually(lambda: proxy.metrics().sum("ldaps_proxy_limit", limit="connections") == 5, "the limit is in force")


def reloaded(proxy, command, *replacements):
    """Reloads the configuration with each `(old, new)` text replaced; the lines that say what has changed."""
    text = proxy.config_file.read_text()
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    proxy.config_file.write_text(text)
    code, changes, error = command("reload")
    assert code == 0, error
    return changes.splitlines()


def came_in_by(command):
    """The listeners of the sessions there are."""
    return [session["listener"] for session in json.loads(command("sessions", "--json")[1])["sessions"]]


def free_port():
    """A port of 127.0.0.1, as text."""
    return str(closed_port()[1])


def test_admin_and_health_change_while_an_address_stays(start_proxy, pair, socket, token, command):
    """A regression test: every endpoint was opened before those of the old configuration were closed, so that whoever gave
    the admin side a token, or added a health address, was told that the address is in use. Port 0 can't see it."""
    port = free_port()
    proxy = start_proxy(pair, pool='health.probe = "tcp"', extra=f'socket = "{socket}"')
    admin = f"http://127.0.0.1:{port}"
    reloaded(proxy, command, ('[admin]\naddress = "127.0.0.1:0"', f'[admin]\naddress = "127.0.0.1:{port}"'))
    assert "read-only" in command("drain", str(pair[0]), "--token-file", token, admin=admin)[2]

    reloaded(proxy, command, ("[admin]", f'[admin]\ntoken_file = "{token}"'))
    assert command("drain", str(pair[0]), "--token-file", token, admin=admin)[0] == 0

    reloaded(proxy, command, ("[admin]", '[health]\naddress = "127.0.0.1:0"\n[admin]'))
    assert proxy.http("/readyz", address=proxy.health)[0] == 200
    assert command("healthcheck", admin=admin)[0] == 0, "the admin address is still there"
    assert command("status")[0] == 0, "and so is the socket"

    reloaded(proxy, command, (f'socket = "{socket}"', ""))
    assert not socket.exists()
    assert command("healthcheck", admin=admin)[0] == 0


def test_a_listener_is_renamed_and_two_change_places(start_proxy, pair, socket, command):
    """A regression test: listeners went by their names alone, and a reload that gave one another name opened its address a
    second time, which failed."""
    proxy = start_proxy(pair, pool='health.probe = "tcp"', extra=f'socket = "{socket}"')
    ports = free_port(), free_port()
    proxy.config_file.write_text(with_another_listener(proxy.config_file.read_text(), address=f"127.0.0.1:{ports[1]}"))
    reloaded(proxy, command, ('127.0.0.1:0"\ntrusted', f'127.0.0.1:{ports[0]}"\ntrusted'))
    with RawClient(proxy.endpoint("ldaps")) as client:
        client.ask(ber.search)
        changes = reloaded(proxy, command, ('name = "ldaps"', 'name = "corp"'))
        assert changes == ['listener "corp": added', 'listener "ldaps": removed']
        assert str(proxy.endpoint("corp").port) == ports[0]
        client.ask(ber.search)
        with RawClient(proxy.endpoint("corp")) as newcomer:
            newcomer.ask(ber.search)
            listeners = json.loads(command("status", "--json")[1])["listeners"]
            assert [(listener["name"], listener["sessions"]) for listener in listeners] == [("corp", 2), ("second", 0)]

    reloaded(proxy, command, ('name = "corp"', 'name = "-"'), ('"second"', '"corp"'), ('"-"', '"second"'))
    for name, port in zip(("second", "corp"), ports):
        assert str(proxy.endpoint(name).port) == port
        with RawClient(proxy.endpoint(name)) as client:
            client.ask(ber.search)
            eventually(lambda: came_in_by(command) == [name], "the session is the only one, and the listener's")


def test_a_reload_that_widens_an_address_says_that_it_takes_a_restart(start_proxy, pair, socket, command):
    """A regression test: all it said was that the address is in use, by whom was left to be guessed."""
    port = free_port()
    proxy = start_proxy(pair, pool='health.probe = "tcp"', extra=f'socket = "{socket}"')
    reloaded(proxy, command, ('127.0.0.1:0"\ntrusted', f'127.0.0.1:{port}"\ntrusted'))
    proxy.config_file.write_text(proxy.config_file.read_text().replace(f'"127.0.0.1:{port}"', f'"0.0.0.0:{port}"'))
    code, _, error = command("reload")
    assert code == 1 and f"listener ldaps has 127.0.0.1:{port}" in error and "restart" in error
    with RawClient(proxy.endpoint()) as client:
        client.ask(ber.search)


def with_another_listener(text, *, name="second", address="127.0.0.1:0", pool="directory", backends=None, keys=""):
    """A configuration with one more listener and, with `backends`, a pool for it that has the lines `keys`."""
    table = f"""
[[listener]]
name = "{name}"
address = "{address}"
trusted_networks = ["127.0.0.1/32"]
pool = "{pool}"
[tls]"""
    pools = f"[pools.{pool}]\nbackends = {[str(backend) for backend in backends]}\n{keys}\n" if backends else ""
    return text.replace("\n[tls]", table, 1).replace("[admin]", f"{pools}[admin]", 1)


def test_listeners_come_and_go(proxy, command):
    proxy.config_file.write_text(with_another_listener(proxy.config_file.read_text()))
    assert reloaded(proxy, command) == ['listener "second": added']
    with RawClient(proxy.endpoint("ldaps")) as older, RawClient(proxy.endpoint("second")) as newer:
        older.ask(ber.search), newer.ask(ber.search)
        before, _, rest = proxy.config_file.read_text().partition("[[listener]]")
        proxy.config_file.write_text(before + "[[listener]]" + rest.partition("[[listener]]")[2])
        assert reloaded(proxy, command) == ['listener "ldaps": removed']
        eventually(lambda: not proxy.accepts("ldaps"), "connects to it are refused")
        older.ask(ber.search), newer.ask(ber.search)
        assert proxy.accepts("second")


def test_those_no_longer_trusted_are_told_and_end(start_proxy, pair, socket, command):
    proxy = start_proxy(
        pair, trusted=["127.0.0.0/8"], pool='health.probe = "tcp"', extra=f'socket = "{socket}"\n[trust]\nend_sessions = true'
    )
    with RawClient(proxy.endpoint()) as stays, RawClient(proxy.endpoint(), source="127.0.0.2") as leaves:
        stays.ask(ber.search), leaves.ask(ber.search)
        reloaded(proxy, command, ("127.0.0.0/8", "127.0.0.1/32"))
        notice = leaves.read()
        assert (notice.message_id, notice.response_name) == (0, ber.NOTICE_OF_DISCONNECTION)
        assert "no longer trusted" in notice.diagnostic
        assert leaves.ended()
        proxy.wait_for("ldaps_proxy_sessions_ended_total", 1, reason="untrusted")
        reloaded(proxy, command, ('name = "ldaps"', 'name = "corp"'))
        stays.ask(ber.search)
        assert came_in_by(command) == ["ldaps"], "who came in by the old name is judged by what it means now"


def test_those_whom_a_list_no_longer_names_are_told_and_end(start_proxy, pair, tmp_path):
    """A regression test: a list that changed by itself let nobody new in, and left those who were in."""
    networks = tmp_path / "networks"
    networks.write_text("127.0.0.2\n127.0.0.3\n")
    proxy = start_proxy(
        pair, listener=f'trusted_networks_file = "{networks}"', pool='health.probe = "tcp"',
        extra="[trust]\nend_sessions = true",
    )
    with RawClient(proxy.endpoint()) as stays, RawClient(proxy.endpoint(), source="127.0.0.2") as leaves:
        stays.ask(ber.search), leaves.ask(ber.search)
        networks.write_text("127.0.0.3\n")
        notice = leaves.read()
        assert (notice.message_id, notice.response_name) == (0, ber.NOTICE_OF_DISCONNECTION)
        assert "no longer trusted" in notice.diagnostic
        assert leaves.ended()
        stays.ask(ber.search)


def test_who_makes_his_handshake_is_no_longer_trusted_after_it(start_proxy, pair, socket, command):
    proxy = start_proxy(
        pair, trusted=["127.0.0.0/8"], pool='health.probe = "tcp"', extra=f'socket = "{socket}"\n[trust]\nend_sessions = true'
    )
    endpoint = proxy.endpoint()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = ssl.create_default_context(cafile=endpoint.ca).wrap_bio(incoming, outgoing, server_hostname=endpoint.host)

    def read(tcp, step):
        """What `step` returns once it has the octets it wants from the proxy."""
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                tcp.sendall(outgoing.read())
                incoming.write(tcp.recv(1 << 16))

    with create_connection((endpoint.host, endpoint.port), SECONDS, source_address=("127.0.0.2", 0)) as tcp:
        # Our last flight is ready, and not sent.
        read(tcp, tls.do_handshake)
        reloaded(proxy, command, ("127.0.0.0/8", "127.0.0.1/32"))
        tcp.sendall(outgoing.read())
        notice = ber.pdu(read(tcp, tls.read))
        assert notice.is_notice(ber.UNAVAILABLE) and "no longer trusted" in notice.diagnostic
        assert read(tcp, tls.read) == b""
    proxy.wait_for("ldaps_proxy_sessions_ended_total", 1, reason="untrusted")


def test_a_rejected_reload_leaves_no_trace(start_proxy, start_backend, pair, socket, command):
    """A regression test: a pool was made, with its series, before the plan had been accepted, so that a backend that was never
    there had a `backend_up` for ever."""
    proxy = start_proxy(pair, pool='health.probe = "tcp"\nhealth.interval = "1h"', extra=f'socket = "{socket}"')
    proxy.wait_for("ldaps_proxy_backend_probe_duration_seconds_count", 2)

    def traces():
        metrics, status = proxy.metrics(), json.loads(command("status", "--json")[1])
        for changing in ("now", "traffic", "last_reload"):
            del status[changing]
        status["recent_failures"] = [one for one in status["recent_failures"] if one["reason"] != "reload_rejected"]
        pool = {name: metrics.get(name, pool="directory") for name in metrics.names() if "probe_duration" not in name}
        return set(metrics.series), pool, status

    before, good = traces(), proxy.config_file.read_text()
    more = good.replace(f"'{pair[1]}'", f"'{pair[1]}', '{start_backend()}'")
    occupied = start_backend()
    more = with_another_listener(more, address=occupied, pool="other", backends=[start_backend()])
    proxy.config_file.write_text(more)
    code, _, error = command("reload")
    assert code == 1 and f"cannot listen on {occupied}" in error
    assert traces() == before


def test_what_a_reload_takes_away_leaves_no_series(proxy, start_backend, pair, command):
    """A regression test: only DNS made a backend forgotten. One that a reload had taken away kept its last `backend_up`, and
    whoever alerts on that was told for ever."""
    first, small = start_backend(), proxy.config_file.read_text()
    proxy.config_file.write_text(with_another_listener(small, pool="branch", backends=[first, pair[1]]))
    reloaded(proxy, command)
    with RawClient(proxy.endpoint("second")) as client:
        client.ask(ber.search)
    proxy.wait_for("ldaps_proxy_sessions_active", 0)

    def shown():
        text = proxy.http("/metrics")[1]
        return {what: f'{what}"' in text for what in ("second", "branch", str(first), *map(str, pair))}

    assert all(shown().values())
    reloaded(proxy, command, (f"'{first}', ", ""))
    assert [what for what, is_shown in shown().items() if not is_shown] == [str(first)]
    proxy.config_file.write_text(small.replace(f"'{pair[0]}', ", ""))
    reloaded(proxy, command)
    assert [what for what, is_shown in shown().items() if is_shown] == [str(pair[1])]
    assert proxy.metrics().get("ldaps_proxy_operation_duration_seconds_count", backend=str(pair[1]))


def test_pools_that_share_an_address_are_told_apart(proxy, pair, command):
    """A regression test: a backend was `host:port` whatever other pools had, so that its operations were counted with those of
    another pool's, forgotten with them, and the page's button drained both."""
    shared, small = str(pair[1]), proxy.config_file.read_text()
    in_branch, in_directory = f"branch/{shared}", f"directory/{shared}"
    durations = "ldaps_proxy_operation_duration_seconds_count"
    assert command("drain", shared)[0] == 0
    proxy.config_file.write_text(with_another_listener(small, pool="branch", backends=[shared]))
    reloaded(proxy, command)
    expected = {in_branch: "up", str(pair[0]): "up", in_directory: "draining"}
    eventually(lambda: states(command) == expected, "the new pool's backend has passed its first probe")
    assert not proxy.metrics().get(durations, backend=shared)

    assert command("enable", in_directory)[0] == 0 and command("drain", str(pair[0]))[0] == 0
    for listener, searches in ("second", 1), ("ldaps", 2):
        with RawClient(proxy.endpoint(listener)) as client:
            for _ in range(searches):
                client.ask(ber.search)
    proxy.wait_for(durations, 1, operation="search", backend=in_branch)
    proxy.wait_for(durations, 2, operation="search", backend=in_directory)

    assert command("drain", in_branch)[0] == 0
    assert states(command) == {in_branch: "draining", str(pair[0]): "draining", in_directory: "up"}
    assert proxy.metrics().get("ldaps_proxy_backend_drained", backend=in_branch, pool="branch") == {
        frozenset({("backend", in_branch), ("pool", "branch")}): 1}
    assert command("drain", shared)[0] == 0
    assert set(states(command).values()) == {"draining"}, "its address alone means it in every pool"

    proxy.config_file.write_text(small)
    reloaded(proxy, command)
    assert states(command) == {str(pair[0]): "draining", shared: "draining"}
    series = {dict(labels)["backend"] for labels in proxy.metrics().get(durations)}
    assert series == {str(pair[0]), shared}


def states(command):
    """What `status` says of each backend."""
    return {one["name"]: one["state"] for one in json.loads(command("status", "--json")[1])["backends"]}


def test_a_drain_outlives_a_reload_of_its_pool(proxy, pair, command):
    assert command("drain", str(pair[0]))[0] == 0
    reloaded(proxy, command, ("[pools.directory]", '[pools.directory]\nconnect_timeout = "1s"'))
    assert states(command)[str(pair[0])] == "draining"
    for _ in range(4):
        with RawClient(proxy.endpoint()) as client:
            client.ask(ber.search)
    assert not pair[0].sessions() and len(pair[1].sessions()) == 4
    assert command("enable", str(pair[0]))[0] == 0
    reloaded(proxy, command, ('connect_timeout = "1s"', 'connect_timeout = "3s"'))
    with RawClient(proxy.endpoint()) as first, RawClient(proxy.endpoint()) as second:
        first.ask(ber.search), second.ask(ber.search)
        assert pair[0].open() and pair[1].open()


def test_a_reload_loses_sight_of_no_session(start_proxy, start_backend, socket, command):
    """A regression test: a reload that changes a pool made new backends of its own, so that sessions from before were on none:
    `drain` was content at once and left them there, and `max_sessions` was free a second time."""
    pair = [start_backend(), start_backend()]
    first, second = (f'{{ address = "{backend}", max_sessions = 1 }}' for backend in pair)
    proxy = start_proxy([first, second], pool='health.probe = "tcp"', extra=f'socket = "{socket}"')
    with RawClient(proxy.endpoint()) as older, RawClient(proxy.endpoint()) as newer:
        older.ask(ber.search)
        used, other = sorted(pair, key=lambda backend: not backend.sessions())
        reloaded(proxy, command, ("[pools.directory]", '[pools.directory]\nconnect_timeout = "1s"'))
        assert sessions(command) == {str(used): 1, str(other): 0}
        newer.ask(ber.search)
        assert other.open(), "the one seat of the first is taken"
        newer.close()
        eventually(lambda: sessions(command)[str(other)] == 0, "its seat is free")
        code, told, _ = command("drain", str(used))
        assert code == 0 and "0 sessions" in told.splitlines()[-1]
        older.ask(ber.search)
        assert other.open() and not used.open(), "it was moved"


def test_older_sessions_follow_their_pool_to_other_backends(start_proxy, start_backend, socket, command):
    """A regression test: a session kept the set of backends it had begun with, which nobody probed any more after a reload. With
    those switched off it got `unavailable` for ever."""
    old, new = ([start_backend(), start_backend()] for _ in range(2))
    proxy = start_proxy(old, pool='health.probe = "tcp"', extra=f'socket = "{socket}"')
    with RawClient(proxy.endpoint()) as client:
        client.bind(("cn=app,dc=x", "secret"))
        reloaded(proxy, command, *((str(before), str(after)) for before, after in zip(old, new)))
        for backend in old:
            backend.die()
        assert client.ask(ber.search)[-1].result_code == ber.SUCCESS
        assert any(backend.open() for backend in new)


def test_a_drain_moves_older_sessions_to_what_a_reload_has_added(start_proxy, start_backend, socket, command):
    """A regression test, as above: there was no other backend that works for such a session, and the drain never ended."""
    first, second = start_backend(), start_backend()
    proxy = start_proxy([first], pool='health.probe = "tcp"', extra=f'socket = "{socket}"')
    with RawClient(proxy.endpoint()) as client:
        client.ask(ber.search)
        reloaded(proxy, command, (f"['{first}']", f"['{first}', '{second}']"))
        eventually(lambda: states(command)[str(second)] == "up", "it has passed a probe")
        assert command("drain", str(first), seconds=SECONDS)[0] == 0
        client.ask(ber.search)
        assert second.open()


def test_a_reload_forgets_no_probe(start_proxy, start_backend, socket, command):
    """A regression test: after a reload that changed anything of a pool, the first probe decided alone about each of its
    backends, and one that got no answer in time took all sessions off it."""
    backend = start_backend()
    health = 'health.interval = "200ms"\nhealth.timeout = "50ms"\nhealth.fall = 100'
    proxy = start_proxy([backend], pool=health, extra=f'socket = "{socket}"')

    def shown():
        return json.loads(command("status", "--json")[1])["backends"][0]

    def shown_after_failures():
        one = shown()
        return one if all(probe["failure"] for probe in one["probes"][:3]) else None

    eventually(lambda: shown()["state"] == "up", "it has passed a probe")
    backend.answer = answer_nothing
    reloaded(proxy, command, ("[pools.directory]", "[pools.directory]\nqueue = 7"))
    assert eventually(shown_after_failures, "a few of a hundred probes have failed")["state"] == "up"


def sessions(command):
    """How many sessions `status` counts on each backend."""
    return {one["name"]: one["sessions"] for one in json.loads(command("status", "--json")[1])["backends"]}


def test_a_drain_that_comes_during_a_reload_is_kept(proxy, pair, command, socket, tmp_path):
    """A regression test: what operators had asked was copied as soon as a pool was planned, and other pools' names were
    resolved after that."""
    with NameServer({("dc.corp.example", "A"): ["127.0.0.1"]}) as names:
        names.silent = True
        text = proxy.config_file.read_text().replace("[pools.directory]", '[pools.directory]\nconnect_timeout = "1s"')
        discovery = f'discovery.name_servers = ["{names}"]'
        text = with_another_listener(text, pool="other", backends=[f"dc.corp.example:{pair[1].port}"], keys=discovery)
        proxy.config_file.write_text(text)
        reload = Process([BINARY, "reload", "--admin", f"unix:{socket}"], directory=tmp_path)
        try:
            eventually(lambda: names.asked, "the reload waits for an address")
            assert command("drain", str(pair[0]))[0] == 0
            names.silent = False
            assert reload.wait() == 0
        finally:
            reload.close()
    assert "connect_timeout" in reload.stdout()
    assert states(command)[str(pair[0])] == "draining"


def test_a_process_without_admin_stays_without(certificate, start_backend, tmp_path):
    """A regression test: the next reload took up the addresses of the process beside it, or was refused since they are in use."""
    file = tmp_path / "ldaps-proxy.toml"
    file.write_text(config(certificate, [start_backend()], extra='[health]\naddress = "127.0.0.1:0"'))
    process = Process([BINARY, "run", "--config", file, "--without-admin"], directory=tmp_path)
    try:
        eventually(lambda: "listening" in process.stderr(), "it runs")
        process.signal(signal.SIGHUP)
        eventually(lambda: "reloaded" in process.stderr(), "it has read the file again")
        assert "admin listening" not in process.stderr() and "health listening" not in process.stderr()
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    finally:
        process.close()


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
