"""Which backends are used: probes of real DCs, traffic that knows better, capacity."""

import json
import time
from contextlib import ExitStack

import ldap
import pytest

from support import ber, samba
from support.backend import answer_everything, answer_nothing
from support.clients import RawClient, python_ldap
from support.samba import ADMINISTRATOR, USERS
from support.waiting import eventually

ONCE = 'health.interval = "1h"'
"""One probe at the start; then only traffic, or what traffic asks for, can notice anything."""


@pytest.fixture
def secret(tmp_path):
    """A password in a file: `secret("…")`."""

    def write(password):
        path = tmp_path / "password"
        path.write_text(password)
        return path

    return write


def up(proxy, backend):
    return proxy.metrics().sum("ldaps_proxy_backend_up", backend=backend)


def status(proxy, backend):
    """`(state, reason)` of a backend as the status page has them."""
    backends = json.loads(proxy.http("/api/v1/status")[1])["backends"]
    return next((one["state"], one["reason"]) for one in backends if one["name"] == str(backend))


def wait_for_state(proxy, backend, state):
    """Waits for a backend's state and returns its reason."""
    return eventually(lambda: status(proxy, backend)[0] == state and status(proxy, backend)[1], f"{backend} is {state}")


def served_by(client):
    entry, done = client.ask(ber.search)
    assert done.result_code == ber.SUCCESS, done.diagnostic
    return entry.attributes["description"][0].decode()


def with_one_seat(backend):
    return f'{{ address = "{backend}", max_sessions = 1 }}'


def is_probe(pdu):
    """Probes ask for no attributes ("1.1"), the tests' own searches for all."""
    return pdu.tag == ber.SEARCH_REQUEST and ber.octets("1.1") in pdu.raw


def test_real_dcs_pass_every_probe(start_proxy, dcs, secret):
    account = f'bind_name = "{USERS[0].name}"\npassword_file = "{secret(USERS[0].password)}"'
    content = f'base = "{samba.BASE}"\nfilter = "(sAMAccountName=user01)"'
    proxy = start_proxy([dc.backend for dc in dcs], pool=f"""
[pools.directory.health]
interval = "100ms"
expect = {{ isSynchronized = "TRUE", dnsHostName = "dc1.corp.example.com" }}
[pools.directory.health.deep]
probe = "search"
interval = "200ms"
{account}
{content}
""")
    proxy.wait_for("ldaps_proxy_backend_up", 2)
    probes = "ldaps_proxy_backend_probe_duration_seconds_count"
    eventually(lambda: proxy.metrics().sum(probes) > 40, "some dozen probes pass")
    assert proxy.metrics().sum("ldaps_proxy_backend_probe_failures_total") == 0
    assert "degraded" not in proxy.log()


@pytest.fixture
def counting_bad_passwords():
    """Has a DC count bad passwords, which Samba does only under a lockout policy, until the test ends."""
    with ExitStack() as stack:

        def start(administrator):
            def threshold(number):
                administrator.modify_s(samba.BASE, [(ldap.MOD_REPLACE, "lockoutThreshold", [number])])

            threshold(b"10")
            stack.callback(threshold, b"0")

        yield start


def test_a_refused_probe_account_is_not_locked_out(start_proxy, dcs, secret, counting_bad_passwords):
    """One bad bind at one DC, whatever the interval and the number of DCs; no backend is taken out for it."""
    account = USERS[7]
    administrator = python_ldap(dcs[0].endpoint, ADMINISTRATOR)
    counting_bad_passwords(administrator)
    proxy = start_proxy([dcs[0].backend], pool=f"""
[pools.directory.health]
probe = "bind"
interval = "50ms"
bind_name = "{account.name}"
password_file = "{secret('not the password')}"
""")
    proxy.wait_for("ldaps_proxy_probe_account_refused", 1)
    probes = "ldaps_proxy_backend_probe_duration_seconds_count"
    eventually(lambda: proxy.metrics().sum(probes) > 10, "the backend is probed without the account")
    name = account.name.partition("@")[0]
    found = administrator.search_s(samba.BASE, 2, f"(sAMAccountName={name})", ["badPwdCount"])
    assert found[0][1]["badPwdCount"] == [b"1"]
    assert up(proxy, dcs[0].backend) == 1
    secret(account.password)
    proxy.wait_for("ldaps_proxy_probe_account_refused", 0)


