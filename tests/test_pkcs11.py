"""Private keys in a token: SoftHSM, behind a module that can be slow, lose its sessions or have no token (needs a build with
the feature `pkcs11`: `cargo build --features pkcs11`, and a C compiler)."""

import os
import ssl
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from support import ber
from support.attacks import client_hello
from support.certs import Certificate
from support.clients import RawClient
from support.process import run
from support.proxy import TOKEN_BINARY, Proxy, check, config
from support.soft_token import LABEL, PIN, Token
from support.waiting import eventually

KEYS = {
    "rsa": ("-newkey", "rsa:2048"),
    "p256": ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
    "p384": ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384"),
}
SESSIONS = 3
TLS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
# CKR_… of the standard
DEVICE_REMOVED, PIN_INCORRECT, SESSION_HANDLE_INVALID = "32", "a0", "b3"


@pytest.fixture(scope="module")
def feature():
    if "PKCS#11" not in run([TOKEN_BINARY, "--version"]).stdout:
        pytest.fail(f"{TOKEN_BINARY} is no build with the feature: cargo build --features pkcs11")


@pytest.fixture(scope="module")
def certificates(authority):
    return {name: authority.issue(f"token-{name}", (f"DNS:{name}.example.com", "IP:127.0.0.1"), key=key) for name, key in KEYS.items()}


@pytest.fixture
def token(feature, certificates, tmp_path):
    token = Token(tmp_path / "hsm")
    for number, (name, certificate) in enumerate(certificates.items(), 1):
        token.add(name, number, certificate.private_key)
    yield token
    token.is_well()


def in_token(certificate, name, token, uri=None):
    """The lines of a `[tls]` table."""
    return f"""certificate = "{certificate.certificate}"
private_key = "{uri or f'pkcs11:token={LABEL};object={name};type=private'}"
private_key_passphrase_file = "{token.pin_file}"
pkcs11_module = "{token.module}"
pkcs11_sessions = {SESSIONS}
"""


def configuration(backend, tables):
    """A configuration with these lines in `[tls]` and in one `[[tls.additional]]` each."""
    text = config(Certificate("", ""), [backend], pool='health.probe = "tcp"')
    keys = 'certificate = ""\nprivate_key = ""\n'
    assert keys in text
    return text.replace(keys, "[[tls.additional]]\n".join(tables))


@pytest.fixture
def settings(token, certificates, start_backend):
    """The text with all three keys; or with one, `uri` instead of its own."""
    backend = start_backend()

    def text(*names, uri=None):
        return configuration(backend, [in_token(certificates[name], name, token, uri) for name in names or KEYS])

    return text


@pytest.fixture
def start(token, settings, authority, tmp_path):
    with ExitStack() as stack:

        def start(*names, extra=""):
            proxy = stack.enter_context(Proxy(settings(*names) + extra, tmp_path, ca=authority.ca, env=token.env, binary=TOKEN_BINARY))
            stack.callback(token.is_well)
            stack.callback(_no_pin_in, proxy)
            return proxy

        yield start


def _no_pin_in(proxy):
    assert PIN not in proxy.log()


def served(proxy):
    with RawClient(proxy.endpoint()) as client:
        return client.ask(ber.search)[-1].result_code == ber.SUCCESS


def is_refused(proxy):
    try:
        return not served(proxy)
    except ssl.SSLError:
        return True


