"""The Debian package in a booted Debian 12: install, start, reload, crash, hang, restart, upgrade, remove."""

import json
import re
import shutil
import socket
import threading
import time
from pathlib import Path

import pytest

from support import ber
from support.backend import FakeBackend, answer_everything
from support.clients import Endpoint, RawClient
from support.container import REPOSITORY, Container
from support.process import run
from support.proxy import BINARY
from support.waiting import eventually

UNIT = "ldaps-proxy.service"
CONFIG = "/etc/ldaps-proxy/ldaps-proxy.toml"
pytestmark = pytest.mark.deadline(240)


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The path of the package, alone in its directory."""
    built = run([REPOSITORY / "packaging" / "deb", BINARY], seconds=120).stdout.split()[-1]
    return shutil.copy(built, tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="module")
def fresh(package, tmp_path_factory):
    """A container with the package just installed and enabled, as its first words say."""
    container = Container(tmp_path_factory.mktemp("container"), Path(package).parent)
    try:
        container.said = container.run("apt-get", "install", "-y", f"/shared/{Path(package).name}", seconds=120).stdout
        container.run("systemctl", "enable", "--now", "ldaps-proxy")
        yield container
    finally:
        container.close()


@pytest.fixture(scope="module")
def backend(fresh):
    with FakeBackend(address=fresh.gateway) as backend:
        yield backend


@pytest.fixture
def service(fresh, backend, authority):
    """The service in front of `backend`, running without its socket unit; `service.endpoint` is where clients reach it."""
    backend.answer = answer_everything
    fresh.run("systemctl", "stop", "ldaps-proxy.socket", UNIT, "ldaps-proxy-bridge.service")
    shutil.rmtree(fresh.path(f"/etc/systemd/system/{UNIT}.d"), ignore_errors=True)
    fresh.run("systemctl", "daemon-reload")
    certificate = authority.issue("container", (f"IP:{fresh.address}",))
    for ours, name in ((certificate.certificate, "certificate"), (certificate.private_key, "private_key")):
        fresh.path(f"/etc/ldaps-proxy/certs/{name}.pem").write_bytes(ours.read_bytes())
    text = (REPOSITORY / "packaging" / "ldaps-proxy.toml").read_text()
    text = text.replace('["10.0.0.0/16"]', f'["{fresh.gateway}/32"]')
    text = re.sub(r"backends = \[.*?\]", f'backends = ["{backend}"]', text)
    fresh.path(CONFIG).write_text(text.replace("[admin]", '[pools.simple-ad.health]\nprobe = "tcp"\n\n[admin]'))
    fresh.run("systemctl", "restart", UNIT)
    fresh.endpoint = Endpoint(fresh.address, 636, authority.ca)
    eventually(lambda: fresh.run("ldaps-proxy", "healthcheck", check=False).returncode == 0, "the proxy is ready")
    return fresh


def test_the_package_is_as_debian_wants_it(package):
    """But it is in no archive, so no request for it is closed; and its removal calls systemctl, as who enabled it did."""
    ours = "--suppress-tags=initial-upload-closes-no-bugs,maintainer-script-calls-systemctl"
    found = run(["lintian", "--fail-on=error,warning", ours, package], check=False, seconds=120)
    assert found.returncode == 0, found.stdout


def test_the_hardening_is_measured():
    """`systemd-analyze security`: an exposure of at most 2.0 of 10, and the comment in the unit tells the figure."""
    unit = REPOSITORY / "config" / UNIT
    verdict = run(["systemd-analyze", "security", "--offline=true", unit]).stdout
    exposure = re.search(r"Overall exposure level for ldaps-proxy.service: (\S+)", verdict)[1]
    assert float(exposure) <= 2.0, verdict
    assert f"({exposure} in all" in unit.read_text()


def test_a_fresh_installation_runs(fresh):
    """With a self-signed certificate, and told what to do next."""
    assert "systemctl enable --now ldaps-proxy" in fresh.said
    assert fresh.show(UNIT, "ActiveState") == "active"
    assert fresh.run("ldaps-proxy", "check").returncode == 0
    eventually(lambda: fresh.show(UNIT, "StatusText") == "simple-ad: 0 of 2 backends up; 0 sessions", "systemd knows")
    assert "not ready" in fresh.run("ldaps-proxy", "status").stdout
    assert fresh.run("systemd-analyze", "verify", "--man=no", "ldaps-proxy.service", "ldaps-proxy.socket").stderr == ""
    key = fresh.path("/etc/ldaps-proxy/certs/private_key.pem").stat()
    assert key.st_mode & 0o777 == 0o640
    assert fresh.path("/usr/share/man/man1/ldaps-proxy.1.gz").exists()
    fresh.run("bash", "-n", "/usr/share/bash-completion/completions/ldaps-proxy")


def test_it_runs_as_nobody_and_serves(service):
    with RawClient(service.endpoint) as client:
        assert client.ask(ber.search)[-1].result_code == ber.SUCCESS
        eventually(lambda: service.show(UNIT, "StatusText") == "simple-ad: 1 of 1 backends up; 1 sessions", "it is counted")
    status = service.path(f"/proc/{service.show(UNIT, 'MainPID')}/status").read_text()
    uid, capabilities = re.search(r"Uid:\s+(\d+)", status)[1], re.search(r"CapEff:\s+(\w+)", status)[1]
    assert uid != "0"
    assert int(capabilities, 16) == 1 << 10, "CAP_NET_BIND_SERVICE alone"


def test_reload(service):
    """A good file is taken while running; a bad one fails the command, says why, and changes nothing."""
    before = service.show(UNIT, "MainPID")
    good = service.path(CONFIG).read_text()
    service.path(CONFIG).write_text(good.replace(f'"{service.gateway}/32"', '"192.0.2.0/24"'))
    service.run("systemctl", "reload", UNIT)
    eventually(lambda: not enters(service), "the new trusted networks hold")
    service.path(CONFIG).write_text(good + "[limits]\nmax_conections = 5\n")
    assert service.run("systemctl", "reload", UNIT, check=False).returncode != 0
    assert "max_connections" in service.journal()
    service.path(CONFIG).write_text(good)
    service.run("systemctl", "reload", UNIT)
    eventually(lambda: enters(service), "the old trusted networks hold again")
    assert (service.show(UNIT, "MainPID"), service.show(UNIT, "NRestarts")) == (before, "0")


def test_the_access_log_goes_to_the_journal_with_fields_to_search_by(service):
    service.path(CONFIG).write_text(service.path(CONFIG).read_text() + '\n[access_log]\noutput = "journald"\n')
    # Not a reload, which ends before its effect: the session might still be one of the configuration before.
    service.run("systemctl", "restart", UNIT)
    with RawClient(service.endpoint) as client:
        client.ask(ber.bind, "cn=ann\nPRIORITY=0", "s3cret-of-this-test")
        client.ask(ber.search, "dc=x")
        client.send(ber.unbind(client.next_id()))
        assert client.ended()

    def entries(*fields):
        output = service.run("journalctl", "--no-pager", "-o", "json", "LDAPS_PROXY_LOG=access", *fields).stdout
        return [json.loads(line) for line in output.splitlines()]

    eventually(lambda: entries("LDAPS_PROXY_EVENT=session"), "the session is told")
    told = entries()
    assert [entry.get("LDAPS_PROXY_OPERATION") for entry in told] == ["bind", "search", "unbind", None]
    bind, search = told[:2]
    assert (bind["LDAPS_PROXY_DN"], bind["PRIORITY"], bind["_SYSTEMD_UNIT"]) == ("cn=ann\nPRIORITY=0", "6", UNIT)
    assert json.loads(search["MESSAGE"])["dn"] == search["LDAPS_PROXY_DN"] == "dc=x"
    assert entries("LDAPS_PROXY_RESULT=success", "LDAPS_PROXY_OPERATION=search") == [search]
    assert "s3cret" not in service.journal()


def test_the_access_log_is_rotated(service):
    """What the package's rule for logrotate runs once it has moved the file."""
    service.path(CONFIG).write_text(service.path(CONFIG).read_text() + '\n[access_log]\noutput = "file"\n'
                                    'path = "/var/log/ldaps-proxy/access.log"\n')
    service.run("systemctl", "restart", UNIT)
    log = service.path("/var/log/private/ldaps-proxy/access.log")
    bind_result(service)
    eventually(lambda: log.exists() and '"bind"' in log.read_text(), "a login is told")
    log.rename(log.with_suffix(".log.1"))
    rule = service.path("/etc/logrotate.d/ldaps-proxy").read_text()
    service.run("sh", "-ec", re.search(r"postrotate\n(.*?)\n\s*endscript", rule, re.DOTALL)[1])
    eventually(log.exists, "there is a new file")
    bind_result(service)
    eventually(lambda: '"bind"' in log.read_text(), "a login is told in the new file")