def test_a_refused_probe_account_that_is_taken_out_is_refused_no_more(start_proxy, start_backend, secret):
    """A regression test: the probe that would have taken the alarm back was gone."""
    def refuse(connection, pdu):
        if pdu.tag == ber.BIND_REQUEST:
            connection.send(ber.result(pdu.message_id, ber.BIND_RESPONSE, ber.INVALID_CREDENTIALS))
        else:
            answer_everything(connection, pdu)

    deep = f"""
[pools.directory.health.deep]
probe = "bind"
bind_name = "cn=probe"
password_file = "{secret('wrong')}"
"""
    proxy = start_proxy([start_backend(refuse)], pool=deep)
    proxy.wait_for("ldaps_proxy_probe_account_refused", 1)
    proxy.config_file.write_text(proxy.config_file.read_text().replace(deep, ""))
    proxy.reload()
    proxy.wait_for("ldaps_proxy_probe_account_refused", 0)


def test_a_dc_that_asks_for_stronger_auth_is_found_and_named(start_proxy, strict_dc, dc, secret):
    """Samba as it comes: anonymous probes pass, and nobody can log in. Users are sent to the other DC."""
    strict = f"{strict_dc.address}:{samba.LDAP}"
    proxy = start_proxy([strict, dc.backend], pool=f"""
[pools.directory.health.deep]
probe = "bind"
interval = "200ms"
bind_name = "{USERS[0].name}"
password_file = "{secret(USERS[0].password)}"
""")
    reason = wait_for_state(proxy, strict, "degraded")
    assert "strongerAuthRequired (8)" in reason and "ldap server require strong auth" in reason
    wait_for_state(proxy, dc.backend, "up")
    for _ in range(3):
        connection = python_ldap(proxy.endpoint(), ADMINISTRATOR)
        assert connection.search_s(samba.BASE, 0, attrlist=["description"])[0][1]["description"] == [b"dc1"]


def test_a_backend_that_hangs_and_has_no_other_beside_it_is_not_waited_for(start_proxy, start_backend):
    """A regression test: its machine's kernel went on taking connections, and requests waited without end."""
    backend = start_backend()
    pool = 'health.interval = "100ms"\nhealth.timeout = "100ms"\nhealth.fall = 1'
    proxy = start_proxy([backend], pool=pool + '\nconnect_timeout = "500ms"\nconnect_budget = "500ms"')
    with RawClient(proxy.endpoint()) as client:
        client.ask(ber.search)
        backend.answer = answer_nothing
        wait_for_state(proxy, backend, "down")
        assert client.ask(ber.search)[-1].result_code == ber.UNAVAILABLE
        backend.answer = answer_everything
        wait_for_state(proxy, backend, "up")
        assert client.ask(ber.search)[-1].result_code == ber.SUCCESS


def test_a_slow_backend_serves_only_if_nothing_better_is_left(start_proxy, start_backend):
    def slow(connection, pdu):
        if is_probe(pdu):
            time.sleep(1)
        answer_everything(connection, pdu)

    sluggish, swift = start_backend(slow), start_backend()
    proxy = start_proxy(
        [sluggish, swift],
        pool='balance = "first-available"\nhealth.interval = "100ms"\nhealth.timeout = "10s"\nhealth.max_latency = "600ms"',
    )
    assert "max_latency" in wait_for_state(proxy, sluggish, "degraded")
    wait_for_state(proxy, swift, "up")
    for _ in range(3):
        with RawClient(proxy.endpoint()) as client:
            assert served_by(client) == str(swift)
    swift.die()
    proxy.wait_for("ldaps_proxy_backend_up", 0, backend=str(swift))
    assert proxy.http("/readyz")[0] == 200
    with RawClient(proxy.endpoint()) as client:
        assert served_by(client) == str(sluggish)


