"""A raw client that binds with NTLM inside GSS-SPNEGO, and signs or seals what follows (RFC 4513 §5.2.1.4)."""

from samba import credentials, gensec, param

from . import ber
from .clients import RawClient

PLAIN, SIGN, SEAL = 0, gensec.FEATURE_SIGN, gensec.FEATURE_SIGN | gensec.FEATURE_SEAL


_LDAP_STYLE = 0x400
"""GENSEC_FEATURE_LDAP_STYLE, which the Python module leaves unnamed: over LDAP a layer asked to sign is framed as if it
sealed (MS-ADTS), and Samba's server expects that."""


def bind(client, account, layer=PLAIN, domain="CORP"):
    """Binds `client`, a RawClient, through all the steps. With a `layer` it wraps from then on: returns a `Wrapped`."""
    security = client_side(account, layer, domain)
    finished, token = False, b""
    while not finished:
        finished, token = security.update(token)
        answer = client.ask(ber.sasl_bind, "GSS-SPNEGO", token)[-1]
        if answer.result_code not in (ber.SUCCESS, ber.SASL_BIND_IN_PROGRESS):
            raise AssertionError(f"bind refused: {answer.result_code} {answer.diagnostic}")
        token = answer.sasl_credentials or b""
        if answer.result_code == ber.SUCCESS:
            security.update(token)
            break
    return Wrapped(client, security) if layer else client


class Wrapped(RawClient):
    """The same connection inside the security layer: each buffer is a 4-octet length and what GSSAPI made of the PDUs."""

    def __init__(self, client, security):
        self.__dict__.update(client.__dict__)
        self._security = security
        self._wire = bytearray()

    def send(self, *pdus):
        buffer = self._security.wrap(b"".join(pdus))
        super().send(len(buffer).to_bytes(4, "big") + buffer)

    def _fill(self, deadline):
        clear, self._received = self._received, self._wire
        try:
            more = super()._fill(deadline)
        finally:
            self._wire, self._received = self._received, clear
        while len(self._wire) >= 4 and len(self._wire) >= (end := 4 + int.from_bytes(self._wire[:4], "big")):
            self._received += self._security.unwrap(bytes(self._wire[4:end]))
            del self._wire[:end]
        return more


def client_side(account, layer, domain):
    settings = param.LoadParm()
    settings.load_default()
    who = credentials.Credentials()
    who.set_username(account.name.partition("@")[0])
    who.set_password(account.password)
    who.set_domain(domain)
    who.set_workstation("TESTS")
    who.set_kerberos_state(credentials.DONT_USE_KERBEROS)
    security = gensec.Security.start_client({"lp_ctx": settings, "target_hostname": "dc1"})
    security.set_credentials(who)
    if layer:
        security.want_feature(layer | _LDAP_STYLE)
    security.start_mech_by_sasl_name("GSS-SPNEGO")
    return security
