"""LDAP clients: OpenLDAP's tools, python-ldap, ldap3, and a raw one that sends and sees every byte."""

import io
import os
import socket
import ssl
import struct
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import ldap
import ldap3
import ldif

from . import ber, ledger
from .process import run

SECONDS = 30
"""The longest that any client waits for any answer."""


class Account(NamedTuple):
    """Whom to bind as."""

    name: str
    password: str


@dataclass(frozen=True)
class Endpoint:
    """Where an LDAP server is reached; with `ca` over TLS."""

    host: str
    port: int
    ca: Path = None

    @property
    def url(self):
        return f"{'ldaps' if self.ca else 'ldap'}://{self.host}:{self.port}"


def tool(command, endpoint, *arguments, account=None, input="", check=True, ca=None, env=None):
    """Runs one of OpenLDAP's client tools with a simple bind (anonymous without `account`). It trusts the endpoint's
    CA, or `ca` where TLS starts later; `env` are variables for it."""
    login = ["-D", account.name, "-w", account.password] if account else []
    return run(
        [command, "-x", "-H", endpoint.url, *login, *arguments],
        input=input, check=check, seconds=SECONDS, env={**tool_environment(ca or endpoint.ca), **(env or {})},
    )


def ldapsearch(endpoint, base, *arguments, account=None, **options):
    """`[(dn, {attribute: [bytes]})]` as the ldapsearch command printed them."""
    done = tool("ldapsearch", endpoint, "-LLL", "-b", base, *arguments, account=account, **options)
    return parse_ldif(done.stdout)


def parse_ldif(text):
    """Records of an LDIF text; references and comments are left out."""
    records = ldif.LDIFRecordList(io.StringIO(text))
    records.parse()
    return records.all_records


def python_ldap(endpoint, account=None):
    """A python-ldap connection, bound as `account`."""
    connection = ldap.initialize(endpoint.url)
    connection.set_option(ldap.OPT_REFERRALS, 0)
    connection.set_option(ldap.OPT_NETWORK_TIMEOUT, SECONDS)
    connection.set_option(ldap.OPT_TIMEOUT, SECONDS)
    if endpoint.ca:
        connection.set_option(ldap.OPT_X_TLS_CACERTFILE, str(endpoint.ca))
        connection.set_option(ldap.OPT_X_TLS_NEWCTX, 0)  # last: it applies what was set before
    if account:
        connection.simple_bind_s(*account)
    return connection


def ldap3_connection(endpoint, account=None, **options):
    """An ldap3 connection, bound as `account` (anonymous without one)."""
    tls = ldap3.Tls(ca_certs_file=str(endpoint.ca), validate=ssl.CERT_REQUIRED) if endpoint.ca else None
    server = ldap3.Server(
        endpoint.host, endpoint.port, use_ssl=bool(endpoint.ca), tls=tls, connect_timeout=SECONDS, get_info=ldap3.NONE
    )
    login = {"user": account.name, "password": account.password} if account else {}
    return ldap3.Connection(
        server, auto_bind=True, receive_timeout=SECONDS, auto_referrals=False, **login, **options
    )