@pytest.mark.parametrize("panic_mode", [False, True])
def test_panic_mode_is_what_readiness_says_when_no_backend_is_well(start_proxy, start_backend, panic_mode):
    """Either way requests are served as long as a backend answers them. With it, probes that are wrong everywhere don't take
    the proxy out of its load balancer."""

    def wrong_to_probes(connection, pdu):
        if is_probe(pdu):
            connection.send(ber.result(pdu.message_id, ber.SEARCH_DONE, ber.BUSY))
        else:
            answer_everything(connection, pdu)

    backends = [start_backend(wrong_to_probes), start_backend(wrong_to_probes)]
    proxy = start_proxy(
        backends, ready=False,
        pool=f'health.interval = "100ms"\nhealth.panic_mode = {str(panic_mode).lower()}\nbalance = "round-robin"',
    )
    for backend in backends:
        assert "busy (51)" in wait_for_state(proxy, backend, "down")
    assert proxy.http("/readyz")[0] == (200 if panic_mode else 503)
    served = set()
    for _ in range(4):
        with RawClient(proxy.endpoint()) as client:
            served.add(served_by(client))
    assert served == set(map(str, backends))


def test_a_killed_dc_is_out_with_the_first_session_that_notices(start_proxy, dcs):
    """A lost operation has the backend probed at once, and that probe's failure is enough."""
    proxy = start_proxy([dc.backend for dc in dcs], pool=f'{ONCE}\nbalance = "first-available"')
    proxy.wait_for("ldaps_proxy_backend_up", 2)
    connection = python_ldap(proxy.endpoint(), ADMINISTRATOR)
    dcs[0].kill()
    with RawClient(proxy.endpoint()) as client:
        assert client.ask(ber.search)[-1].result_code == ber.SUCCESS
    proxy.wait_for("ldaps_proxy_backend_up", 0, backend=dcs[0].backend)
    assert connection.search_s(samba.BASE, 0)


def test_one_clients_poisonous_query_ejects_nobody(start_proxy, start_backend, figures):
    """Each backend closes on it. The client is told; everybody else is served by both as before."""

    def answer(connection, pdu):
        if pdu.tag == ber.SEARCH_REQUEST and b"poison" in pdu.raw:
            connection.reset()
        else:
            answer_everything(connection, pdu)

    backends = start_backend(answer), start_backend(answer)
    proxy = start_proxy(backends, pool=ONCE)
    proxy.wait_for("ldaps_proxy_backend_up", 2)
    for _ in range(10):
        with RawClient(proxy.endpoint()) as client:
            assert client.ask(ber.search, "cn=poison")[-1].result_code == ber.UNAVAILABLE
    figures.count(tried=10, failed=10, **{"times out": 2 - sum(up(proxy, str(backend)) for backend in backends)})
    assert [up(proxy, str(backend)) for backend in backends] == [1, 1]
    assert proxy.metrics().sum("ldaps_proxy_backend_ejections_total") == 0


def test_three_clients_eject_a_backend_whose_probes_pass(start_proxy, start_backend):
    def close_on_search(connection, pdu):
        if pdu.tag == ber.SEARCH_REQUEST and b"objectClass" not in pdu.raw:
            connection.reset()
        elif pdu.tag == ber.SEARCH_REQUEST:
            answer_everything(connection, pdu)

    bad, good = start_backend(close_on_search), start_backend()
    proxy = start_proxy(
        [bad, good], trusted=("127.0.0.0/8",), pool=f'{ONCE}\nbalance = "first-available"'
    )
    proxy.wait_for("ldaps_proxy_backend_up", 2)
    for last in (1, 2, 3):
        with RawClient(proxy.endpoint(), source=f"127.0.1.{last}") as client:
            entry, _ = client.ask(ber.search, filter=ber.equality("cn", "x"))
            assert entry.attributes["description"] == [str(good).encode()], "sent again elsewhere"
    proxy.wait_for("ldaps_proxy_backend_up", 0, backend=str(bad))
    assert proxy.metrics().sum("ldaps_proxy_backend_ejections_total", backend=str(bad)) == 1
    assert up(proxy, str(good)) == 1


