"""File descriptors that are few, or run out: said at the start, survived while running."""

import re
import resource
import socket
import time
from pathlib import Path

from support import ber
from support.clients import RawClient
from support.waiting import eventually

PROBE = 'health.probe = "tcp"\nhealth.interval = "1h"'
CONNECTIONS = "ldaps_proxy_connections_total"
SPARE = 6
"""Descriptors left for a crowd; a session takes two, a scrape one."""
PAUSE = 0.05
"""Seconds between two tries to accept, at least (BACK_OFF in src/listener/mod.rs)."""


def limits(proxy):
    return resource.prlimit(proxy.process.pid, resource.RLIMIT_NOFILE)


def leave_few_descriptors(proxy):
    """Lowers the running proxy's limit to what it has open and `SPARE` more."""
    highest = max(int(entry.name) for entry in Path(f"/proc/{proxy.process.pid}/fd").iterdir())
    resource.prlimit(proxy.process.pid, resource.RLIMIT_NOFILE, (highest + 1 + SPARE,) * 2)


def knock(endpoint):
    return socket.create_connection((endpoint.host, endpoint.port), 10)


def test_accepting_backs_off_and_goes_on(start_proxy, start_backend):
    """EMFILE: counted, tried again at a bounded rate, and those who waited in the kernel meanwhile are served."""
    proxy = start_proxy([start_backend()], pool=PROBE)
    endpoint = proxy.endpoint()
    # As many as come at once may be accepted at once: the limit is lowered when no scrape has a descriptor open.
    leave_few_descriptors(proxy)
    started = time.monotonic()
    crowd = [knock(endpoint) for _ in range(SPARE * 3)]
    eventually(lambda: "cannot accept" in proxy.log(), "the log says so")
    for client in crowd:
        client.close()
    with RawClient(endpoint) as client:
        assert client.ask(ber.search)[-1].result_code == ber.SUCCESS
    failed = proxy.metrics().sum(CONNECTIONS, outcome="accept_failed")
    assert 1 <= failed <= (time.monotonic() - started) / PAUSE + 1
    proxy.wait_for("ldaps_proxy_sessions_active", 0)


def test_sessions_go_on_while_nobody_new_can_enter(start_proxy, start_backend):
    proxy = start_proxy([start_backend()], pool=PROBE)
    endpoint = proxy.endpoint()
    with RawClient(endpoint) as inside:
        inside.ask(ber.search)
        leave_few_descriptors(proxy)
        crowd = [knock(endpoint) for _ in range(SPARE * 3)]
        eventually(lambda: "cannot accept" in proxy.log(), "the log says so")
        assert inside.ask(ber.search)[-1].result_code == ber.SUCCESS
        for client in crowd:
            client.close()


def test_no_backend_is_blamed_for_want_of_descriptors(start_proxy, start_backend):
    """Neither by its probes nor by sessions that can't reach it: the first to come in afterwards are served at once."""
    pool = 'health.probe = "tcp"\nhealth.interval = "50ms"\nhealth.fall = 2'
    proxy = start_proxy([start_backend()], pool=pool, extra='[log]\nlevel = "debug"')
    endpoint = proxy.endpoint()
    with RawClient(endpoint) as inside:
        leave_few_descriptors(proxy)
        crowd = [knock(endpoint) for _ in range(SPARE * 3)]
        eventually(lambda: proxy.log().count("a probe failed") >= 5, "probes fail")
        assert inside.ask(ber.search)[-1].result_code == ber.UNAVAILABLE
        for client in crowd:
            client.close()
    with RawClient(endpoint) as client:
        assert client.ask(ber.search)[-1].result_code == ber.SUCCESS
    assert "backend is down" not in proxy.log()


def test_the_soft_limit_is_raised_to_the_hard_one(start_proxy, start_backend):
    proxy = start_proxy([start_backend()], pool=PROBE, under=["prlimit", "--nofile=300:4000", "--"])
    assert limits(proxy) == (4000, 4000)


def test_a_cap_that_does_not_fit_is_lowered_and_said(start_proxy, start_backend):
    """Two descriptors a connection and half for all else: 75 connections fit into 300, and the 76th is refused. A reload
    doesn't forget it."""
    proxy = start_proxy([start_backend()], pool=PROBE, under=["prlimit", "--nofile=300:300", "--"])
    assert re.search(r"limits.max_connections is lowered.*asked=9000 allowed=75", proxy.log())
    proxy.reload()
    proxy.wait_for("ldaps_proxy_reloads_total", 1, result="applied")
    assert proxy.metrics().sum("ldaps_proxy_limit", limit="connections") == 75
    endpoint = proxy.endpoint()
    inside = [knock(endpoint) for _ in range(76)]
    proxy.wait_for(CONNECTIONS, 1, outcome="limit")
    for client in inside:
        client.close()
