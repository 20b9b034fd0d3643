"""`ldaps-proxy check`, and `run` with a configuration that is wrong: every problem with its place and its cure."""

import os
import re
import socket
from pathlib import Path

import pytest

from support.proxy import BINARY, check, config
from support.process import run

DIAGNOSTIC = re.compile(r"^(?P<file>\S+?):(?P<line>\d+):(?P<column>\d+): (?P<kind>error|warning): (?P<text>.+)$", re.MULTILINE)


@pytest.fixture
def good(certificate):
    return config(certificate, ["127.0.0.1:389"])


@pytest.fixture
def checked(tmp_path):
    """Checks a text: `(process, [(kind, the line of the text, message)])`."""

    def look(text, command="check"):
        file = tmp_path / "ldaps-proxy.toml"
        file.write_text(text)
        done = check(file) if command == "check" else run([BINARY, command, "--config", file], check=False, seconds=20)
        lines = text.splitlines()
        found = []
        for match in DIAGNOSTIC.finditer(done.stderr):
            assert match["file"].endswith("ldaps-proxy.toml")
            found.append((match["kind"], lines[int(match["line"]) - 1], match["text"]))
        return done, found

    return look


def test_a_policy_that_this_build_cannot_keep_is_an_error(checked, good):
    done, found = checked(good.replace("[tls]", '[tls]\npolicy = "fips"'))
    assert done.returncode == 1
    [(kind, line, message)] = found
    assert (kind, line) == ("error", 'policy = "fips"') and "not AWS-LC FIPS" in message and "packaging/fips" in done.stderr


def test_a_good_configuration(checked, good):
    done, found = checked(good)
    assert (done.returncode, found) == (0, []), done.stderr


WRONG = {
    "unknown key": ("[admin]", "[admin]\nadress = 1", "adress", "address"),
    "unknown table": ("[admin]", "[amdin]", "amdin", "admin"),
    "value of a closed list": ('pool = "directory"', 'pool = "directory"\nprotocol = "ldap5"', "ldap5", "ldaps"),
    "no such pool": ('pool = "directory"', 'pool = "directry"', "directry", "directory"),
    "bad network": ('"127.0.0.1/32"', '"127.0.0.1/99"', "127.0.0.1/99", ""),
    "bad duration": ("[pools.directory]", '[pools.directory]\nconnect_timeout = "2 parsecs"', "parsecs", ""),
    "wrong type": ("[pools.directory]", '[pools.directory]\nwarm = "some"', "warm", ""),
    "log level": ("[admin]", '[log]\nlevel = "info, /=debug"\n[admin]', "/=debug", "info,ldaps_proxy::health=debug"),
    "base DN": ("[tls]", '[listener.policy]\nbase_dns = ["DC=corp,example"]\n[tls]', "corp,example", "DC=corp,DC=example,DC=com"),
    "address within another": (
        "[pools.directory]",
        """[[listener]]
name = "one"
address = "127.0.0.1:9636"
trusted_networks = ["127.0.0.1"]
pool = "directory"
[health]
address = "0.0.0.0:9636"
[pools.directory]""",
        "0.0.0.0:9636",
        "listener[1].address",
    ),
    "no TOML": ("[admin]", "[admin", "[admin", ""),
}


@pytest.mark.parametrize("command", ["check", "run"])
@pytest.mark.parametrize(("before", "after", "culprit", "cure"), WRONG.values(), ids=WRONG.keys())
def test_errors_name_place_and_cure(checked, good, command, before, after, culprit, cure):
    done, found = checked(re.sub(re.escape(before) + "|" + re.escape(before.replace('"', "'")), lambda _: after, good, count=1), command)
    assert done.returncode == 1
    [line] = [line for kind, line, _ in found if kind == "error"]
    assert culprit in line
    assert "^" in done.stderr
    assert cure in done.stderr.replace(after, "")


def test_several_errors_are_all_told(checked, good):
    _, found = checked(good.replace("[admin]", "[admin]\nadress = 1") + '\n[limits]\nmax_conections = 1\nhandshakes = "x"\n')
    assert len(found) == 3


