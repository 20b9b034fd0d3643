"""Certificates are replaced while clients connect: no handshake fails, no session ends, and none is forgotten."""

import itertools
import json
import os
import shutil
import socket
import ssl
import threading
from datetime import UTC, datetime

import pytest

from support import ber
from support.clients import RawClient
from support.process import run
from support.proxy import BINARY, config
from support.waiting import eventually

RELOADS = "ldaps_proxy_reloads_total"
SWAPS = 200


@pytest.fixture(scope="module")
def pairs(authority):
    """Two certificates for the same name, of different keys."""
    return authority.issue("swap-ecdsa"), authority.issue("swap-rsa", rsa=True)


@pytest.fixture
def served(tmp_path, pairs):
    """A directory with `tls.crt` and `tls.key`, and the text of a configuration that names them."""
    put(tmp_path, pairs[0])
    return tmp_path


@pytest.fixture
def proxy(start_proxy, start_backend, served):
    return start_proxy(text=text_for(served, start_backend()))


def text_for(served, backend):
    class Files:
        certificate, private_key = served / "tls.crt", served / "tls.key"

    return config(Files, [backend], pool='health.probe = "tcp"')


def put(directory, pair):
    """Both files, each by rename, as careful tools do: for a moment they don't fit."""
    for source, name in ((pair.private_key, "tls.key"), (pair.certificate, "tls.crt")):
        shutil.copy(source, directory / f"{name}.new")
        os.replace(directory / f"{name}.new", directory / name)


def shown(endpoint):
    """The certificate a new client gets, as DER."""
    with RawClient(endpoint) as client:
        assert client.ask(ber.bind)[-1].result_code == ber.SUCCESS
        return client.socket.getpeercert(binary_form=True)


def der(pair):
    return ssl.PEM_cert_to_DER_cert(pair.certificate.read_text())


class Load:
    """Clients that connect, bind and leave, one after the other in each of `threads`."""

    def __init__(self, endpoint, threads=4):
        self.handshakes, self.seen, self.failures = 0, set(), []
        self._endpoint, self._end = endpoint, threading.Event()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        for thread in self._threads:
            thread.join(60)

    def _work(self):
        while not self._end.is_set():
            try:
                self.seen.add(shown(self._endpoint))
                self.handshakes += 1
            except Exception as error:
                self.failures.append(error)
                return


@pytest.mark.deadline(180)
def test_no_handshake_fails_while_certificates_are_swapped(proxy, served, pairs):
    """200 swaps by rename, each with SIGHUP; what the watcher does by itself comes on top. Between the two renames the pair
    doesn't fit: who reads it then keeps the old one."""
    endpoint = proxy.endpoint()
    with RawClient(endpoint) as bystander, Load(endpoint) as load:
        for swap in range(1, SWAPS + 1):
            done = proxy.metrics().sum(RELOADS)
            put(served, pairs[swap % 2])
            proxy.reload()
            eventually(lambda: proxy.metrics().sum(RELOADS) > done, f"swap {swap} is read", pause=0.005)
        eventually(lambda: shown(endpoint) == der(pairs[SWAPS % 2]), "the last certificate is served")
        assert bystander.ask(ber.search)[-1].result_code == ber.SUCCESS, "a session outlives 200 certificates"
    assert load.failures == []
    assert load.handshakes > SWAPS, "the clients kept coming"
    assert load.seen == {der(pair) for pair in pairs}
    assert proxy.metrics().sum("ldaps_proxy_connections_total", outcome="handshake_failed") == 0


def test_kubernetes_swap_is_followed(start_proxy, start_backend, tmp_path, pairs):
    """A mounted secret: `tls.crt` leads through `..data` to a dated directory, and only `..data` is replaced. No signal."""
    for name, pair in zip(("..2026_01", "..2026_02"), pairs):
        (tmp_path / name).mkdir()
        put(tmp_path / name, pair)
    (tmp_path / "..data").symlink_to("..2026_01")
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    proxy = start_proxy(text=text_for(tmp_path, start_backend()))
    endpoint = proxy.endpoint()
    assert shown(endpoint) == der(pairs[0])
    with Load(endpoint, threads=1) as load:
        (tmp_path / "..data_tmp").symlink_to("..2026_02")
        os.replace(tmp_path / "..data_tmp", tmp_path / "..data")
        shutil.rmtree(tmp_path / "..2026_01")
        eventually(lambda: shown(endpoint) == der(pairs[1]), "the new certificate is served")
    assert load.failures == []


