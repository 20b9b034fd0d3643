"""A FIPS build: what it says it is, and that it refuses what isn't approved.

Not part of the suite, which has no such build: `packaging/fips build`, then
`LDAPS_PROXY_BIN=target/fips/build/debug/ldaps-proxy python3 -m pytest tests/fips.py`.
"""

import re

import pytest

from support import ber
from support.clients import RawClient
from support.process import run
from support.proxy import BINARY, check, config
from support.waiting import eventually

MODULE = r"AWS-LC FIPS \d+\.\d+\.\d+"


@pytest.fixture
def proxy(start_proxy, start_backend, certificate):
    backend = start_backend()
    text = config(certificate, [backend], pool='health.probe = "tcp"').replace("[tls]", '[tls]\npolicy = "fips"')
    return start_proxy(text=text)


def openssl(proxy, *arguments):
    """What s_client says of a handshake."""
    _, port = proxy.endpoint().host, proxy.endpoint().port
    return run(["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-CAfile", proxy.ca, *arguments], check=False)


def test_it_says_what_it_is(proxy):
    said = run([BINARY, "--version"]).stdout
    assert re.search(rf"\({MODULE}", said), said
    [labels] = proxy.metrics().get("ldaps_proxy_build_info")
    assert re.fullmatch(MODULE, dict(labels)["crypto"])
    assert re.search(rf"FIPS mode module={MODULE}", proxy.log()), proxy.log()


@pytest.mark.parametrize("arguments", [
    ("-tls1_3", "-groups", "P-256"), ("-tls1_3", "-groups", "P-384", "-ciphersuites", "TLS_AES_256_GCM_SHA384"),
    ("-tls1_2", "-groups", "P-256"), ("-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384"),
])
def test_what_is_approved_is_served(proxy, arguments):
    done = openssl(proxy, *arguments)
    assert "Verify return code: 0 (ok)" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("arguments", [
    ("-tls1_3", "-ciphersuites", "TLS_CHACHA20_POLY1305_SHA256"), ("-tls1_3", "-groups", "X25519"), ("-tls1_2", "-groups", "X25519"),
    ("-tls1_2", "-cipher", "ECDHE-ECDSA-CHACHA20-POLY1305"), ("-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA256"),
])
def test_what_is_not_is_refused(proxy, arguments):
    done = openssl(proxy, *arguments)
    assert "alert handshake failure" in done.stderr and "Cipher is (NONE)" in done.stdout, done.stdout + done.stderr


def test_tls_12_needs_the_extended_master_secret(proxy):
    gnutls = ["gnutls-cli", "127.0.0.1", "-p", str(proxy.endpoint().port), "--x509cafile", proxy.ca, "--priority"]
    assert "Handshake was completed" in run([*gnutls, "NORMAL:-VERS-ALL:+VERS-TLS1.2"]).stdout
    done = run([*gnutls, "NORMAL:-VERS-ALL:+VERS-TLS1.2:%NO_SESSION_HASH"], check=False)
    assert done.returncode != 0
    eventually(lambda: "extended master secret" in proxy.log(), "the log says why")


def test_ldap_works(proxy):
    with RawClient(proxy.endpoint()) as client:
        assert client.ask(ber.bind, "cn=x", "secret")[-1].result_code == ber.SUCCESS
        assert client.ask(ber.search)[-1].result_code == ber.SUCCESS


def test_another_policy_is_warned_about(certificate, tmp_path):
    file = tmp_path / "ldaps-proxy.toml"
    file.write_text(config(certificate, ["127.0.0.1:389"]).replace("[tls]", '[tls]\npolicy = "intermediate"'))
    done = check(file)
    assert done.returncode == 0 and "this is a FIPS build, but" in done.stderr, done.stderr
