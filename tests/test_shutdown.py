"""The end of the process: nothing in flight is lost, idle clients are told, nobody waits for ever."""

import signal
import threading
from contextlib import suppress

import pytest

from support import ber
from support.backend import answer_everything
from support.clients import RawClient
from support.dns import NameServer
from support.process import Process
from support.proxy import BINARY, config
from support.samba import ADMINISTRATOR, BASE
from support.waiting import eventually


@pytest.fixture
def backend(start_backend):
    return start_backend()


@pytest.fixture
def proxy(start_proxy, backend):
    return start_proxy([backend], pool='health.probe = "tcp"')


def hold_searches(backend):
    """Searches wait until the returned event is set."""
    release = threading.Event()

    def answer(connection, pdu):
        def finish():
            # Where nobody releases it, the test may be over, and another one under way.
            if release.wait(30):
                with suppress(OSError):
                    connection.send(ber.entry(pdu.message_id, "cn=late", {}), ber.result(pdu.message_id, ber.SEARCH_DONE))

        if pdu.tag == ber.SEARCH_REQUEST:
            threading.Thread(target=finish, daemon=True).start()
        else:
            answer_everything(connection, pdu)

    backend.answer = answer
    return release


def drains(proxy):
    """Whether /readyz has turned."""
    return proxy.http("/readyz")[0] == 503


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_without_clients(proxy, number):
    proxy.process.signal(number)
    assert proxy.wait() == 0


def test_drain_finishes_what_is_in_flight(proxy, backend):
    """/readyz turns, the listener closes, the operation gets its answer, then a notice, then exit 0."""
    release = hold_searches(backend)
    with RawClient(proxy.endpoint()) as client:
        client.send(ber.search(1))
        backend.session().wait_for(ber.SEARCH_REQUEST)
        proxy.terminate()
        eventually(lambda: drains(proxy), "/readyz answers 503 while draining")
        eventually(lambda: not proxy.accepts(), "the listener refuses")
        release.set()
        entry, done = client.read_result(1)
        assert (entry.entry_name, done.result_code) == ("cn=late", ber.SUCCESS)
        assert client.read_to_end()[-1].is_notice(ber.UNAVAILABLE)
    assert proxy.wait() == 0


def test_idle_clients_are_told(proxy):
    """RFC 4511 §4.4.1: a notice of disconnection, then TLS's close_notify."""
    with RawClient(proxy.endpoint()) as fresh, RawClient(proxy.endpoint()) as used:
        used.ask(ber.search)
        proxy.terminate()
        [notice] = used.read_to_end()
        assert notice.is_notice(ber.UNAVAILABLE)
        assert notice.diagnostic
        assert all(pdu.is_notice(ber.UNAVAILABLE) for pdu in fresh.read_to_end())
    assert proxy.wait() == 0


def test_newcomers_are_served_until_the_delay_is_over(start_proxy, backend):
    """`shutdown.delay`: /readyz turns, for balancers to see; who was here isn't sent away yet, who comes is served."""
    proxy = start_proxy([backend], pool='health.probe = "tcp"', extra='[shutdown]\ndelay = "1h"')
    with RawClient(proxy.endpoint()) as old:
        old.ask(ber.search)
        proxy.terminate()
        eventually(lambda: drains(proxy), "/readyz answers 503")
        with RawClient(proxy.endpoint()) as new:
            assert new.ask(ber.search)[-1].result_code == ber.SUCCESS
            assert old.ask(ber.search)[-1].result_code == ber.SUCCESS
            proxy.terminate()
            for client in (new, old):
                assert client.read_to_end()[-1].is_notice(ber.UNAVAILABLE)
        assert not proxy.accepts()
    assert proxy.wait() == 0


def test_after_the_delay_the_drain_begins(start_proxy, backend):
    proxy = start_proxy([backend], pool='health.probe = "tcp"', extra='[shutdown]\ndelay = "300ms"')
    release = hold_searches(backend)
    with RawClient(proxy.endpoint()) as idle, RawClient(proxy.endpoint()) as busy:
        idle.ask(ber.bind)
        busy.send(ber.search(1))
        backend.session(1).wait_for(ber.SEARCH_REQUEST)
        proxy.terminate()
        assert idle.read_to_end()[-1].is_notice(ber.UNAVAILABLE)
        eventually(lambda: not proxy.accepts(), "the listener refuses")
        release.set()
        assert busy.read_result(1)[-1].result_code == ber.SUCCESS
    assert proxy.wait() == 0


def test_a_request_that_comes_while_draining(proxy, backend):
    release = hold_searches(backend)
    with RawClient(proxy.endpoint()) as client:
        client.send(ber.search(1))
        backend.session().wait_for(ber.SEARCH_REQUEST)
        proxy.terminate()
        eventually(lambda: drains(proxy), "/readyz answers 503 while draining")
        client.send(ber.delete(2, "cn=x"))
        release.set()
        seen = client.read_to_end()
    assert [pdu.tag for pdu in seen if pdu.message_id == 1] == [ber.SEARCH_ENTRY, ber.SEARCH_DONE]
    # Carried out whole, or refused and not carried out: what the client is told is what happened.
    answers = [pdu.result_code for pdu in seen if pdu.message_id == 2]
    assert answers in ([ber.UNAVAILABLE], [ber.SUCCESS])
    assert bool(backend.session().of(ber.DELETE_REQUEST)) == (answers == [ber.SUCCESS])
    assert proxy.wait() == 0