def test_a_full_pool_is_busy_and_its_queue_serves_in_turn(start_proxy, start_backend):
    backend = start_backend()
    proxy = start_proxy([with_one_seat(backend)], pool='queue = 1\nqueue_timeout = "30s"')
    with RawClient(proxy.endpoint()) as first, RawClient(proxy.endpoint()) as second:
        assert first.ask(ber.search)[-1].result_code == ber.SUCCESS
        waiting = second.next_id()
        second.send(ber.search(waiting))
        proxy.wait_for("ldaps_proxy_queue_waiting", 1)
        with RawClient(proxy.endpoint()) as third:
            refused = third.ask(ber.search)[-1]
            assert refused.result_code == ber.BUSY, refused.diagnostic
        assert proxy.metrics().sum("ldaps_proxy_refusals_total", reason="queue_full") == 1
        assert proxy.metrics().sum("ldaps_proxy_failovers_total", kind="exhausted") == 0, "it wasn't told unavailable"
        assert "no backend can be reached" not in proxy.log()
        first.close()
        assert second.read_result(waiting)[-1].result_code == ber.SUCCESS
    proxy.wait_for("ldaps_proxy_queue_waiting", 0)


def test_who_waits_too_long_for_a_seat_is_told_busy(start_proxy, start_backend):
    backend = start_backend()
    proxy = start_proxy([with_one_seat(backend)], pool='queue = 5\nqueue_timeout = "300ms"')
    with RawClient(proxy.endpoint()) as first:
        assert served_by(first) == str(backend)
        waiting = [RawClient(proxy.endpoint()) for _ in range(3)]
        for client in waiting:
            client.send(ber.search(1))
        for client in waiting:
            assert client.read_result(1)[-1].result_code == ber.BUSY
        assert proxy.metrics().sum("ldaps_proxy_refusals_total", reason="queue_timeout") == 3
        assert served_by(first) == str(backend), "whoever has a seat keeps it"
    with waiting[0] as client:
        proxy.wait_for("ldaps_proxy_backend_sessions", 0)
        assert served_by(client) == str(backend), "and who was refused may ask again"
    for client in waiting[1:]:
        client.close()


def test_a_returning_backend_is_filled_slowly(start_proxy, start_backend):
    """Least-connections would send it every new session, for being empty."""
    steady, returning = start_backend(), start_backend()
    proxy = start_proxy([steady, returning], pool='health.interval = "100ms"\nhealth.rise = 1\nhealth.fall = 1')
    returning.die()
    proxy.wait_for("ldaps_proxy_backend_up", 0, backend=str(returning))
    with ExitStack() as stack:
        def serve(count):
            clients = [stack.enter_context(RawClient(proxy.endpoint())) for _ in range(count)]
            return [served_by(client) for client in clients]

        assert serve(32) == [str(steady)] * 32
        returning.listen_again()
        proxy.wait_for("ldaps_proxy_backend_up", 1, backend=str(returning))
        assert 1 <= serve(10).count(str(returning)) < 10