def test_openssl_and_gnutls_verify_what_the_token_signs(start):
    proxy = start()
    ca, (_, port) = proxy.ca, (proxy.endpoint().host, proxy.endpoint().port)
    openssl = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-CAfile", ca, "-verify_return_error"]
    signatures = {"rsa": "RSA-PSS", "p256": "ECDSA", "p384": "ECDSA"}
    for name in KEYS:
        host = f"{name}.example.com"
        for version in TLS:
            option = "-tls" + version.replace(".", "_")
            said = run([*openssl, option, "-servername", host, "-verify_hostname", host]).stdout
            assert f"Peer signature type: {signatures[name]}" in said and "Verify return code: 0 (ok)" in said, said
            priority = f"NORMAL:-VERS-ALL:+VERS-TLS{version}"
            said = run(["gnutls-cli", "127.0.0.1", "-p", port, "--x509cafile", ca, "--sni-hostname", host, "--verify-hostname", host,
                        "--priority", priority]).stdout
            assert "The certificate is trusted" in said and "Handshake was completed" in said, said
    said = run([*openssl, "-tls1_3", "-groups", "secp521r1:secp384r1"]).stdout
    assert "secp384r1" in said and "Verify return code: 0 (ok)" in said, "after a HelloRetryRequest, too"
    for digest in ("SHA256", "SHA384", "SHA512"):
        said = run([*openssl, "-tls1_2", "-servername", "rsa.example.com", "-sigalgs", f"RSA+{digest}"]).stdout
        assert f"Peer signing digest: {digest}\n" in said and "Peer signature type: RSA\n" in said, said
        said = run([*openssl, "-tls1_3", "-servername", "rsa.example.com", "-sigalgs", f"rsa_pss_rsae_{digest.lower()}:ecdsa_secp256r1_sha256"]).stdout
        assert f"Peer signing digest: {digest}\n" in said and "Peer signature type: RSA-PSS\n" in said, said
    assert proxy.metrics().sum("ldaps_proxy_token_sign_duration_seconds_count") >= 18
    assert "ldaps_proxy_token_sign_failures_total" not in {name for name, value in proxy.metrics().series.items() if value}


@pytest.mark.parametrize("name", KEYS)
def test_a_thousand_handshakes_at_once(start, token, certificates, name):
    proxy = start(name)
    with ThreadPoolExecutor(24) as clients:
        assert all(clients.map(lambda _: served(proxy), range(1000)))
    signed = proxy.metrics().sum("ldaps_proxy_token_sign_duration_seconds_count", certificate=str(certificates[name].certificate))
    assert signed == 1000
    assert token.calls("C_OpenSession") <= SESSIONS, "sessions are kept, and no more of them than allowed"
    assert token.calls("C_Initialize") == 1


def test_while_the_token_is_slow_sessions_go_on(start, token):
    """Signing on the threads that serve sessions would stop them all: there are fewer than `waiting` handshakes."""
    proxy = start("rsa")
    waiting = 24
    with RawClient(proxy.endpoint()) as client, ThreadPoolExecutor(waiting) as clients:
        before = token.calls("C_SignInit")
        token.has_trouble("C_SignInit wait")
        handshakes = [clients.submit(served, proxy) for _ in range(waiting)]
        eventually(lambda: token.calls("C_SignInit") - before == SESSIONS, "as many signatures as allowed are being made")
        for _ in range(200):
            assert client.ask(ber.search)[-1].result_code == ber.SUCCESS
        assert proxy.http("/readyz")[0] == 200
        assert token.calls("C_SignInit") - before == SESSIONS
        assert not any(handshake.done() for handshake in handshakes)
        token.is_well()
        assert all(handshake.result() for handshake in handshakes)


@pytest.mark.parametrize("by", ["signal", "file"])
def test_nobody_waits_for_a_reload_that_waits_for_the_token(start, token, certificates, by):
    proxy = start("rsa")
    with RawClient(proxy.endpoint()) as client:
        before = token.calls("C_SignInit")
        token.has_trouble("C_SignInit wait")
        if by == "signal":
            proxy.reload()
        else:
            certificates["rsa"].certificate.write_text(certificates["rsa"].certificate.read_text() + "\n")
        eventually(lambda: token.calls("C_SignInit") > before, "the key is tried")
        for _ in range(50):
            assert client.ask(ber.search)[-1].result_code == ber.SUCCESS
            assert proxy.http("/api/v1/status")[0] == 200
        assert proxy.metrics().sum("ldaps_proxy_reloads_total", result="applied") == 0
        token.is_well()
        proxy.wait_for("ldaps_proxy_reloads_total", 1, result="applied")


