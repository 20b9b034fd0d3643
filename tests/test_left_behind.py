"""After the crowd has gone, nothing of it is left: descriptors, sessions, memory."""

import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from support import ber
from support.waiting import eventually

CROWD = 9000
CYCLES = 2000
# Kilobytes: buffers and the allocator's own bookkeeping. What 9,000 sessions leak, 450 octets each, shows.
SLACK = 4096


@pytest.fixture
def sink():
    command = [sys.executable, "-m", "support.sink"]
    with subprocess.Popen(command, cwd=Path(__file__).parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process.stdout.readline().strip()
        process.stdin.close()


class Visitors:
    """Bound TLS sessions from many addresses of loopback."""

    def __init__(self, proxy):
        self._endpoint = proxy.endpoint()
        self._context = ssl.create_default_context(cafile=str(proxy.ca))
        self._context.check_hostname = False

    def enter(self, number):
        source = (f"127.1.{number // 250 % 250}.{number % 250 + 1}", 0)
        tcp = socket.create_connection((self._endpoint.host, self._endpoint.port), 30, source_address=source)
        # Without it the bind waits for the acknowledgement of the handshake's end: 40 ms each.
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = self._context.wrap_socket(tcp)
        client.sendall(ber.bind(1, "cn=x", "secret"))
        assert ber.pdu(client.recv(4096)).result_code == ber.SUCCESS
        return client


def descriptors(proxy):
    return len(list(Path(f"/proc/{proxy.process.pid}/fd").iterdir()))


def memory(proxy):
    """Resident kilobytes."""
    status = Path(f"/proc/{proxy.process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


@pytest.mark.deadline(300)
def test_nothing_is_left_behind(start_proxy, sink):
    proxy = start_proxy(
        [sink], pool='health.probe = "tcp"', trusted=["127.0.0.0/8"], extra="[limits]\nmax_connections = 9500",
    )
    visitors = Visitors(proxy)
    visitors.enter(0).close()
    proxy.wait_for("ldaps_proxy_sessions_active", 0)
    before, resident = descriptors(proxy), memory(proxy)

    def all_is_as_before():
        proxy.wait_for("ldaps_proxy_sessions_active", 0, seconds=60)
        eventually(lambda: descriptors(proxy) <= before + 2, "the descriptors are back")
        eventually(lambda: memory(proxy) <= resident + SLACK, f"{memory(proxy)} kB are {resident} again", seconds=30)

    for _ in range(2):
        crowd = [visitors.enter(number) for number in range(CROWD)]
        assert proxy.metrics().sum("ldaps_proxy_sessions_active") == CROWD
        assert memory(proxy) > resident + 4 * SLACK
        for client in crowd:
            client.close()
        all_is_as_before()
    for number in range(CYCLES):
        client = visitors.enter(number)
        client.sendall(ber.search(2))
        assert ber.pdu(client.recv(4096)).result_code == ber.SUCCESS
        client.sendall(ber.unbind(3))
        client.close()
    all_is_as_before()
    metrics = proxy.metrics()
    assert metrics.sum("ldaps_proxy_backend_sessions") == 0
    assert metrics.sum("ldaps_proxy_limit_used", limit="connections") == 0
    assert metrics.sum("ldaps_proxy_limit_used", limit="buffer_memory") == 0
