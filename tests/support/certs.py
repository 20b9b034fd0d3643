"""A certificate authority and what it signs, made with the openssl command."""

from dataclasses import dataclass
from pathlib import Path

from .process import run

PROXY_NAME = "proxy.corp.example.com"
"""The host name the proxy's certificate carries, for clients that want a name (Samba, Kerberos)."""


@dataclass(frozen=True)
class Certificate:
    certificate: Path
    private_key: Path


class Authority:
    """A CA called `name` in `directory`; `ca` is its certificate, `issue` makes leaves."""

    def __init__(self, directory, name="tests CA"):
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.ca = self.directory / "ca.pem"
        self._key = self.directory / "ca-key.pem"
        _openssl(
            "req", "-x509", *_NEW_KEY, "-keyout", self._key, "-out", self.ca, "-days", 90, "-subj", f"/CN={name}",
            "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
        )

    def issue(self, name, subject_alt_names=(f"DNS:{PROXY_NAME}", "DNS:localhost", "IP:127.0.0.1"), days=90, rsa=False, key=()):
        """A leaf certificate and its key, ECDSA or RSA, in files named after `name`. `key` are the words that make another with
        `openssl req`."""
        leaf = Certificate(self.directory / f"{name}.pem", self.directory / f"{name}-key.pem")
        request, extensions = self.directory / f"{name}.csr", self.directory / f"{name}.ext"
        _openssl("req", *(key or (_NEW_RSA_KEY if rsa else _NEW_KEY)), "-nodes", "-keyout", leaf.private_key, "-out", request, "-subj", f"/CN={name}")
        leaf.private_key.chmod(0o600)
        lines = ["basicConstraints=critical,CA:FALSE", "extendedKeyUsage=serverAuth,clientAuth"]
        if subject_alt_names:
            lines.append("subjectAltName=" + ",".join(subject_alt_names))
        extensions.write_text("\n".join(lines) + "\n")
        _openssl(
            "x509", "-req", "-in", request, "-CA", self.ca, "-CAkey", self._key, "-CAcreateserial",
            "-out", leaf.certificate, "-days", days, "-extfile", extensions,
        )
        return leaf


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
_NEW_RSA_KEY = ("-newkey", "rsa:2048", "-nodes")


def _openssl(*arguments):
    run(["openssl", *arguments])