def test_a_client_that_never_pauses_cannot_hold_up_the_drain(proxy, backend):
    """It always has a request in flight. No new ones are taken: each is answered as unavailable, those in flight as they
    should be, and the session ends long before the drain's timeout of 30 s."""
    with RawClient(proxy.endpoint(), seconds=10) as client:
        first, second = client.next_id(), client.next_id()
        client.send(ber.search(first), ber.search(second))
        proxy.terminate()
        codes = {}
        while (pdu := client.read()) is not None and pdu.message_id != 0:
            if pdu.tag == ber.SEARCH_DONE:
                codes[pdu.message_id] = pdu.result_code
                client.send(ber.search(client.next_id()))
        assert pdu.is_notice(ber.UNAVAILABLE)
    forwarded = {pdu.message_id for pdu in backend.session().of(ber.SEARCH_REQUEST)}
    assert forwarded == {number for number, code in codes.items() if code == ber.SUCCESS}
    assert proxy.wait() == 0


def test_drain_ends_at_its_timeout(start_proxy, backend):
    proxy = start_proxy([backend], pool='health.probe = "tcp"', extra='[shutdown]\ndrain_timeout = "300ms"')
    hold_searches(backend)
    with RawClient(proxy.endpoint()) as client:
        client.send(ber.search(1))
        backend.session().wait_for(ber.SEARCH_REQUEST)
        proxy.terminate()
        final, notice = client.read_to_end()
        assert (final.message_id, final.result_code) == (1, ber.UNAVAILABLE)
        assert final.diagnostic
        assert notice.is_notice(ber.UNAVAILABLE)
    assert proxy.wait() == 0
    operation, session = proxy.told(sessions=1)
    assert (operation["refusal"], session["ended"]) == ("draining", "shutdown")


def test_second_signal_ends_at_once(proxy, backend):
    """The default drain timeout is 30 s: this is over long before."""
    hold_searches(backend)
    with RawClient(proxy.endpoint()) as client:
        client.send(ber.search(1))
        backend.session().wait_for(ber.SEARCH_REQUEST)
        proxy.terminate()
        eventually(lambda: drains(proxy), "/readyz answers 503 while draining")
        proxy.terminate()
        proxy.wait(seconds=10)


@pytest.mark.parametrize("signals", [1, 2])
def test_a_reload_that_waits_for_dns_holds_up_no_end(proxy, backend, signals):
    """A regression test: SIGTERM was read once the reload was done. A reload that is given up changes nothing."""
    release = hold_searches(backend)
    with NameServer() as names, RawClient(proxy.endpoint()) as client:
        names.silent = True
        client.send(ber.search(1))
        backend.session().wait_for(ber.SEARCH_REQUEST)
        text = proxy.config_file.read_text().replace(f"'{backend}'", "'dc.corp.example.com:389'")
        proxy.config_file.write_text(text.replace("[admin]", f'discovery.name_servers = ["{names}"]\n[admin]'))
        proxy.reload()
        eventually(lambda: names.asked, "the reload waits for an address")
        proxy.terminate()
        eventually(lambda: drains(proxy), "/readyz answers 503 while draining")
        proxy.terminate() if signals == 2 else release.set()
        *_, final, notice = client.read_to_end()
        assert (final.message_id, final.result_code) == (1, ber.SUCCESS if signals == 1 else ber.UNAVAILABLE)
        assert notice.is_notice(ber.UNAVAILABLE)
        assert proxy.wait() == 0
    assert "the reload is given up" in proxy.log() and "reloaded" not in proxy.log()


def test_a_start_that_waits_for_dns_holds_up_no_end(certificate, tmp_path):
    """A regression test: SIGTERM was read once the start was done, and then the proxy began to serve."""
    with NameServer() as names:
        names.silent = True
        file = tmp_path / "ldaps-proxy.toml"
        file.write_text(config(certificate, ["dc.corp.example.com:389"], pool=f'discovery.name_servers = ["{names}"]'))
        process = Process([BINARY, "run", "--config", file], directory=tmp_path)
        try:
            eventually(lambda: names.asked, "the start waits for an address")
            process.signal(signal.SIGTERM)
            assert process.wait() == 0
        finally:
            process.close()
    assert "the start is given up" in process.stderr() and "listening" not in process.stderr()


def test_sigterm_under_load_loses_nothing(start_proxy, dc):
    """20 clients search as fast as they can: whatever was asked before the notice is answered, whole."""
    proxy = start_proxy([dc.backend])
    under_way = threading.Barrier(21)
    failures, answered = [], []

    def work():
        try:
            with RawClient(proxy.endpoint()).bind(ADMINISTRATOR) as client:
                under_way.wait(30)
                while True:
                    number = client.next_id()
                    client.send(ber.search(number, BASE, ber.SUB, ber.equality("sAMAccountName", "user01"), ["cn"]))
                    if not _read_whole_answer(client, number):
                        return
                    answered.append(number)
        except Exception as error:
            failures.append(error)
            under_way.abort()

    workers = [threading.Thread(target=work, daemon=True) for _ in range(20)]
    for worker in workers:
        worker.start()
    under_way.wait(30)
    eventually(lambda: len(answered) > 200, "the load runs")
    proxy.terminate()
    for worker in workers:
        worker.join(30)
    assert failures == []
    assert not any(worker.is_alive() for worker in workers)
    assert proxy.wait() == 0


def _read_whole_answer(client, number):
    """False where the session ended with a notice before any part of the answer; an error where it ended within."""
    first = client.read()
    if first is None:
        raise AssertionError("the session ended without a notice")
    if first.is_notice(ber.UNAVAILABLE):
        assert client.read() is None
        return False
    if first.tag == ber.SEARCH_DONE:
        assert first.result_code == ber.UNAVAILABLE, first
        return _read_whole_answer(client, number)
    assert (first.message_id, first.tag) == (number, ber.SEARCH_ENTRY)
    assert client.read_result(number)[-1].result_code == ber.SUCCESS
    return True