def test_a_reload_that_waits_for_the_token_holds_up_no_end(start, token):
    """A regression test: SIGTERM was read once the token had answered, or PATIENCE was over."""
    proxy = start("rsa")
    before = token.calls("C_SignInit")
    token.has_trouble("C_SignInit wait")
    proxy.reload()
    eventually(lambda: token.calls("C_SignInit") > before, "the key is tried")
    proxy.terminate()
    assert proxy.wait() == 0
    assert "the reload is given up" in proxy.log() and "reload refused" not in proxy.log()


def test_a_token_that_blocks_keeps_no_more_sockets_than_it_has_sessions(start, token):
    """A regression test: handshakes went to the token's threads, where those that had timed out kept their sockets, past
    `max_connections`, for as long as the token blocked."""
    proxy = start("rsa", extra='[limits]\nhandshake_timeout = "1s"')
    descriptors = Path(f"/proc/{proxy.process.pid}/fd")

    def sockets():
        return sum(os.readlink(one).startswith("socket:") for one in descriptors.iterdir())

    crowd = 4 * SESSIONS
    before = sockets()
    token.has_trouble("C_SignInit wait")
    with ThreadPoolExecutor(2 * crowd) as clients:
        for crowds in (1, 2):
            refused = [clients.submit(is_refused, proxy) for _ in range(crowd)]
            proxy.wait_for("ldaps_proxy_connections_total", crowds * crowd, outcome="handshake_timeout")
            eventually(lambda: sockets() <= before + SESSIONS, "only those being signed for are open")
        token.is_well()
        assert all(client.result() for client in refused)
    assert served(proxy)


def test_clients_that_stall_after_our_hello_hold_no_thread(start):
    proxy = start("p256")
    with ExitStack() as stack:
        for _ in range(3 * SESSIONS):
            client = stack.enter_context(RawClient(proxy.endpoint(tls=False)))
            client.socket.sendall(client_hello())
            assert client.socket.recv(1), "the token has signed"
        assert served(proxy)


def test_clients_that_say_nothing_hold_no_thread(start):
    proxy = start("p256")
    silent = [RawClient(proxy.endpoint(tls=False)) for _ in range(3 * SESSIONS)]
    assert served(proxy)
    for client in silent:
        client.close()


@pytest.mark.parametrize("code", [SESSION_HANDLE_INVALID, DEVICE_REMOVED])
def test_a_lost_session_costs_no_handshake(start, token, code):
    proxy = start("p384")
    token.has_trouble(f"C_SignInit {code} once")
    opened = token.calls("C_OpenSession")
    assert served(proxy)
    assert token.trouble_is_over
    assert "doesn't sign" not in proxy.log()
    assert (token.calls("C_OpenSession"), token.calls("C_Initialize")) == (opened + 1, 1), "another session is enough"


def test_a_token_that_leaves_and_comes_back(start, token):
    """SoftHSM notices on C_Initialize only; other modules lose the session too. Sessions of clients stay all the while."""
    proxy = start("rsa")
    with RawClient(proxy.endpoint()) as client:
        assert client.ask(ber.search)[-1].result_code == ber.SUCCESS
        token.leave()
        token.has_trouble(f"C_SignInit {DEVICE_REMOVED}")
        assert is_refused(proxy)
        token.is_well()
        assert "the token doesn't sign" in proxy.log() and "no token matches" in proxy.log()
        asked = token.calls("C_Initialize")
        for _ in range(20):
            assert is_refused(proxy)
        assert token.calls("C_Initialize") - asked <= 2, "it is looked for now and then, not for each handshake"
        assert proxy.metrics().sum("ldaps_proxy_token_sign_failures_total") > 20
        assert client.ask(ber.search)[-1].result_code == ber.SUCCESS
        token.come_back()
        eventually(lambda: not is_refused(proxy), "handshakes succeed again")
        assert "the token signs again" in proxy.log()
        assert client.ask(ber.search)[-1].result_code == ber.SUCCESS


