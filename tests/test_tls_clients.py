"""Clients of every common TLS library bind and search through the proxy; and say what they always say of an issuer they
don't know.

OpenSSL: Python's ssl, and the openssl command. GnuTLS: Debian's ldapsearch (and Samba's, in test_samba.py and
tls_samba.rs). Java and Node bring their own.
"""

import os
import ssl
from pathlib import Path

import pytest

from support import ber, slapd as directory
from support.certs import Authority
from support.clients import RawClient, tool
from support.process import run

PROGRAMS = Path(__file__).parent / "programs"
HANDSHAKES = "ldaps_proxy_handshakes_total"
VERSIONS = ["1.2", "1.3"]
MODES = ["ldaps", "starttls"]


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """A CA that signed nothing here."""
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger CA").ca


@pytest.fixture
def proxy(start_proxy, certificate, slapd):
    return start_proxy([slapd.backend], extra=f"""
[[listener]]
name = "ldap"
address = "127.0.0.1:0"
protocol = "ldap"
trusted_networks = ["127.0.0.1/32"]
pool = "directory"
tls.certificate = "{certificate.certificate}"
tls.private_key = "{certificate.private_key}"
""")


def arguments(proxy, mode, ca=None):
    """What the programs in `programs/` take, for a search that finds one number."""
    endpoint = proxy.endpoint("ldaps" if mode == "ldaps" else "ldap")
    return [mode, endpoint.host, endpoint.port, ca or endpoint.ca, *directory.ALICE, directory.PEOPLE, "(uid=p00042)",
            "telephoneNumber"]


NUMBER = "+49 30 0000042\n"


def java(proxy, mode, version="1.3", **options):
    return run(
        ["java", f"-Djdk.tls.client.protocols=TLSv{version}", "-XX:TieredStopAtLevel=1", PROGRAMS / "Search.java",
         *arguments(proxy, mode, **options)],
        check=False, seconds=90,
    )


def node(proxy, mode, version="1.3", **options):
    return run(
        ["node", f"--tls-min-v{version}", f"--tls-max-v{version}", PROGRAMS / "search.js", *arguments(proxy, mode, **options)],
        check=False, seconds=60, env={**os.environ, "NODE_PATH": "/usr/share/nodejs"},
    )


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("client", [java, node])
def test_a_program_finds_its_answer(proxy, client, mode, version):
    done = client(proxy, mode, version)
    assert (done.returncode, done.stdout) == (0, NUMBER), done.stderr
    listener = "ldaps" if mode == "ldaps" else "ldap"
    assert proxy.metrics().sum(HANDSHAKES, listener=listener, version=version) == 1


@pytest.mark.parametrize(("client", "words"), [
    (java, "PKIX path building failed"),
    (node, "unable to verify the first certificate"),
])
def test_a_program_that_doesn_t_know_the_issuer_says_so(proxy, stranger, client, words):
    done = client(proxy, "ldaps", ca=stranger)
    assert done.returncode == 1
    assert words in done.stderr


@pytest.mark.parametrize("version", VERSIONS)
def test_gnutls_and_openssl(proxy, version):
    """GnuTLS by Debian's ldapsearch, OpenSSL by Python, each held to one version."""
    priority = f"NORMAL:-VERS-ALL:+VERS-TLS{version}"
    endpoint = proxy.endpoint()
    done = tool(
        "ldapsearch", endpoint, "-LLL", "-b", directory.PEOPLE, "(uid=p00042)", "telephoneNumber", account=directory.ALICE,
        env={"LDAPTLS_CIPHER_SUITE": priority},
    )
    assert NUMBER in done.stdout
    assert proxy.metrics().sum(HANDSHAKES, version=version) == 1
    held = ssl.TLSVersion.TLSv1_2 if version == "1.2" else ssl.TLSVersion.TLSv1_3
    with RawClient(endpoint, tls_version=held) as client:
        assert client.bind(directory.ALICE).ask(ber.search)[-1].result_code == ber.SUCCESS
    assert proxy.metrics().sum(HANDSHAKES, version=version) == 2