def test_a_crash_is_mended(service):
    service.kill(UNIT, "ABRT")
    eventually(lambda: service.show(UNIT, "NRestarts") == "1" and enters(service), "it serves again")


def test_a_hang_is_noticed(service):
    service.drop_in(UNIT, "watchdog", "[Service]\nWatchdogSec=2s\n")
    service.run("systemctl", "restart", UNIT)
    service.kill(UNIT, "STOP")
    eventually(lambda: service.show(UNIT, "NRestarts") == "1" and enters(service), "it serves again", 40)
    assert "Watchdog timeout" in service.journal()


def test_load_is_no_hang(service):
    """Twice as many busy clients as cores for three times what the watchdog allows."""
    service.drop_in(UNIT, "watchdog", "[Service]\nWatchdogSec=2s\n")
    service.run("systemctl", "restart", UNIT)
    end, counts, failures = time.monotonic() + 6, [], []

    def work():
        count = 0
        try:
            while time.monotonic() < end:
                with RawClient(service.endpoint) as client:
                    for _ in range(100):
                        assert client.ask(ber.search)[-1].result_code == ber.SUCCESS
                        count += 1
        except Exception as error:
            failures.append(error)
        counts.append(count)

    in_threads(work, 4)
    assert failures == []
    assert min(counts) > 0
    assert service.show(UNIT, "NRestarts") == "0"