def test_rebalance_moves_idle_sessions_to_a_backend_that_returns(start_proxy, start_backend):
    """As many as make its share; none that is tied to its backend, none in the middle of an operation."""
    steady, returning = start_backend(), start_backend()
    proxy = start_proxy(
        [steady, returning], pool='health.interval = "100ms"\nhealth.rise = 1\nhealth.fall = 1\nrebalance = true'
    )
    returning.die()
    proxy.wait_for("ldaps_proxy_backend_up", 0, backend=str(returning))
    with ExitStack() as stack:
        clients = [stack.enter_context(RawClient(proxy.endpoint())) for _ in range(20)]
        idle, writers, waiting = clients[:12], clients[12:16], clients[16:]
        for client in idle:
            assert client.ask(ber.bind, "cn=somebody", "secret")[-1].result_code == ber.SUCCESS
        for client in writers:
            assert client.ask(ber.delete, "cn=x")[-1].result_code == ber.SUCCESS
        steady.answer = lambda connection, pdu: is_probe(pdu) and answer_everything(connection, pdu)
        for client in waiting:
            client.send(ber.search(1))
        searches = eventually(lambda: len(found := unanswered(steady)) == 4 and found, "four operations are in flight")
        returning.listen_again()
        proxy.wait_for("ldaps_proxy_backend_up", 1, backend=str(returning))
        eventually(lambda: proxy.metrics().sum("ldaps_proxy_backend_sessions") < 20, "idle ones leave")
        steady.answer = answer_everything
        for connection, pdu in searches:
            answer_everything(connection, pdu)
        assert [client.read_result(1)[-1].result_code for client in waiting] == [ber.SUCCESS] * 4
        moved = [served_by(client) for client in idle + waiting].count(str(returning))
        assert {served_by(client) for client in writers} == {str(steady)}
    assert 1 <= moved <= 10
    assert proxy.metrics().sum("ldaps_proxy_failovers_total", kind="rebalance") == moved
    assert any(session.of(ber.BIND_REQUEST) for session in returning.sessions()), "bound as before"


def test_rebalance_moves_sessions_to_the_backend_that_returns_and_to_no_other(start_proxy, start_backend):
    """A regression test: its slow start had most of them change places among the others."""
    steady, returning = (start_backend(), start_backend()), start_backend()
    proxy = start_proxy(
        [*steady, returning], pool='health.interval = "100ms"\nhealth.rise = 1\nhealth.fall = 1\nrebalance = true'
    )
    returning.die()
    proxy.wait_for("ldaps_proxy_backend_up", 0, backend=str(returning))
    with ExitStack() as stack:
        clients = [stack.enter_context(RawClient(proxy.endpoint())) for _ in range(24)]
        before = [served_by(client) for client in clients]
        returning.listen_again()
        proxy.wait_for("ldaps_proxy_backend_up", 1, backend=str(returning))
        eventually(lambda: proxy.metrics().sum("ldaps_proxy_backend_sessions") == 16, "a third of them leaves")
        after = [served_by(client) for client in clients]
    moved = [now for then, now in zip(before, after) if then != now]
    assert moved == [str(returning)] * 8


def unanswered(backend):
    """`(connection, PDU)` of each search that a backend has taken last on a connection, but for probes."""
    last = [(session, session.pdus[-1]) for session in backend.open() if session.pdus]
    return [(session, pdu) for session, pdu in last if pdu.tag == ber.SEARCH_REQUEST and not is_probe(pdu)]


def test_an_ipv6_backend(start_proxy, start_backend):
    backend = start_backend(address="::1")
    proxy = start_proxy([backend])
    proxy.wait_for("ldaps_proxy_backend_up", 1, backend=str(backend))
    with RawClient(proxy.endpoint()) as client:
        assert served_by(client) == str(backend)
        backend.session(1).reset()
        assert served_by(client) == str(backend)


def test_a_login_on_a_warm_upstream_waits_for_no_connect(start_proxy, start_backend):
    """Not even where connecting has become impossible."""
    backend = start_backend()
    proxy = start_proxy([backend], pool=f"{ONCE}\nwarm = 2")
    eventually(lambda: len(backend.connections) == 3, "one connection for the probe, two in stock")
    backend.stop_listening()
    for _ in range(2):
        with RawClient(proxy.endpoint()) as client:
            assert client.ask(ber.bind, "cn=somebody", "secret")[-1].result_code == ber.SUCCESS
    assert len(backend.connections) == 3


def test_warm_upstreams_wait_for_their_first_request(start_proxy, dcs):
    proxy = start_proxy([dcs[0].backend], pool="warm = 3")
    established = "ldaps_proxy_backend_connect_duration_seconds_count"
    for _ in range(10):
        connection = python_ldap(proxy.endpoint(), ADMINISTRATOR)
        assert connection.search_s(samba.BASE, 0)
        connection.unbind_s()
    # The first may have come before the stock was there; ten one after the other don't outrun it.
    assert proxy.metrics().sum(established) <= 2
