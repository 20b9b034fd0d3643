"""The binary under test: its configuration, its process, its ports, its metrics."""

import http.client
import json
import os
import re
import signal
import socket
from pathlib import Path

from . import ledger, reconcile
from .clients import Endpoint
from .process import Process, run
from .waiting import eventually

BINARY = Path(os.environ.get("LDAPS_PROXY_BIN") or Path(__file__).parents[2] / "target" / "release" / "ldaps-proxy")


TOKEN_BINARY = Path(os.environ.get("LDAPS_PROXY_PKCS11_BIN") or Path(__file__).parents[2] / "target" / "debug" / "ldaps-proxy")
"""A build with the feature `pkcs11`."""


def config(certificate, backends, *, trusted=("127.0.0.1/32",), listener="", pool="", extra=""):
    """The contract's smallest configuration on ephemeral ports, for TOML lines to be added to each table."""
    return f"""
[[listener]]
name = "ldaps"
address = "127.0.0.1:0"
trusted_networks = {list(trusted)}
pool = "directory"
{listener}

[tls]
certificate = "{certificate.certificate}"
private_key = "{certificate.private_key}"

[pools.directory]
backends = [{", ".join(map(_backend, backends))}]
{pool}

[admin]
address = "127.0.0.1:0"
{extra}
"""


def _backend(backend):
    """An address, or a table that is TOML already."""
    return str(backend) if str(backend).startswith("{") else repr(str(backend))


class Proxy:
    """`ldaps-proxy run` with `configuration`, a TOML text whose addresses may have port 0.

    Entering starts it and waits until every listener and the admin address are named in its log and, with `ready`,
    until `/readyz` says so. Leaving ends it. `under` is a command that becomes the proxy, such as `prlimit`. `running` holds
    those entered, for the report of a failed test. One whose configuration says nothing of an access log writes one, which
    is reconciled at the end.
    """

    running = []

    def __init__(self, configuration, directory, *, ca=None, ready=True, arguments=(), env=None, under=(), binary=BINARY):
        self.ca = ca
        self.directory = Path(directory)
        self.config_file = self.directory / "ldaps-proxy.toml"
        self.access_log = self.directory / "reconciled.log" if "[access_log]" not in configuration else None
        if self.access_log:
            configuration += f'\n[access_log]\noutput = "file"\npath = "{self.access_log}"\n'
        self.config_file.write_text(configuration)
        self._ready, self._arguments, self._env, self._under, self._binary = ready, arguments, env, under, binary
        self._listeners = len(re.findall(r"^\s*\[\[listener\]\]", configuration, re.MULTILINE))
        self.process = None

    def __enter__(self):
        self.process = Process(
            [*self._under, self._binary, "run", "--config", self.config_file, *self._arguments],
            directory=self.directory, env={"NO_COLOR": "1", **(self._env or {})},
        )
        Proxy.running.append(self)
        try:
            eventually(self._announced, "the log names every listener and the admin address")
            ledger.take(self.ports())
            if self._ready:
                eventually(lambda: self.http("/readyz")[0] == 200, "/readyz answers 200")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, failed, *_):
        conversations = ledger.take(self.ports())
        self._end()
        if self.access_log and not failed:
            whole = self.process.returncode() == 0
            reconcile.check(self.access_log, whole, conversations, ledger.answers, self.config_file.read_text())

    def endpoint(self, listener="ldaps", *, tls=True):
        """Where clients reach a listener."""
        host, port = self._addresses()[listener]
        return Endpoint(host, port, self.ca if tls else None)

    def ports(self):
        """Every port a listener has had."""
        return {port for _, (_, port) in self._listening()}

    @property
    def admin(self):
        """`(host, port)` of the admin address."""
        return _address(re.search(r'admin listening address="?([^\s"]+)', self.log()))

    def log(self):
        """What it wrote to standard error so far, without colours."""
        return re.sub(r"\x1b\[[0-9;]*m", "", self.process.stderr())

    @property
    def health(self):
        """`(host, port)` of the health address."""
        return _address(re.search(r'health listening address="?([^\s"]+)', self.log()))

    def http(self, path, *, method="GET", address=None):
        """`(status, body)` of a request on the admin address, or another one."""
        connection = http.client.HTTPConnection(*(address or self.admin), timeout=10)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def metrics(self):
        status, body = self.http("/metrics")
        assert status == 200, body
        return Metrics(body)

    def wait_for(self, name, value, seconds=20, **labels):
        """Waits until the series of `name` with at least these labels add up to `value`."""
        def adds_up():
            series = self.metrics().get(name, **labels)
            return series and sum(series.values()) == value

        eventually(adds_up, f"{name}{labels} is {value}", seconds)

    def told(self, *, sessions):
        """The records of its access log, once this many sessions have ended."""
        def records():
            return [json.loads(line) for line in self.access_log.read_text().splitlines()]

        eventually(lambda: [record["event"] for record in records()].count("session") == sessions, f"{sessions} sessions are told")
        return records()

    def accepts(self, listener="ldaps"):
        """Whether a TCP connect to the listener succeeds now."""
        host, port = self._addresses()[listener]
        try:
            socket.create_connection((host, port), 5).close()
        except ConnectionRefusedError:
            return False
        return True

    def reload(self):
        self.process.signal(signal.SIGHUP)

    def terminate(self):
        self.process.signal(signal.SIGTERM)

    def wait(self, seconds=30):
        """Its exit code."""
        return self.process.wait(seconds)

    def _end(self):
        self.process.close()
        Proxy.running.remove(self)

    def _announced(self):
        if (code := self.process.returncode()) is not None:
            raise AssertionError(f"ldaps-proxy exited {code} at its start:\n{self.log()}")
        return len(self._addresses()) >= self._listeners and "admin listening" in self.log()

    def _addresses(self):
        """By listener; one that a reload moved has its newest."""
        return dict(self._listening())

    def _listening(self):
        lines = re.finditer(r'listening listener="?([^\s"]+)"? address="?([^\s"]+)', self.log())
        return [(line[1], _address(line, 2)) for line in lines]


class Metrics:
    """One scrape: series by name and labels."""

    def __init__(self, text):
        self.series = {}
        for line in text.splitlines():
            if line and not line.startswith("#"):
                name, labels, value = _SERIES.fullmatch(line).groups()
                self.series[name, frozenset(_LABEL.findall(labels or ""))] = float(value)

    def names(self):
        return {name for name, _ in self.series}

    def get(self, name, **labels):
        """The values of every series of `name` that has at least these labels, by all their labels."""
        return {have: value for (have_name, have), value in self.series.items()
                if have_name == name and labels.items() <= set(have)}

    def sum(self, name, **labels):
        """The sum over those series; where there is none, the name or a label is wrong: an error."""
        found = self.get(name, **labels)
        assert found, f"no series {name}{labels} among {sorted(self.names())}"
        return sum(found.values())


_SERIES = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def check(config_file, *arguments, binary=BINARY, env=None):
    """`ldaps-proxy check`, run to its end."""
    return run([binary, "check", "--config", config_file, *arguments], check=False, env={**os.environ, **(env or {})})


def _address(match, group=1):
    assert match, "no such line in the log"
    host, _, port = match[group].rpartition(":")
    return host.strip("[]"), int(port)