def test_a_pin_that_was_changed_is_tried_once(start, token):
    """Tokens lock after a few wrong ones."""
    proxy = start("rsa")
    before = token.calls("C_Login")
    # The first ends the login together with the session, the second is what the token answers to the old PIN.
    token.has_trouble(f"C_SignInit {SESSION_HANDLE_INVALID} once")
    assert served(proxy) and token.calls("C_Login") == before + 1
    token.leave()
    token.has_trouble(f"C_SignInit {DEVICE_REMOVED}")
    assert is_refused(proxy)
    token.come_back()
    token.has_trouble(f"C_Login {PIN_INCORRECT}")
    before = token.calls("C_Login")
    eventually(lambda: is_refused(proxy) and token.calls("C_Login") > before, "the PIN is tried")
    for _ in range(20):
        assert is_refused(proxy)
    assert token.calls("C_Login") == before + 1
    assert "CKR_PIN_INCORRECT" in proxy.log()
    token.is_well()
    proxy.reload()
    eventually(lambda: not is_refused(proxy), "a reload tries again")


def test_a_pin_that_was_changed_is_tried_once_by_all_together(start, token):
    """A regression test: each of the handshakes under way tried it."""
    proxy = start("rsa")
    token.has_trouble(f"C_SignInit {SESSION_HANDLE_INVALID}\nC_Login wait")
    before = token.calls("C_Login")
    with ThreadPoolExecutor(SESSIONS) as clients:
        handshakes = [clients.submit(is_refused, proxy) for _ in range(SESSIONS)]
        eventually(lambda: token.calls("C_Login") > before, "the PIN is tried")
        token.has_trouble(f"C_Login {PIN_INCORRECT}")
        assert all(handshake.result() for handshake in handshakes)
    assert token.calls("C_Login") == before + 1
    token.is_well()
    proxy.reload()
    eventually(lambda: not is_refused(proxy), "a reload tries again")


def test_sessions_that_are_logged_in_go_on_after_a_pin_was_refused(start, token):
    """The success of one doesn't have the PIN tried again."""
    proxy = start("rsa")
    before = token.calls("C_Login")
    for _ in range(2):
        token.has_trouble(f"C_SignInit wait\nC_Login {PIN_INCORRECT}")
        signed = token.calls("C_SignInit")
        with ThreadPoolExecutor(1) as client:
            handshake = client.submit(served, proxy)
            eventually(lambda: token.calls("C_SignInit") > signed, "the one session signs")
            assert is_refused(proxy)
            token.is_well()
            assert handshake.result()
    assert token.calls("C_Login") == before + 1


def test_the_module_is_not_started_again_while_sessions_are_being_closed(start, token):
    """A regression test: C_Finalize while another thread is in the library is undefined behaviour."""
    proxy = start("rsa", extra="[runtime]\nworkers = 2")
    token.has_trouble("C_CloseSession wait once")
    proxy.reload()
    eventually(lambda: token.waits_once, "the sessions of before the reload are being closed")
    token.has_trouble(f"C_SignInit {DEVICE_REMOVED}")
    assert is_refused(proxy)
    assert token.waits_once and token.calls("C_Finalize") == 0
    token.is_well()
    eventually(lambda: not is_refused(proxy), "handshakes succeed again")


