"""Why a session ended: each reason is counted, and told in its record of the access log."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from support import ber
from support.backend import RESPONSE_TAG
from support.clients import RawClient
from support.process import run
from support.proxy import BINARY
from support.reference import names_a_test, words
from support.waiting import eventually

ENDED = "ldaps_proxy_sessions_ended_total"


@dataclass
class Scene:
    """What happens to the one session of `client`."""

    proxy: object
    backend: object
    client: RawClient
    directory: object


# What the client does.

def unbind(scene):
    scene.client.send(ber.unbind(1))


def close(scene):
    scene.client.ask(ber.search)
    scene.client.finish_sending()


def reset(scene):
    scene.client.ask(ber.search)
    scene.client.reset()


def send(*octets):
    return lambda scene: scene.client.send(*octets)


def say_nothing(scene):
    """The first request doesn't come."""


def say_nothing_more(scene):
    scene.client.ask(ber.search)


def read_nothing(scene):
    """A response that no buffer on the way holds."""
    scene.backend.answer = lambda connection, pdu: connection.send(ber.entry(pdu.message_id, "cn=x", {"a": [bytes(1 << 20)]}) * 64)
    scene.client.send(ber.search(1))


def sign_what_must_not_be_signed(scene):
    scene.client.ask(ber.sasl_bind, "GSSAPI", b"token")
    scene.client.send(b"\x00\x00\x00\x01x")


def start_no_tls(scene):
    scene.client.ask(ber.extended, ber.START_TLS)
    scene.client.send(b"GET / HTTP/1.1\r\n\r\n")


# What the backend does.

def answer(*pdus):
    """Its answer to a search."""
    def play(scene):
        scene.backend.answer = lambda connection, pdu: connection.send(*pdus)
        scene.client.send(ber.search(1))

    return play


def lose_the_backend(scene):
    scene.client.ask(ber.search)
    scene.backend.session().close()


def lose_the_backend_after_a_write(scene):
    scene.client.ask(ber.modify, "cn=x", {"a": ["b"]})
    scene.backend.session().close()


def lose_the_backend_and_the_password(scene):
    scene.client.ask(ber.bind, "cn=ann", "secret")
    scene.backend.answer = lambda connection, pdu: connection.send(
        ber.result(pdu.message_id, RESPONSE_TAG[pdu.tag], ber.INVALID_CREDENTIALS)
    )
    scene.backend.session().close()
    scene.client.send(ber.search(2))


# What the operator does.

def kill(scene):
    scene.client.ask(ber.search)
    admin = f"unix:{scene.directory / 'admin.sock'}"
    number = run([BINARY, "sessions", "--admin", admin]).stdout.splitlines()[-1].split()[0]
    run([BINARY, "kill", number, "--admin", admin])


def trust_it_no_more(scene):
    scene.client.ask(ber.search)
    text = scene.proxy.config_file.read_text()
    scene.proxy.config_file.write_text(text.replace("127.0.0.1/32", "10.0.0.0/8"))
    scene.proxy.reload()


def stop(scene):
    scene.client.ask(ber.search)
    scene.proxy.terminate()


def limit(key):
    return {"extra": f"[limits]\n{key}"}


SCENES = {
    "unbind": (unbind, {}),
    "client_closed": (close, {}),
    "client_lost": (reset, {}),
    "protocol_error": (send(b"\x30\x80"), {}),
    "request_size": (send(ber.search(1, "cn=" + "x" * 2000)), limit('search_size = "1 KiB"')),
    "first_request_timeout": (say_nothing, limit('first_request_timeout = "200ms"')),
    "request_timeout": (send(ber.search(1)[:-1]), limit('request_timeout = "200ms"')),
    "idle_timeout": (say_nothing_more, limit('idle_timeout = "200ms"')),
    "write_timeout": (read_nothing, limit('write_timeout = "200ms"')),
    "policy": (sign_what_must_not_be_signed, {"listener": 'policy.sasl_layer = "refuse"'}),
    "handshake_failed": (start_no_tls, {"listener": 'protocol = "ldap"'}),
    "backend_notice": (answer(ber.notice_of_disconnection(ber.PROTOCOL_ERROR, "no")), {}),
    "backend_lost": (lose_the_backend, {"pool": 'failover.mode = "none"'}),
    "pinned": (lose_the_backend_after_a_write, {}),
    "replay_refused": (lose_the_backend_and_the_password, {}),
    "untrusted": (trust_it_no_more, {"extra": "[trust]\nend_sessions = true"}),
    "killed": (kill, {"extra": 'socket = "admin.sock"'}),
    "shutdown": (stop, {}),
}
ELSEWHERE = {"buffer_memory": "test_attacks.py::test_buffers_of_all_sessions_have_a_bound"}


@pytest.mark.parametrize(("reason", "scene"), SCENES.items(), ids=SCENES)
def test_why_a_session_ended_is_counted_and_told(start_proxy, start_backend, reason, scene):
    play, keys = scene
    backend = start_backend()
    pool = f'health.probe = "tcp"\n{keys.get("pool", "")}'
    proxy = start_proxy([backend], **{**keys, "pool": pool})
    with RawClient(proxy.endpoint(tls="ldap\"" not in keys.get("listener", "")), malformed=True) as client:
        play(Scene(proxy, backend, client, proxy.directory))
        [session] = [record for record in proxy.told(sessions=1) if record["event"] == "session"]
        assert session["ended"] == reason
        if reason == "shutdown":
            assert proxy.wait() == 0
            return  # and nobody is left to ask for metrics
        eventually(lambda: counted(proxy) == {reason: 1}, f"it is counted as {reason}, and as nothing else")


def counted(proxy):
    return {dict(labels)["reason"]: count for labels, count in proxy.metrics().get(ENDED).items() if count}


def test_every_reason_has_its_scene():
    assert SCENES.keys() | ELSEWHERE.keys() == words("`reason` of a session's end")
    assert not SCENES.keys() & ELSEWHERE.keys()
    for reason, where in ELSEWHERE.items():
        assert names_a_test(where, reason), where