def test_a_restart_with_the_socket_refuses_nobody(service, backend):
    """While the old process finishes an operation, newcomers wait in the kernel; the new process serves them."""
    service.run("systemctl", "stop", UNIT)
    service.run("systemctl", "start", "ldaps-proxy.socket", UNIT)
    release = hold_searches(backend)
    newcomers = []
    with RawClient(service.endpoint) as old:
        begin_search(old, backend)
        restart = in_background(lambda: service.run("systemctl", "restart", UNIT))
        eventually(lambda: service.show(UNIT, "ActiveState") == "deactivating", "the old process drains")
        arrival = [in_background(lambda: newcomers.append(bind_result(service))) for _ in range(20)]
        assert old.socket.fileno() >= 0 and not newcomers
        release.set()
        assert old.read_result(1)[-1].result_code == ber.SUCCESS
        assert old.read_to_end()[-1].is_notice(ber.UNAVAILABLE)
        for thread in [restart, *arrival]:
            thread.join()
    assert newcomers == [ber.SUCCESS] * 20


def test_a_restart_without_the_socket_refuses(service, backend):
    """The difference that the socket makes: without it this is what newcomers see."""
    release = hold_searches(backend)
    with RawClient(service.endpoint) as old:
        begin_search(old, backend)
        restart = in_background(lambda: service.run("systemctl", "restart", UNIT))
        eventually(lambda: refused(service), "the port is closed while the old process drains")
        release.set()
        restart.join()


