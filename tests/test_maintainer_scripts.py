"""The scripts that the package runs, with stubs for what they call: what a booted system (test_systemd.py) is too slow or too well
for."""

import os
import stat

import pytest

from support.container import REPOSITORY
from support.process import run

LONG_NAME = "directory-front-door." * 4 + "corp.example.com"


@pytest.fixture
def scripts(tmp_path):
    return Scripts(tmp_path)


class Scripts:
    """Copies of the scripts whose places are below a folder, and stubs of commands that note how they were called."""

    def __init__(self, folder):
        self.root, self.stubs, self.calls = folder / "root", folder / "stubs", folder / "calls"
        for made in (self.root / "etc/ldaps-proxy", self.root / "run/systemd/system", self.stubs):
            made.mkdir(parents=True)
        self.calls.touch()
        self.configuration = self.root / "etc/ldaps-proxy/ldaps-proxy.toml"
        self.configuration.write_text("")
        for command in ("getent", "chgrp", "systemctl", "ldaps-proxy"):
            self.stub(command)
        self.stub("install", 'for folder; do :; done; mkdir -p "$folder"')
        self.stub("hostname", "echo ldap.example.com")
        self.install("config/ldaps-proxy-handover")

    def stub(self, command, body=":"):
        """A command that notes its call and does this."""
        self._write(command, f'#!/bin/sh\necho "{command} $*" >> {self.calls}\n{body}\n')

    def install(self, script):
        """The script itself, as a command."""
        text = (REPOSITORY / script).read_text()
        for place in ("/etc/ldaps-proxy", "/run/systemd/system"):
            text = text.replace(place, f"{self.root}{place}")
        self._write(script.rpartition("/")[2], text)

    def run(self, script, *arguments):
        self.install(script)
        name = script.rpartition("/")[2]
        return run([self.stubs / name, *arguments], check=False, env={"PATH": f"{self.stubs}:{os.environ['PATH']}"})

    def configure(self, *before):
        """What the package manager runs after unpacking, with the version before where there was one."""
        return self.run("packaging/debian/postinst", "configure", *before)

    def certificates(self):
        folder = self.root / "etc/ldaps-proxy/certs"
        return {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}

    def _write(self, name, text):
        (self.stubs / name).write_text(text)
        (self.stubs / name).chmod(0o755)


@pytest.mark.parametrize("name", ["ldap.example.com", LONG_NAME], ids=["a name", "a name longer than a common name may be"])
def test_the_installation_makes_a_certificate_for_the_name_of_the_machine(scripts, name):
    scripts.stub("hostname", f"echo {name}")
    done = scripts.configure()
    assert done.returncode == 0, done.stderr
    assert scripts.certificates() == {"private_key.pem": 0o640, "certificate.pem": 0o644}
    file = scripts.root / "etc/ldaps-proxy/certs/certificate.pem"
    told = run(["openssl", "x509", "-in", file, "-noout", "-ext", "subjectAltName"]).stdout
    assert f"DNS:{name}," in told


def test_a_certificate_that_cannot_be_made_leaves_nothing_and_says_why(scripts):
    """The next attempt took the key that was left for a pair, and succeeded."""
    scripts.stub("openssl", 'for word; do [ "$before" != -keyout ] || echo key > "$word"; before=$word; done; echo no luck >&2; exit 1')
    for _ in range(2):
        done = scripts.configure()
        assert done.returncode != 0
        assert "no luck" in done.stderr
        assert scripts.certificates() == {}


PLAIN = "{ path=/usr/bin/ldaps-proxy ; argv[]=/usr/bin/ldaps-proxy run ; ignore_errors=no ; pid=7 }"
ELSEWHERE = PLAIN.replace("run", "run --config /srv/other.toml")
RESTART = "systemctl restart ldaps-proxy.service"


def stub_systemctl(scripts, *, command=PLAIN, restarts=True, socket=False):
    """The service is active, after a restart only if that succeeds."""
    active = scripts.root / "active"
    active.touch()
    scripts.stub("systemctl", f"""case "$*" in
        *is-active*socket) {"true" if socket else "false"} ;;
        *is-active*bridge*) false ;;
        *is-active*) test -e {active} ;;
        show*ExecStart*) echo '{command}' ;;
        restart*) {"true" if restarts else f"rm {active}; false"} ;;
        start*bridge*) false ;;
    esac""")


def test_an_upgrade_does_not_end_what_a_plain_restart_would_not_bring_back(scripts):
    """A plain restart ended the old process, and the words said that it still ran."""
    stub_systemctl(scripts, restarts=False)
    scripts.stub("ldaps-proxy", "echo 'error: unknown key' >&2; exit 1")
    done = scripts.configure("0.1.0")
    assert done.returncode == 0, done.stderr
    assert RESTART not in scripts.calls.read_text()
    assert "the old one still runs" in done.stdout and "unknown key" in done.stderr


def test_an_upgrade_after_which_nothing_runs_says_so(scripts):
    stub_systemctl(scripts, restarts=False)
    done = scripts.configure("0.1.0")
    assert done.returncode == 0, done.stderr
    assert RESTART in scripts.calls.read_text()
    assert "still runs" not in done.stdout and "NOTHING RUNS" in done.stdout and "systemctl restart ldaps-proxy" in done.stdout


def test_an_upgrade_with_the_socket_leaves_the_judgement_to_the_bridge(scripts):
    stub_systemctl(scripts, socket=True)
    done = scripts.configure("0.1.0")
    assert done.returncode == 0, done.stderr
    assert RESTART not in scripts.calls.read_text() and "ldaps-proxy check" not in scripts.calls.read_text()
    assert "the old one still runs" in done.stdout


@pytest.mark.parametrize(
    ("command", "configuration", "asked"),
    [
        (PLAIN, "", True),
        (PLAIN, '# private_key = "${CREDENTIALS_DIRECTORY}/private_key"\n', True),
        (PLAIN, 'private_key = "${CREDENTIALS_DIRECTORY}/private_key"\n', False),
        (ELSEWHERE, "", False),
    ],
    ids=["ours", "credentials in a comment", "credentials", "another command line"],
)
def test_what_check_cannot_see_is_not_checked_before_a_restart(scripts, command, configuration, asked):
    stub_systemctl(scripts, command=command)
    scripts.configuration.write_text(configuration)
    done = scripts.run("config/ldaps-proxy-handover")
    assert done.returncode == 0, done.stderr
    assert ("ldaps-proxy check" in scripts.calls.read_text()) == asked
    assert RESTART in scripts.calls.read_text()
