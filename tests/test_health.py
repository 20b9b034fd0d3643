"""Which backends are used: probes of real DCs, traffic that knows better, capacity."""

from contextlib import ExitStack

import ldap
import pytest

from support import ber, samba
from support.backend import answer_everything
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


def test_one_clients_poisonous_query_ejects_nobody(start_proxy, start_backend):
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
    table = f'{{ address = "{backend}", max_sessions = 1 }}'
    proxy = start_proxy([backend], pool="queue = 1\nqueue_timeout = \"30s\"")
    text = proxy.config_file.read_text().replace(f"backends = ['{backend}']", f"backends = [{table}]")
    assert table in text
    proxy.config_file.write_text(text)
    proxy.reload()
    proxy.wait_for("ldaps_proxy_reloads_total", 1, result="applied")
    with RawClient(proxy.endpoint()) as first, RawClient(proxy.endpoint()) as second:
        assert first.ask(ber.search)[-1].result_code == ber.SUCCESS
        waiting = second.next_id()
        second.send(ber.search(waiting))
        proxy.wait_for("ldaps_proxy_queue_waiting", 1)
        with RawClient(proxy.endpoint()) as third:
            refused = third.ask(ber.search)[-1]
            assert refused.result_code == ber.BUSY, refused.diagnostic
        first.close()
        assert second.read_result(waiting)[-1].result_code == ber.SUCCESS
    proxy.wait_for("ldaps_proxy_queue_waiting", 0)


def test_warm_upstreams_wait_for_their_first_request(start_proxy, dcs):
    proxy = start_proxy([dcs[0].backend], pool="warm = 3")
    established = "ldaps_proxy_backend_connect_duration_seconds_count"
    for _ in range(10):
        connection = python_ldap(proxy.endpoint(), ADMINISTRATOR)
        assert connection.search_s(samba.BASE, 0)
        connection.unbind_s()
    # The first may have come before the stock was there; ten one after the other don't outrun it.
    assert proxy.metrics().sum(established) <= 2