def test_a_hand_over_keeps_nobody_waiting(service, backend):
    """Newcomers are served while the old process finishes an operation, and the old operation is answered."""
    service.run("systemctl", "stop", UNIT)
    service.run("systemctl", "start", "ldaps-proxy.socket", UNIT)
    release = hold_searches(backend)
    before = service.show(UNIT, "MainPID")
    with RawClient(service.endpoint) as old:
        begin_search(old, backend)
        handover = in_background(lambda: service.run("ldaps-proxy-handover"))
        eventually(lambda: service.show(UNIT, "ActiveState") == "deactivating", "the old process drains")
        assert [bind_result(service) for _ in range(20)] == [ber.SUCCESS] * 20
        release.set()
        assert old.read_result(1)[-1].result_code == ber.SUCCESS
        handover.join()
    assert bind_result(service) == ber.SUCCESS
    assert service.show(UNIT, "MainPID") != before
    assert service.show("ldaps-proxy-bridge.service", "ActiveState") == "inactive"


@pytest.mark.parametrize("units", [("ldaps-proxy.socket", UNIT), (UNIT,)], ids=["with the socket", "without it"])
def test_a_hand_over_to_what_cannot_start_changes_nothing(service, units):
    service.run("systemctl", "stop", UNIT)
    service.run("systemctl", "start", *units)
    before = service.show(UNIT, "MainPID")
    good = service.path(CONFIG).read_text()
    service.path(CONFIG).write_text("nonsense\n")
    assert service.run("ldaps-proxy-handover", check=False).returncode != 0
    assert service.show(UNIT, "MainPID") == before
    assert enters(service)
    service.path(CONFIG).write_text(good)


def test_an_upgrade_of_the_package_hands_over(service, package):
    service.run("systemctl", "stop", UNIT)
    service.run("systemctl", "start", "ldaps-proxy.socket", UNIT)
    before = service.show(UNIT, "MainPID")
    results, done = [], threading.Event()

    def knock():
        while not done.is_set():
            try:
                results.append(enters(service) or bind_result(service))
            except Exception as error:
                results.append(error)

    knocking = in_background(knock)
    service.run("dpkg", "--install", "--force-confold", f"/shared/{Path(package).name}")
    done.set()
    knocking.join()
    assert {result for result in results if result not in (True, ber.SUCCESS)} == set(), "a client that tries twice never fails"
    assert results
    assert service.show(UNIT, "MainPID") != before


def test_without_any_capability_behind_the_socket(service):
    service.run("systemctl", "stop", UNIT)
    service.drop_in(UNIT, "socket-only", (REPOSITORY / "config/drop-ins/socket-only.conf").read_text())
    service.run("systemctl", "start", UNIT)
    assert enters(service)
    status = service.path(f"/proc/{service.show(UNIT, 'MainPID')}/status").read_text()
    assert int(re.search(r"CapEff:\s+(\w+)", status)[1], 16) == 0


@pytest.fixture(params=["encrypted", "plain"])
def with_credentials(service, request):
    """The service with a key, and its passphrase if it is encrypted, that are root's alone, and a copy of its own of them: the
    drop-in as it stands is for a plain key."""
    vault = service.path("/etc/ldaps-proxy/credentials")
    shutil.rmtree(vault, ignore_errors=True)
    vault.mkdir(mode=0o700)
    drop_in = (REPOSITORY / "config/drop-ins/credentials.conf").read_text()
    keys = 'private_key = "${CREDENTIALS_DIRECTORY}/private_key"'
    if request.param == "encrypted":
        service.run("openssl", "pkcs8", "-topk8", "-v2", "aes256", "-in", "/etc/ldaps-proxy/certs/private_key.pem",
                    "-out", "/etc/ldaps-proxy/credentials/private_key.pem", "-passout", "pass:secret")
        (vault / "private_key_passphrase").write_text("secret\n")
        drop_in = drop_in.replace("#LoadCredential=", "LoadCredential=")
        keys += '\nprivate_key_passphrase_file = "${CREDENTIALS_DIRECTORY}/private_key_passphrase"'
    else:
        shutil.copy(service.path("/etc/ldaps-proxy/certs/private_key.pem"), vault / "private_key.pem")
    for file in vault.iterdir():
        file.chmod(0o600)
    service.drop_in(UNIT, "credentials", drop_in)
    service.path(CONFIG).write_text(re.sub(r"private_key = .*", keys, service.path(CONFIG).read_text()))
    service.run("systemctl", "restart", UNIT)
    return service


