"""A raw client that binds with NTLM inside GSS-SPNEGO, and signs or seals what follows (RFC 4513 §5.2.1.4), and messages
written by hand, for what no honest client sends (MS-NLMP §2.2.1)."""

import hmac
import struct
from dataclasses import dataclass

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


UNICODE, OEM = 0x1, 0x2
_OTHER_FLAGS = 0xA0088204
"""Target, NTLM, always sign, extended session security, 56 and 128 bits."""
_SIGNATURE = b"NTLMSSP\0"


def wide(text):
    return text.encode("utf-16-le")


@dataclass
class Handwritten:
    """Both messages of a client of `account`: what either says of its encoding, and the names as they stand there, which
    Samba must take for the account's own. `null` is a null session; `pieces` cuts the messages in two, in SPNEGO."""
    account: object
    negotiates: int = UNICODE
    claims: int = UNICODE
    domain: bytes = wide("CORP")
    user: bytes = b""
    null: bool = False
    pieces: bool = False

    def bind(self, client):
        """The last answer."""
        answer = self._step(client, _SIGNATURE + struct.pack("<II", 1, _OTHER_FLAGS | self.negotiates) + bytes(16), first=True)
        if answer.result_code != ber.SASL_BIND_IN_PROGRESS:
            return answer
        token = bytes(answer.sasl_credentials)
        return self._step(client, self._authenticate(token[token.index(_SIGNATURE):]))

    def _step(self, client, message, first=False):
        if not self.pieces:
            return client.ask(ber.sasl_bind, "NTLM", message)[-1]
        token = ber.tlv(0xA2, ber.octets(message))
        if first:
            mechanisms = ber.tlv(0xA0, ber.tlv(0x30, bytes.fromhex("060a2b06010401823702020a")))
            token = ber.tlv(0x60, bytes.fromhex("06062b0601050502"), ber.tlv(0xA0, ber.tlv(0x30, mechanisms, token)))
        else:
            token = ber.tlv(0xA1, ber.tlv(0x30, token))
        cut = token.index(_SIGNATURE) + 4
        for piece in (token[:cut], token[cut:]):
            answer = client.ask(ber.sasl_bind, "GSS-SPNEGO", piece)[-1]
            if answer.result_code != ber.SASL_BIND_IN_PROGRESS:
                break
        return answer

    def _authenticate(self, challenge):
        length, _, offset = struct.unpack_from("<HHI", challenge, 40)
        response = b"" if self.null else self._response(challenge[24:32], challenge[offset:offset + length])
        descriptors, payload = b"", b""
        for field in (b"", response, self.domain, self.user, wide("TESTS"), b""):
            descriptors += struct.pack("<HHI", len(field), len(field), 64 + len(payload))
            payload += field
        return _SIGNATURE + struct.pack("<I", 3) + descriptors + struct.pack("<I", _OTHER_FLAGS | self.claims) + payload

    def _response(self, challenge, target):
        """NTLMv2 (§3.3.2)."""
        who = credentials.Credentials()
        who.set_password(self.account.password)
        user = self.account.name.partition("@")[0]
        key = hmac.digest(bytes(who.get_nt_hash()), wide(user.upper() + "CORP"), "md5")
        blob = b"\x01\x01" + bytes(14) + b"a nonce." + bytes(4) + target + bytes(4)
        return hmac.digest(key, challenge + blob, "md5") + blob