def test_trusted_networks_must_be_said(checked, good):
    """There is no implicit "everyone"."""
    done, found = checked(re.sub(r"trusted_networks = .*", "", good))
    assert done.returncode == 1
    assert "trusted_networks" in done.stderr


def test_key_of_another_certificate(checked, good, authority, certificate):
    other = authority.issue("other")
    done, found = checked(good.replace(str(certificate.private_key), str(other.private_key)))
    assert done.returncode == 1
    assert found[0][0] == "error"
    assert "match" in done.stderr


def test_missing_file(checked, good, certificate):
    done, _ = checked(good.replace(str(certificate.certificate), "certs/nowhere.pem"))
    assert done.returncode == 1
    assert "nowhere.pem" in done.stderr


def test_warnings_do_not_change_the_exit(checked, good, authority, certificate):
    """A certificate without a subject alternative name: clients will refuse it, the proxy starts."""
    bare = authority.issue("bare", subject_alt_names=())
    done, found = checked(
        good.replace(str(certificate.certificate), str(bare.certificate))
        .replace(str(certificate.private_key), str(bare.private_key))
    )
    assert done.returncode == 0
    assert [kind for kind, _, _ in found] == ["warning"]


def test_a_token_file_that_cannot_be_read_is_warned_of(checked, good, tmp_path):
    """It runs: the token is read for each change."""
    done, found = checked(good.replace("[admin]", f'[admin]\ntoken_file = "{tmp_path}/token"'))
    [(kind, line, message)] = found
    assert (done.returncode, kind) == (0, "warning") and "token_file" in line and "changes over TCP" in message


@pytest.mark.parametrize("table", ["health", "health.deep"])
@pytest.mark.parametrize("content", [None, "\n"], ids=["missing", "empty"])
@pytest.mark.parametrize("kind", ["bind", "search"])
def test_a_probes_password_that_cannot_be_read_is_warned_of(checked, good, tmp_path, table, content, kind):
    """It runs: the password is read for each probe."""
    file = tmp_path / "password"
    if content is not None:
        file.write_text(content)
    probe = f'probe = "{kind}"\nbind_name = "probe@corp.example.com"\nbase = "DC=corp"\npassword_file = "{file}"'
    text = f"{good}\n[pools.directory.{table}]\n{probe}\n"
    done, found = checked(text)
    [(severity, line, message)] = found
    assert (done.returncode, severity) == (0, "warning"), done.stderr
    assert "password_file" in line and "can't log in" in message
    file.write_text("secret\n")
    assert checked(text)[1] == []


NO_LOGS = {
    "its folder isn't there": lambda folder: folder / "missing" / "access.log",
    "its folder is a file": lambda folder: made(folder / "file") / "access.log",
    "it is a folder": lambda folder: folder,
}


def made(file):
    file.touch()
    return file


@pytest.mark.parametrize("command", ["check", "run"])
@pytest.mark.parametrize("place", NO_LOGS.values(), ids=NO_LOGS.keys())
def test_an_access_log_that_cannot_be_opened_is_an_error(checked, good, tmp_path, place, command):
    """`check` passed, so that `systemctl reload` succeeded and changed nothing."""
    done, found = checked(f'{good}\n[access_log]\noutput = "file"\npath = "{place(tmp_path)}"\n', command)
    [(kind, line, message)] = found
    assert (done.returncode, kind) == (1, "error"), done.stderr
    assert "path" in line and "can't open the access log" in message


def test_an_access_log_that_can_be_opened_is_not_made_and_not_changed(checked, good, tmp_path):
    """Root checks what another user runs, and a pipe's reader may come later."""
    fresh, old, pipe = (tmp_path / name for name in ("fresh.log", "old.log", "pipe"))
    old.write_text("a line\n")
    os.mkfifo(pipe)
    for path in (fresh, old, pipe, "/dev/stdout"):
        done, found = checked(f'{good}\n[access_log]\noutput = "file"\npath = "{path}"\n')
        assert (done.returncode, found) == (0, []), done.stderr
    assert old.read_text() == "a line\n" and not fresh.exists()


