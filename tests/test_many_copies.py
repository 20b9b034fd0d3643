"""Several copies behind one name: what they share, and a rolling restart that no client with a second try notices."""

import itertools
import secrets
import ssl
import threading

import pytest

from support import ber, net
from support.clients import RawClient
from support.proxy import config
from support.waiting import eventually

COPIES = 3
PROBE = 'health.probe = "tcp"'


@pytest.fixture
def ticket_keys(tmp_path):
    file = tmp_path / "tickets"
    file.write_text(secrets.token_hex(48) + "\n")
    file.chmod(0o600)
    return file


def with_tickets(certificate, backend, line):
    return config(certificate, [backend], pool=PROBE).replace("[tls]", f"[tls]\n{line}")


def resumes(start, *others):
    """Whether each of `others` resumes a TLS 1.2 session that `start` began."""
    context = ssl.create_default_context(cafile=start.ca)
    context.maximum_version = ssl.TLSVersion.TLSv1_2

    def connect(proxy, session=None):
        endpoint = proxy.endpoint()
        raw = RawClient(endpoint.__class__(endpoint.host, endpoint.port))
        raw.socket = context.wrap_socket(raw.socket, server_hostname=endpoint.host, session=session)
        with raw:
            assert raw.ask(ber.bind)[-1].result_code == ber.SUCCESS
            return raw.socket.session_reused, raw.socket.session

    _, session = connect(start)
    return [connect(other, session)[0] for other in others]


def test_a_session_is_resumed_on_any_copy(start_proxy, start_backend, certificate, ticket_keys):
    """Behind a load balancer a client seldom meets the same copy twice."""
    text = with_tickets(certificate, start_backend(), f'ticket_key_file = "{ticket_keys}"')
    first, *others = [start_proxy(text=text) for _ in range(COPIES)]
    assert resumes(first, first, *others) == [True] * COPIES


def test_without_shared_keys_only_the_same_copy_resumes(start_proxy, start_backend, certificate):
    first, other = [start_proxy(text=with_tickets(certificate, start_backend(), "")) for _ in range(2)]
    assert resumes(first, first, other) == [True, False]


@pytest.mark.deadline(180)
def test_a_rolling_restart_under_load(start_proxy, start_backend, certificate, ticket_keys):
    """Every copy is replaced in turn. Each operation is answered, or refused with a notice before it began and then answered
    by the next copy at the first try; each connection is taken at once or by the next copy."""
    backend = start_backend()
    text = with_tickets(certificate, backend, f'ticket_key_file = "{ticket_keys}"')
    texts = [text.replace('"127.0.0.1:0"', f'"{host}:{port}"', 1) for host, port in (net.closed_port() for _ in range(COPIES))]
    copies = [start_proxy(text=one) for one in texts]
    endpoints = [copy.endpoint() for copy in copies]
    end, failures, answered = threading.Event(), [], [0] * 12

    def work(number):
        turns = itertools.cycle(endpoints[number % COPIES:] + endpoints[:number % COPIES])
        client = None
        try:
            while not end.is_set():
                for attempt in (1, 2):
                    client = client or connect(turns)
                    if searched(client):
                        answered[number] += 1
                        break
                    client.close()
                    client = None
                else:
                    raise AssertionError("two sessions in a row took no operation")
        except Exception as error:
            failures.append(error)

    workers = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(len(answered))]
    for worker in workers:
        worker.start()
    for number, one in enumerate(texts):
        before = list(answered)
        eventually(lambda: all(now > then + 20 for now, then in zip(answered, before)) or failures, "the load runs")
        copies[number].terminate()
        assert copies[number].wait() == 0
        copies[number] = start_proxy(text=one)
    before = list(answered)
    eventually(lambda: all(now > then + 20 for now, then in zip(answered, before)) or failures, "the load still runs")
    end.set()
    for worker in workers:
        worker.join(30)
    assert failures == []


def connect(turns):
    """A session with the next copy, or with the one after it."""
    try:
        return RawClient(next(turns))
    except OSError:
        return RawClient(next(turns))


def searched(client):
    """True if answered; False if the session ended in good order before any part of an answer."""
    number = client.next_id()
    try:
        client.send(ber.search(number))
        first = client.read()
    except ssl.SSLError:
        return False  # the notice and the end of TLS came before the request left
    if first is None or first.is_notice(ber.UNAVAILABLE):
        return False
    if first.tag == ber.SEARCH_DONE and first.result_code == ber.UNAVAILABLE:
        return False
    assert (first.message_id, first.tag) == (number, ber.SEARCH_ENTRY), first
    assert client.read_result(number)[-1].result_code == ber.SUCCESS
    return True
