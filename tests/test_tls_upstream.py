"""TLS to the backends: a real DC that takes passwords under TLS only, and a backend that counts resumed sessions."""

import json
import shutil

import pytest

from support import ber
from support.certs import Authority, Certificate
from support.clients import RawClient
from support.process import run
from support.proxy import BINARY, check, config
from support.samba import HOST_NAME, LDAP, LDAPS, USERS
from support.waiting import eventually


def bind(proxy):
    with RawClient(proxy.endpoint()) as client:
        return client.ask(ber.bind, *USERS[0])[-1].result_code


@pytest.mark.parametrize(("protocol", "port"), [("ldaps", LDAPS), ("starttls", LDAP)])
@pytest.mark.parametrize("name", ["", f'server_name = "{HOST_NAME}"'])
def test_a_dc_that_demands_tls_gets_it(start_proxy, strict_dc, authority, protocol, port, name):
    """Verified for its address as configured, or for `server_name`."""
    proxy = start_proxy(
        [f"{strict_dc.address}:{port}"], pool=f'protocol = "{protocol}"\nca_file = "{authority.ca}"\n{name}',
    )
    assert bind(proxy) == ber.SUCCESS


def test_without_tls_that_dc_takes_no_password(start_proxy, strict_dc):
    assert bind(start_proxy([f"{strict_dc.address}:{LDAP}"])) == ber.STRONGER_AUTH_REQUIRED


def test_a_dc_of_another_name_is_no_backend(start_proxy, strict_dc, authority):
    """No password goes to it, and the log says whose certificate it has."""
    proxy = start_proxy(
        [f"{strict_dc.address}:{LDAPS}"], ready=False,
        pool=f'protocol = "ldaps"\nca_file = "{authority.ca}"\nserver_name = "dc9.corp.example.com"',
    )
    words = f"the backend's certificate is for {HOST_NAME}, {strict_dc.address}, not for"
    eventually(lambda: words in proxy.log(), "the log says whose certificate it has")
    assert proxy.metrics().sum("ldaps_proxy_backend_up") == 0
    assert bind(proxy) == ber.UNAVAILABLE


def test_sessions_with_a_backend_are_resumed(start_proxy, start_backend, certificate, authority):
    """The backend is another ldaps-proxy, which counts. Each connection to it but the first is a resumed one."""
    far = start_proxy(text=config(certificate, [start_backend()], pool='health.probe = "tcp"').replace(
        "[tls]", '[tls]\nsession_tickets = "all"'))
    there = far.endpoint()
    near = start_proxy(
        [f"{there.host}:{there.port}"], pool=f'protocol = "ldaps"\nca_file = "{authority.ca}"\nhealth.interval = "1h"',
    )
    near.wait_for("ldaps_proxy_backend_probe_duration_seconds_count", 1)
    for _ in range(3):
        assert bind(near) == ber.SUCCESS
    metrics = far.metrics()
    assert metrics.sum("ldaps_proxy_handshakes_total", resumed="false") == 1, "the probe's"
    assert metrics.sum("ldaps_proxy_handshakes_total", resumed="true") == 3


def test_a_changed_ca_file_is_read_at_a_reload(start_proxy, start_backend, authority, tmp_path):
    """A regression test: it was read when the pool was made, so that backends with certificates of another CA took a restart. The
    backend is another ldaps-proxy."""
    def reload(proxy):
        done = run([BINARY, "reload", "--admin", f"unix:{proxy.directory / 'admin.sock'}"], check=False)
        return done.returncode, done.stdout + done.stderr

    def put(pair):
        shutil.copy(pair.private_key, tmp_path / "key.pem")
        shutil.copy(pair.certificate, tmp_path / "cert.pem")

    new = Authority(tmp_path / "new", "another CA")
    put(authority.issue("far"))
    ca_file = tmp_path / "backend_ca.pem"
    shutil.copy(authority.ca, ca_file)
    files = Certificate(tmp_path / "cert.pem", tmp_path / "key.pem")
    text = config(files, [start_backend()], pool='health.probe = "tcp"', extra='socket = "admin.sock"')
    far = start_proxy(text=text)
    there = far.endpoint()
    pool = f'protocol = "ldaps"\nca_file = "{ca_file}"\nhealth.interval = "1h"'
    text = config(authority.issue("near"), [f"{there.host}:{there.port}"], pool=pool, extra='socket = "admin.sock"')
    near = start_proxy(text=text)
    with RawClient(near.endpoint()) as client:
        assert client.ask(ber.bind, *USERS[0])[-1].result_code == ber.SUCCESS
        put(new.issue("far"))
        assert reload(far)[0] == 0
        assert bind(near) == ber.UNAVAILABLE
        shutil.copy(new.ca, ca_file)
        assert reload(near) == (0, f'pools.directory.ca_file "{ca_file}": replaced\n')
        assert bind(near) == ber.SUCCESS
        for session in json.loads(far.http("/api/v1/sessions")[1])["sessions"]:
            # One of a client that has left may end by itself.
            run([BINARY, "kill", session["id"], "--admin", f"unix:{far.directory / 'admin.sock'}"], check=False)
        assert client.ask(ber.search)[-1].result_code == ber.SUCCESS, "who was there connects anew"
    assert reload(near) == (0, "reloaded, nothing has changed\n"), "it is told once"

    ca_file.write_text("")
    code, told = reload(near)
    assert code == 1 and f"pools.directory.ca_file: {ca_file} is empty" in told
    assert bind(near) == ber.SUCCESS
    authority.issue("near")
    eventually(lambda: "certificates and lists of networks read again" in near.log(), "a certificate has changed")
    assert near.metrics().sum("ldaps_proxy_last_reload_successful") == 0, "which mends no file of a pool"


def test_a_ca_file_that_cannot_be_used_is_told_by_check_and_run(tmp_path, certificate):
    file = tmp_path / "ldaps-proxy.toml"
    (tmp_path / "empty.pem").write_text("")
    file.write_text(config(certificate, ["127.0.0.1:636"], pool='protocol = "ldaps"\nca_file = "empty.pem"'))
    done = check(file)
    assert done.returncode == 1
    assert "empty.pem is empty" in done.stderr and 'ca_file = "empty.pem"' in done.stderr
    started = run([BINARY, "run", "--config", file], check=False)
    assert started.returncode == 1
    assert [*started.stderr.splitlines(), f"{file}: 1 error(s), 0 warning(s)"] == done.stderr.splitlines()