def test_a_renewed_certificate_is_swapped_in(start, token, authority, certificates):
    proxy = start("p256")
    with RawClient(proxy.endpoint()) as before, RawClient(proxy.endpoint()) as client:
        old = before.socket.getpeercert()["serialNumber"]
        renewed = authority.issue("renewed", key=KEYS["p256"])
        kept = certificates["p256"].certificate.read_text()
        # The new certificate belongs to another key: refused, and the old one stays.
        certificates["p256"].certificate.write_text(renewed.certificate.read_text())
        try:
            eventually(lambda: "doesn't match the certificate" in proxy.log(), "the wrong certificate is refused")
            assert served(proxy)
            token.add("renewed", 9, renewed.private_key)
            proxy.config_file.write_text(proxy.config_file.read_text().replace("object=p256", "object=renewed"))
            proxy.reload()

            def serial():
                with RawClient(proxy.endpoint()) as fresh:
                    return fresh.socket.getpeercert()["serialNumber"]

            eventually(lambda: serial() != old, "the new one is served")
            assert client.ask(ber.search)[-1].result_code == ber.SUCCESS
        finally:
            certificates["p256"].certificate.write_text(kept)


@pytest.mark.parametrize("uri, words", [
    (f"pkcs11:token={LABEL};object=nothing", ["no private key matches", "object=rsa;id=%01", "object=p384;id=%03"]),
    (f"pkcs11:token={LABEL};id=%ff", ["no private key matches", "object=p256;id=%02"]),
    ("pkcs11:token=elsewhere;object=rsa", ["no token matches", f"it has token={LABEL};serial="]),
    (f"pkcs11:token={LABEL};object=p256", ["the token's key is CKK_EC, the certificate's CKK_RSA"]),
    (f"pkcs11:token={LABEL};object=other", ["doesn't match the certificate"]),
    (f"pkcs11:token={LABEL};type=private;object=rsa?module-path=/nowhere.so", ["/nowhere.so is no PKCS#11 module"]),
])
def test_what_is_wrong_is_said_before_it_starts(token, settings, authority, tmp_path, uri, words):
    token.add("other", 7, authority.issue("other-rsa", key=KEYS["rsa"]).private_key)
    file = tmp_path / "ldaps-proxy.toml"
    file.write_text(settings("rsa", uri=uri))
    unasked = check(file, binary=TOKEN_BINARY, env=token.env)
    assert (unasked.returncode, token.calls("C_Initialize")) == (0, 0), unasked.stderr
    for command in (["check", "--probe"], ["run"]):
        done = run([TOKEN_BINARY, *command, "--config", file], check=False, env=token.env)
        assert done.returncode == 1 and all(word in done.stderr for word in words), done.stderr


def test_check_probes_the_token_by_a_signature(token, settings, tmp_path):
    file = tmp_path / "ldaps-proxy.toml"
    file.write_text(settings())
    done = check(file, "--probe", binary=TOKEN_BINARY, env=token.env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("signs for") == 3 and token.calls("C_SignInit") == 3, done.stdout
    token.has_trouble("C_SignInit 70")
    done = check(file, "--probe", binary=TOKEN_BINARY, env=token.env)
    assert done.returncode == 1 and "CKR_MECHANISM_INVALID to C_SignInit" in done.stderr, done.stderr
    assert f"{file}:" in done.stderr and "private_key" in done.stderr


@pytest.mark.parametrize("pin, words", [
    ("wrong-pin", "CKR_PIN_INCORRECT"), ("", "is empty"), (None, "doesn't exist"),
])
def test_a_wrong_pin_is_shown_once(token, settings, tmp_path, pin, words):
    file = tmp_path / "ldaps-proxy.toml"
    file.write_text(settings("rsa"))
    token.pin_file.unlink() if pin is None else token.pin_file.write_text(pin)
    done = run([TOKEN_BINARY, "run", "--config", file], check=False, env=token.env)
    assert done.returncode == 1 and words in done.stderr, done.stderr
    assert "wrong-pin" not in done.stderr
    assert token.calls("C_Login") == (1 if pin else 0)


def test_a_build_without_the_feature_says_so(token, settings, tmp_path):
    file = tmp_path / "ldaps-proxy.toml"
    file.write_text(settings("rsa"))
    done = check(file)
    assert done.returncode == 1 and "--features pkcs11" in done.stderr, done.stderr