def test_the_folder_that_the_unit_makes_for_its_log_may_come_later(tmp_path, good):
    """On a machine where the service has never run."""
    file = tmp_path / "ldaps-proxy.toml"
    file.write_text(f'{good}\n[access_log]\noutput = "file"\npath = "/var/log/ldaps-proxy/access.log"\n')
    fresh = ["unshare", "--mount", "sh", "-ec", 'mount -t tmpfs tmpfs /var/log; exec "$@"', "sh"]
    done = run([*fresh, BINARY, "check", "--config", file], check=False)
    [(kind, message)] = [(match["kind"], match["text"]) for match in DIAGNOSTIC.finditer(done.stderr)]
    assert (done.returncode, kind) == (0, "warning") and "LogsDirectory" in done.stderr, message


def test_where_the_admin_socket_cannot_be(checked, good, tmp_path):
    """Its folder may come with the service, something else in its place won't go."""
    def look(path):
        done, found = checked(good.replace("[admin]", f'[admin]\nsocket = "{path}"'))
        assert all("socket" in line for _, line, _ in found)
        return done.returncode, [kind for kind, _, _ in found]

    assert look(tmp_path / "admin.sock") == (0, [])
    assert look(tmp_path / "later" / "admin.sock") == (0, ["warning"])
    assert look("/run/ldaps-proxy/admin.sock") == (0, [])
    assert look(made(tmp_path / "file")) == (1, ["error"])
    assert look(tmp_path / "file" / "admin.sock") == (1, ["error"])
    with socket.socket(socket.AF_UNIX) as running:
        running.bind(str(tmp_path / "running.sock"))
        assert look(tmp_path / "running.sock") == (0, [])


def test_probe_asks_every_backend(tmp_path, certificate, dc, start_backend):
    file = tmp_path / "ldaps-proxy.toml"
    file.write_text(config(certificate, [dc.backend]))
    assert check(file, "--probe").returncode == 0
    gone = start_backend()
    gone.stop_listening()
    file.write_text(config(certificate, [dc.backend, gone]))
    done = check(file, "--probe")
    assert done.returncode == 1
    assert str(gone) in done.stdout + done.stderr


def test_usage_exits_2():
    assert run([BINARY, "nonsense"], check=False).returncode == 2
    assert run([BINARY, "run", "--nonsense"], check=False).returncode == 2
    assert run([BINARY, "--help"]).stdout


def test_relative_paths_are_relative_to_the_file(tmp_path, certificate, start_backend):
    """The contract's smallest configuration as it stands, started from another folder."""
    (tmp_path / "certs").mkdir()
    (tmp_path / "certs/certificate.pem").write_bytes(certificate.certificate.read_bytes())
    (tmp_path / "certs/private_key.pem").write_bytes(certificate.private_key.read_bytes())
    (tmp_path / "certs/private_key.pem").chmod(0o600)
    file = tmp_path / "ldaps-proxy.toml"
    file.write_text("""
[[listener]]
address = "0.0.0.0:636"
trusted_networks = ["10.0.0.0/16"]
pool = "simple-ad"

[tls]
certificate = "certs/certificate.pem"
private_key = "certs/private_key.pem"

[pools.simple-ad]
backends = ["10.0.1.10:389", "10.0.2.10:389"]

[admin]
address = "127.0.0.1:9636"
""")
    done = run([BINARY, "check", "--config", file], check=False, cwd="/")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", ['ticket_key_file = "bad.pem"', 'client_certificates = "required"\nclient_ca = "bad.pem"'])
def test_every_file_of_tls_is_looked_at(checked, good, tmp_path, line):
    (tmp_path / "bad.pem").write_text("nothing of use")
    (tmp_path / "bad.pem").chmod(0o600)
    done, found = checked(good.replace("[tls]", f"[tls]\n{line}"))
    assert done.returncode == 1
    assert [(kind, culprit) for kind, culprit, _ in found] == [("error", line.splitlines()[-1])]
