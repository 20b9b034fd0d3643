"""What the scanners of auditors say: nothing worse than OK."""

import json

import pytest

from support.process import run
from support.proxy import config
from support.pypi import installed

SSLYZE = ("sslyze==6.3.1",)
PASSING = {"OK", "INFO", "DEBUG"}
# testssl.sh findings that are worse and no fault of the proxy.
ACCEPTED = {
    "engine_problem",   # of the OpenSSL the scanner runs on: no GOST
    "cert_revocation",  # the tests' CA has neither CRL nor OCSP
}
SCANS = ("sslv2", "sslv3", "tlsv1", "tlsv1_1", "tlsv1_2", "tlsv1_3", "certinfo", "heartbleed", "robot", "early_data", "fallback",
         "openssl_ccs", "reneg", "compression", "ems", "elliptic_curves")
# Without what asks the Internet or looks for HTTP, and without what sslyze sees in a tenth of the time.
CHECKS = ("-p", "-s", "-S", "-O", "-Z", "-W", "-A", "-L", "-F", "-J", "-D", "-4")


@pytest.fixture(scope="module")
def two_keys(authority, certificate):
    """Lines for [tls]: an RSA certificate beside the ECDSA one, so that the suites of both are seen."""
    other = authority.issue("proxy-rsa", rsa=True)
    return certificate, f'additional = [{{ certificate = "{other.certificate}", private_key = "{other.private_key}" }}]'


def start(start_proxy, two_keys, line=""):
    certificate, additional = two_keys
    text = config(certificate, ["127.0.0.1:1"]).replace("[tls]", f"[tls]\n{additional}\n{line}")
    return start_proxy(text=text, ready=False).endpoint()


@pytest.mark.deadline(300)
def test_testssl_finds_nothing_worse_than_ok(start_proxy, two_keys, tmp_path):
    endpoint, report = start(start_proxy, two_keys), tmp_path / "report.json"
    done = run(
        ["testssl", "--quiet", "--color", 0, "--warnings", "off", "--nodns", "none", "--add-ca", endpoint.ca,
         "--jsonfile", report, *CHECKS, f"{endpoint.host}:{endpoint.port}"],
        check=False, seconds=240,
    )
    findings = json.loads(report.read_text())
    severity = {finding["id"].partition(" ")[0]: finding["severity"] for finding in findings}
    # It really looked: both certificates, both versions, the attacks.
    assert {"TLS1_2", "TLS1_3", "cert_chain_of_trust", "SWEET32", "LUCKY13", "DROWN"} <= severity.keys(), done.stdout
    worse = {finding["id"]: finding["finding"] for finding in findings if finding["severity"] not in PASSING}
    assert {what for what in worse if what.partition(" ")[0] not in ACCEPTED} == set(), worse


@pytest.mark.deadline(500)
@pytest.mark.parametrize("policy", ["intermediate", "modern"])
def test_sslyze_finds_mozilla_s_recommendation_followed(start_proxy, two_keys, tmp_path, policy):
    """https://wiki.mozilla.org/Security/Server_Side_TLS: the policies have their names from there."""
    endpoint, report = start(start_proxy, two_keys, f'policy = "{policy}"'), tmp_path / "report.json"
    done = run(
        [installed("sslyze", SSLYZE) / "sslyze", "--mozilla_config", policy, "--certinfo_ca_file", endpoint.ca,
         "--json_out", report, *(f"--{scan}" for scan in SCANS), f"{endpoint.host}:{endpoint.port}"],
        check=False, seconds=100,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    [server] = json.loads(report.read_text())["server_scan_results"]
    result = {name: scan["result"] for name, scan in server["scan_result"].items() if scan["status"] == "COMPLETED"}
    assert not result["tls_1_3_early_data"]["supports_early_data"], "a bind could be replayed"
    assert not result["tls_compression"]["supports_compression"]
    assert not result["session_renegotiation"]["is_vulnerable_to_client_renegotiation_dos"]
    assert result["robot"]["robot_result"].startswith("NOT_VULNERABLE")
    assert not result["heartbleed"]["is_vulnerable_to_heartbleed"]
    assert not result["openssl_ccs_injection"]["is_vulnerable_to_ccs_injection"]
    if policy == "intermediate":
        assert result["tls_fallback_scsv"]["supports_fallback_scsv"]