def test_files_that_a_reload_names_are_followed(start_proxy, start_backend, tmp_path, pairs):
    """A regression test: those of the first configuration were followed until one of them changed, so that a certificate in
    another place was served past its end."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        put(tmp_path / name, pairs[0])
    proxy = start_proxy(text=text_for(tmp_path / "first", start_backend()))
    proxy.config_file.write_text(proxy.config_file.read_text().replace("/first/", "/second/"))
    proxy.reload()
    proxy.wait_for(RELOADS, 1, result="applied")
    put(tmp_path / "second", pairs[1])
    eventually(lambda: shown(proxy.endpoint()) == der(pairs[1]), "the renewed one is served")


def test_a_bad_pair_is_refused_counted_and_the_old_one_stays(proxy, served, pairs):
    endpoint = proxy.endpoint()
    with RawClient(endpoint) as client:
        shutil.copy(pairs[1].certificate, served / "tls.crt")
        proxy.reload()
        eventually(lambda: proxy.metrics().sum(RELOADS, result="rejected") >= 1, "the reload is refused")
        assert "the private key doesn't match the certificate" in proxy.log()
        assert shown(endpoint) == der(pairs[0])
        assert client.ask(ber.search)[-1].result_code == ber.SUCCESS
    shutil.copy(pairs[1].private_key, served / "tls.key")
    proxy.reload()
    eventually(lambda: shown(endpoint) == der(pairs[1]), "the pair fits again and is served")


def test_a_good_certificate_heals_no_rejected_configuration(proxy, served, pairs):
    """A regression test: whatever was reloaded last decided `last_reload_successful`, so that a certificate renewed after a
    rejected configuration ended the alert, and the running configuration was still the old one."""
    successful = "ldaps_proxy_last_reload_successful"
    good = proxy.config_file.read_text()
    proxy.config_file.write_text(good + "\n[nonsense]\n")
    proxy.reload()
    proxy.wait_for(RELOADS, 1, result="rejected")
    put(served, pairs[1])
    proxy.wait_for(RELOADS, 1, result="applied")
    assert shown(proxy.endpoint()) == der(pairs[1])
    assert proxy.metrics().sum(successful) == 0
    last = json.loads(proxy.http("/api/v1/status")[1])["last_reload"]
    assert not last["applied"] and "nonsense" in " ".join(last["lines"])

    proxy.config_file.write_text(good)
    proxy.reload()
    proxy.wait_for(successful, 1)
    shutil.copy(pairs[0].certificate, served / "tls.crt")
    proxy.wait_for(successful, 0)
    rejected = proxy.metrics().sum(RELOADS, result="rejected")
    proxy.reload()
    eventually(lambda: proxy.metrics().sum(RELOADS, result="rejected") > rejected, "the signal finds the same")
    shutil.copy(pairs[0].private_key, served / "tls.key")
    # The files were wrong, not the configuration, and now they are right: nobody need ask again.
    proxy.wait_for(successful, 1)
    last = json.loads(proxy.http("/api/v1/status")[1])["last_reload"]
    assert last["applied"] and "tls.crt" in last["lines"][0]


def test_a_reload_says_which_certificates_were_replaced(start_proxy, start_backend, served, pairs):
    """Its answer was that nothing has changed. What the watcher has seen first is told in the log alone, so it is asked again
    with the other pair."""
    socket = served / "admin.sock"
    proxy = start_proxy(text=text_for(served, start_backend()) + f'socket = "{socket}"\n')
    shown_first = itertools.cycle(reversed(pairs))

    def told():
        put(served, next(shown_first))
        return run([BINARY, "reload", "--admin", f"unix:{socket}"]).stdout.splitlines()

    lines = eventually(lambda: [line for line in told() if line.startswith("certificate ")], "the replacement is told")
    assert len(lines) == 1 and str(served / "tls.crt") in lines[0] and "now CN=swap-" in lines[0]
    certificates = json.loads(proxy.http("/api/v1/certificates")[1])
    assert lines[0].endswith(f" until {datetime.fromtimestamp(certificates[0]['not_after'], UTC).date()}")


def test_sessions_are_resumed_across_a_reload(proxy, served, authority):
    """A reload reads all files again, even a renewed certificate; no client pays with a whole handshake."""
    renewed = authority.issue("swap-renewed")
    context = ssl.create_default_context(cafile=proxy.ca)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    endpoint = proxy.endpoint()

    def connect(session=None):
        plain = socket.create_connection((endpoint.host, endpoint.port), 30)
        with context.wrap_socket(plain, server_hostname=endpoint.host, session=session) as secure:
            return secure.session_reused, secure.session

    _, session = connect()
    put(served, renewed)
    proxy.reload()
    eventually(lambda: shown(endpoint) == der(renewed), "the new certificate is served")
    assert connect(session)[0]
    proxy.wait_for("ldaps_proxy_handshakes_total", 1, version="1.2", resumed="true")
    proxy.wait_for("ldaps_proxy_handshakes_total", 1, version="1.2", resumed="false")


def test_a_certificate_near_its_end_is_told_at_the_start(start_proxy, start_backend, authority):
    """In the log, where it comes again every day, once; and as a diagnostic."""
    soon = authority.issue("soon", days=40)
    proxy = start_proxy(text=config(soon, [start_backend()], pool='health.probe = "tcp"'))

    def lines():
        return [line for line in proxy.log().splitlines() if "(CN=soon) ends in " in line]

    eventually(lambda: len(lines()) >= 2, "both are there")
    assert sorted("WARN" in line for line in lines()) == [False, True], lines()