class RawClient:
    """A socket that speaks PDUs; over TLS where the endpoint has a CA. `source` is the address to connect from.

    What it sends and reads is noted, for a proxy's access log to be held against. A test that sends what is no request
    on purpose says so with `malformed`: nothing is compared from there on.
    """

    def __init__(self, endpoint, *, source=None, tls_version=None, seconds=SECONDS, malformed=False):
        self._seconds = seconds
        self._received = bytearray()
        self._next_id = 0
        self.socket = socket.create_connection(
            (endpoint.host, endpoint.port), seconds, source_address=(source, 0) if source else None
        )
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._conversation = ledger.begin(self.socket, malformed=malformed)
        if endpoint.ca:
            context = ssl.create_default_context(cafile=endpoint.ca)
            if tls_version:
                context.minimum_version = context.maximum_version = tls_version
            try:
                # A FIN without close_notify is no end in good order: an error, as for every other client.
                context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
                self.socket = context.wrap_socket(
                    self.socket, server_hostname=endpoint.host, suppress_ragged_eofs=False
                )
            except BaseException:
                self.socket.close()
                raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.socket.close()

    def reset(self):
        """Closes with a TCP reset."""
        reset(self.socket)

    def finish_sending(self):
        """Half-close: ends our direction, over TLS with close_notify before the FIN, and keeps reading."""
        if isinstance(self.socket, ssl.SSLSocket):
            self.socket.settimeout(0)
            # It wants to wait for the peer's close_notify; ours has left by then.
            with suppress(ssl.SSLWantReadError):
                self.socket.unwrap()
        # Not SSLSocket's own, after which nothing can be decrypted any more.
        socket.socket.shutdown(self.socket, socket.SHUT_WR)

    def next_id(self):
        self._next_id += 1
        return self._next_id

    def send(self, *pdus):
        """All of it in one write."""
        octets = b"".join(pdus)
        self._conversation.note_sent(octets)
        self.socket.sendall(octets)

    def read(self):
        """The next PDU, or None where the peer ended the connection in good order between two PDUs."""
        deadline = time.monotonic() + self._seconds
        while (whole := _whole_pdu(self._received)) is None:
            if not self._fill(deadline):
                if self._received:
                    raise AssertionError(f"the connection ended inside a PDU: {self._received[:60].hex()}")
                return None
        pdu = ber.pdu(bytes(self._received[:whole]))
        del self._received[:whole]
        self._conversation.note_read(pdu)
        return pdu

    def read_result(self, message_id):
        """Every PDU of one operation up to its final response, entries and references included."""
        found = []
        while True:
            pdu = self.read()
            if pdu is None:
                raise AssertionError(f"the connection ended before the result of {message_id}; it had {found}")
            if pdu.message_id != message_id:
                raise AssertionError(f"waiting for {message_id}, got {pdu}")
            found.append(pdu)
            if pdu.tag not in (ber.SEARCH_ENTRY, ber.SEARCH_REFERENCE, ber.INTERMEDIATE_RESPONSE):
                return found

    def read_to_end(self):
        """Every PDU until the connection ends in good order."""
        return list(iter(self.read, None))

    def read_octets(self, count):
        """Exactly `count` octets, whatever they are."""
        deadline = time.monotonic() + self._seconds
        while len(self._received) < count:
            assert self._fill(deadline), f"the connection ended after {len(self._received)} octets"
        octets = bytes(self._received[:count])
        del self._received[:count]
        return octets

    def ended_or_notice(self):
        """Whether the connection ends now, with nothing but perhaps a notice of disconnection before."""
        try:
            pdu = self.read()
        except OSError:
            return True
        return pdu is None or (pdu.message_id == 0 and pdu.response_name == ber.NOTICE_OF_DISCONNECTION and self.ended())

    def ended(self):
        """Whether the peer closed or reset without one more byte."""
        try:
            return self.read() is None
        except OSError:
            return True

    def ask(self, build, *arguments, **options):
        """Sends the request `build(message_id, …)` and returns its PDUs up to the final one."""
        message_id = self.next_id()
        self.send(build(message_id, *arguments, **options))
        return self.read_result(message_id)

    def bind(self, account):
        """A simple bind that must succeed."""
        answer = self.ask(ber.bind, *account)[-1]
        assert answer.result_code == ber.SUCCESS, answer.diagnostic
        return self

    def _fill(self, deadline):
        self.socket.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            data = self.socket.recv(1 << 18)
        except ssl.SSLZeroReturnError:
            data = b""  # the peer's close_notify after ours
        except TimeoutError:
            raise AssertionError(
                f"no whole PDU within {self._seconds} s; {len(self._received)} octets of one: {self._received[:60].hex()}"
            ) from None
        self._received += data
        return bool(data)


def search_after_waiting(proxy, first, second):
    """What `second` reads of a search that waits in the queue for the only seat, until `first`, which has it, leaves."""
    waiting = second.next_id()
    second.send(ber.search(waiting))
    proxy.wait_for("ldaps_proxy_queue_waiting", 1)
    first.send(ber.unbind(first.next_id()))
    return second.read_result(waiting)


def reset(connection):
    """Closes a socket with a TCP reset instead of a FIN."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def _whole_pdu(data):
    start = ber.header(data)
    return sum(start) if start is not None and len(data) >= sum(start) else None


def tool_environment(ca):
    """The machine's own ldap.conf and ~/.ldaprc must not matter."""
    settings = {**os.environ, "LDAPCONF": os.devnull, "LDAPRC": "none", "HOME": "/nonexistent"}
    return {**settings, "LDAPTLS_CACERT": str(ca)} if ca else settings
