"""The proxies under test: how each is found, configured and started, all doing the same work with one worker thread."""

import contextlib
import datetime
import os
import re
import shutil
import socket
import ssl
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

SUITE = "TLS_AES_256_GCM_SHA384"
SUITES_12 = "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384"
# P-256 only lets TLS 1.2 use the certificate; the generator prefers X25519.
CURVES = "X25519:P-256"
DEBIAN_PACKAGES = {
    "haproxy": ["haproxy"],
    "nginx": ["nginx-light", "libnginx-mod-stream"],
    "stunnel4": ["stunnel4"],
}
# An anonymous simple bind with messageID 1, and how a successful answer to it goes on after its messageID.
BIND = bytes.fromhex("300c020101600702010304008000")
BIND_SUCCESS = re.compile(rb"\x61(\x84...)?.\x0a\x01\x00", re.DOTALL)
START_TIMEOUT = 20
ACCESS_LOG = "access.log"


@dataclass
class Setup:
    """What one measurement needs of a proxy."""

    directory: Path
    port: int
    backends: list[str]
    certificate: Path  # PEM chain
    key: Path
    tickets: bool  # TLS 1.3 session tickets


class Peer:
    """A proxy: `program` (None: not a process), whether it speaks TLS, and its command line for a setup."""

    def __init__(self, name, program, command, version, tls=True, debian=True, logs=False):
        self.name, self.program, self.command, self.version = name, program, command, version
        self.tls, self.debian, self.logs = tls, debian, logs

    def start(self, setup, cores):
        """Starts it on `cores` and returns once a bind through it succeeds."""
        log = open(setup.directory / "log", "w")
        command = ["taskset", "-c", cores, *self.command(setup)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + START_TIMEOUT
        while not answers(setup.port, self.tls):
            if process.poll() is not None or time.monotonic() > deadline:
                stop(process)
                raise RuntimeError(f"{self.name} did not serve: {' '.join(command)}\n{(setup.directory / 'log').read_text()[-2000:]}")
            time.sleep(0.02)
        return process

    def check(self, setup, operations):
        """Raises unless the ended proxy did what its name says: a log that isn't written costs nothing."""
        if self.logs:
            path = setup.directory / ACCESS_LOG
            with contextlib.suppress(FileNotFoundError), path.open("rb") as log:
                lines = sum(1 for _ in log)
                if lines >= operations:
                    return
                raise RuntimeError(f"the access log has {lines} lines for at least {operations} operations")
            raise RuntimeError("no access log was written")


def stop(process):
    """Ends a process we started, for good."""
    process.terminate()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def answers(port, tls):
    """Whether an anonymous bind succeeds there."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            if tls:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                connection = context.wrap_socket(connection)
            connection.sendall(BIND)
            return BIND_SUCCESS.search(connection.recv(256)) is not None
    except OSError:
        return False


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def known_peers(root, built=False, others=()):
    """All peers by name, ours first. `built`: our binary was made from the work tree in this run. `others`: names and
    binaries of other builds of ours."""
    def ours(name, binary=root / "target/release/ldaps-proxy", built=built, logs=False):
        return Peer(name, str(binary), lambda setup: ldaps_proxy(binary, setup, logs),
                    lambda: our_version(root, binary, built), debian=False, logs=logs)

    peers = [
        ours("ldaps-proxy"),
        ours("ldaps-proxy+log", logs=True),
        *(ours(name, binary, built=False) for name, binary in others),
        Peer("haproxy", "haproxy", lambda setup: haproxy(setup, tls=True), haproxy_version),
        Peer("nginx", "nginx", nginx, lambda: first_line(["nginx", "-v"])),
        Peer("stunnel", "stunnel4", stunnel, lambda: first_line(["stunnel4", "-version"], "stunnel ")),
        Peer("haproxy-plain", "haproxy", lambda setup: haproxy(setup, tls=False), haproxy_version, tls=False),
        Peer("terminator", str(root / "target/release/bench"), lambda setup: terminator(root, setup),
             lambda: "TLS by the same libraries as ours, without any LDAP", debian=False),
        Peer("direct", None, None, lambda: "the generator on the sink, without a proxy or TLS", tls=False),
    ]
    return {peer.name: peer for peer in peers}


def install_missing(peers, may_install):
    """Installs from Debian what the peers need and isn't there; raises with the line to type where it may not."""
    missing = [peer.program for peer in peers if peer.debian and peer.program and not shutil.which(peer.program)]
    if any(peer.name == "nginx" for peer in peers) and not Path("/usr/lib/nginx/modules/ngx_stream_module.so").exists():
        missing.append("nginx")
    if not missing:
        return
    packages = sorted({package for program in missing for package in DEBIAN_PACKAGES[program]})
    line = ["apt-get", "install", "--yes", "--no-install-recommends", *packages]
    if not may_install or os.geteuid() != 0 or not shutil.which("apt-get"):
        raise RuntimeError("missing peers; as root: RUNLEVEL=1 " + " ".join(line))
    # RUNLEVEL=1 keeps their services from being started.
    subprocess.run(line, env={**os.environ, "RUNLEVEL": "1", "DEBIAN_FRONTEND": "noninteractive"}, check=True)


def ldaps_proxy(binary, setup, logs):
    config = f"""
[runtime]
workers = 1

[[listener]]
address = "127.0.0.1:{setup.port}"
trusted_networks = ["127.0.0.0/8"]
pool = "sink"

[tls]
certificate = "{setup.certificate}"
private_key = "{setup.key}"
"""
    if setup.tickets:
        config += 'session_tickets = "all"\n'
    config += f"\n[pools.sink]\nbackends = {setup.backends!r}\n".replace("'", '"')
    config += f'\n[admin]\naddress = "127.0.0.1:{free_port()}"\n'
    if logs:
        config += f'\n[access_log]\noutput = "file"\npath = "{setup.directory / ACCESS_LOG}"\n'
    return [str(binary), "run", "--config", write(setup.directory / "ldaps-proxy.toml", config)]


def terminator(root, setup):
    command = [root / "target/release/bench", "terminator", f"--listen=127.0.0.1:{setup.port}"]
    command += [f"--backend={address}" for address in setup.backends]
    command += [f"--certificate={setup.certificate}", f"--key={setup.key}"]
    return [*map(str, command), *["--tickets"] * setup.tickets]


def haproxy(setup, tls):
    both = setup.directory / "both.pem"
    both.write_bytes(setup.certificate.read_bytes() + setup.key.read_bytes())
    listen = f"ssl crt {both} curves {CURVES} ciphersuites {SUITE} ciphers {SUITES_12} ssl-min-ver TLSv1.2" if tls else ""
    servers = "\n".join(f"    server s{n} {address} check inter 1s" for n, address in enumerate(setup.backends))
    config = f"""
global
    nbthread 1
    maxconn 9600

defaults
    mode tcp
    balance leastconn
    timeout connect 2s
    timeout client 1h
    timeout server 1h

frontend ldaps
    bind 127.0.0.1:{setup.port} {listen}
    default_backend sink

backend sink
    option ldap-check
{servers}
"""
    return ["haproxy", "-db", "-f", write(setup.directory / "haproxy.cfg", config)]


def nginx(setup):
    servers = "\n".join(f"        server {address};" for address in setup.backends)
    config = f"""
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
user root;
daemon off;
worker_processes 1;
worker_rlimit_nofile 20000;
pid {setup.directory}/nginx.pid;
error_log stderr error;
events {{
    worker_connections 19900;
}}
stream {{
    upstream sink {{
        least_conn;
{servers}
    }}
    server {{
        listen 127.0.0.1:{setup.port} ssl backlog=4096;
        ssl_certificate {setup.certificate};
        ssl_certificate_key {setup.key};
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_ciphers {SUITES_12};
        ssl_conf_command Ciphersuites {SUITE};
        ssl_ecdh_curve {CURVES};
        proxy_timeout 1h;
        proxy_pass sink;
    }}
}}
"""
    if os.geteuid() != 0:
        config = config.replace("user root;\n", "")
    return ["nginx", "-p", str(setup.directory), "-c", write(setup.directory / "nginx.conf", config)]


def stunnel(setup):
    backends = "\n".join(f"connect = {address}" for address in setup.backends)
    config = f"""
foreground = yes
pid =
debug = err
[ldaps]
accept = 127.0.0.1:{setup.port}
{backends}
failover = rr
cert = {setup.certificate}
key = {setup.key}
sslVersionMin = TLSv1.2
ciphers = {SUITES_12}
ciphersuites = {SUITE}
curves = {CURVES}
TIMEOUTidle = 3600
socket = l:TCP_NODELAY=1
socket = r:TCP_NODELAY=1
"""
    return ["stunnel4", write(setup.directory / "stunnel.conf", config)]


def write(path, text):
    path.write_text(text)
    return str(path)


def first_line(command, containing=""):
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return next((line.strip() for line in result.stdout.splitlines() if containing in line), "?")


def haproxy_version():
    return first_line(["haproxy", "-v"]).split(" - ")[0]


def our_version(root, binary, built):
    """Names the commit only of a binary made from it here; of another nothing but its age is known."""
    version = first_line([str(binary), "--version"])
    if built:
        return f"{version} ({first_line(['git', '-C', str(root), 'describe', '--always', '--dirty'])})"
    made = datetime.datetime.fromtimestamp(binary.stat().st_mtime, datetime.timezone.utc)
    return f"{version} (not built by this run; file of {made:%Y-%m-%d %H:%M} UTC, commit unknown)"