def test_credentials(with_credentials):
    """Their copies are for the service; whoever is root may check with them."""
    service = with_credentials
    assert enters(service)
    service.run("systemctl", "reload", UNIT)
    good = service.path(CONFIG).read_text()
    service.path(CONFIG).write_text(good + "[limits]\nmax_conections = 5\n")
    assert service.run("systemctl", "reload", UNIT, check=False).returncode != 0
    assert "max_connections" in service.journal()
    service.path(CONFIG).write_text(good)
    assert service.run("ldaps-proxy", "check", check=False).returncode == 1
    service.run("env", f"CREDENTIALS_DIRECTORY=/run/credentials/{UNIT}", "ldaps-proxy", "check")


def test_a_hand_over_with_credentials(with_credentials):
    """The bridge has the drop-ins of the service, or it would have no key and no hand-over would succeed; it is the bridge all
    the same, whatever they make of ExecStart=."""
    service = with_credentials
    service.drop_in(UNIT, "override", "[Service]\nExecStart=\nExecStart=/usr/bin/ldaps-proxy run\n")
    service.run("systemctl", "stop", UNIT)
    service.run("systemctl", "start", "ldaps-proxy.socket", UNIT)
    before = service.show(UNIT, "MainPID")
    service.run("ldaps-proxy-handover")
    assert enters(service)
    assert service.show(UNIT, "MainPID") != before
    assert "LoadCredential=private_key" in service.run("systemctl", "cat", "ldaps-proxy-bridge.service").stdout


def test_purge_leaves_nothing(service):
    service.run("apt-get", "purge", "-y", "ldaps-proxy")
    places = "/etc/ldaps-proxy /usr/bin/ldaps-proxy /*/systemd/system/ldaps-proxy* /var/log/ldaps-proxy /var/log/private/ldaps-proxy"
    left = service.run("sh", "-c", f"ls -d {places}; true").stdout
    assert left.split() in ([], ["/etc/ldaps-proxy"])
    assert service.run("systemctl", "is-active", UNIT, check=False).returncode != 0


def bind_result(service):
    with RawClient(service.endpoint) as client:
        return client.ask(ber.bind)[-1].result_code


def enters(service):
    try:
        return bind_result(service) == ber.SUCCESS
    except (OSError, AssertionError):
        return False


def refused(service):
    try:
        socket.create_connection((service.endpoint.host, service.endpoint.port), 5).close()
    except ConnectionRefusedError:
        return True
    return False


def hold_searches(backend):
    """Searches wait until the returned event is set; all else is answered."""
    release, answer = threading.Event(), backend.answer

    def hold(connection, pdu):
        def finish():
            release.wait(30)
            connection.send(ber.result(pdu.message_id, ber.SEARCH_DONE))

        if pdu.tag == ber.SEARCH_REQUEST:
            in_background(finish)
        else:
            answer(connection, pdu)

    backend.answer = hold
    return release


def begin_search(client, backend):
    """Sends one and waits until the backend has it."""
    seen = len(backend.sessions())
    client.send(ber.search(1))
    backend.session(seen).wait_for(ber.SEARCH_REQUEST)


def in_background(work):
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def in_threads(work, count):
    for thread in [in_background(work) for _ in range(count)]:
        thread.join()
