"""SASL through the proxy: NTLM and Kerberos against a real DC, with and without a security layer, and the decision
between an inspected session and a tunnel (design.md, "SASL security layers")."""

import json
import threading

import ldap3
import pytest

from support import ber, ntlm, samba
from support.backend import answer_everything, answer_nothing
from support.certs import PROXY_NAME
from support.clients import RawClient
from support.kerberos import Realm
from support.ntlm import wide
from support.samba import ADMINISTRATOR, BASE, USERS
from support.waiting import eventually

TUNNELS = "ldaps_proxy_tunnels_total"
LAYERS = {"plain": ntlm.PLAIN, "sign": ntlm.SIGN, "seal": ntlm.SEAL}


@pytest.fixture
def proxy(proxy_for, dc):
    return proxy_for(dc)


@pytest.fixture
def realm(dc, authority, tmp_path):
    return Realm(dc, tmp_path, ca=authority.ca)


def proxy_url(proxy):
    """By name: Kerberos and Samba's client want one."""
    return f"ldaps://{PROXY_NAME}:{proxy.endpoint().port}"


@pytest.mark.parametrize("layer", ["plain", "sign", "seal"])
def test_sambas_own_tool(proxy, realm, layer):
    done = realm.run([
        "ldbsearch", "-H", proxy_url(proxy), "-U", rf"CORP\Administrator%{ADMINISTRATOR.password}", "--use-kerberos=off",
        f"--option=client ldap sasl wrapping={layer}", "--option=tls verify peer=no_check",
        "-b", BASE, "-s", "base", "description",
    ])
    assert "description: dc1" in done.stdout


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
def test_ntlm(proxy, layer):
    """The bind's steps, then searches small and large, inside the layer where there is one."""
    with RawClient(proxy.endpoint()) as client:
        inside = ntlm.bind(client, USERS[0], layer)
        entry, _ = inside.ask(ber.search, BASE, attributes=["description"])
        assert entry.attributes == {"description": [b"dc1"]}
        tree = inside.ask(ber.search, BASE, ber.SUB)
        assert len(tree) > 100
        assert tree[-1].result_code == ber.SUCCESS


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
def test_ntlm_with_a_wrong_password(proxy, layer):
    with RawClient(proxy.endpoint()) as client:
        with pytest.raises(AssertionError, match="bind refused: 49"):
            ntlm.bind(client, USERS[0]._replace(password="wrong"), layer)
        assert client.bind(USERS[1]).ask(ber.search)[-1].result_code == ber.SUCCESS


def test_handwritten_ntlm(proxy):
    """What the disguises below are made from passes."""
    with RawClient(proxy.endpoint()) as client:
        assert ntlm.Handwritten(USERS[0], user=wide("user01")).bind(client).result_code == ber.SUCCESS


@pytest.mark.parametrize("disguise", [
    {"user": wide("user01"), "claims": 0},
    {"user": b"user01", "domain": b"CORP", "negotiates": ntlm.OEM},
    {"user": wide("user01\0junk")},
    {"user": wide("user01"), "domain": wide("CORP\0junk")},
    {"user": wide("user01"), "pieces": True},
    {"user": b"\0A", "domain": b"", "negotiates": ntlm.OEM, "null": True},
], ids=["unicode unsaid", "oem", "user cut", "domain cut", "in pieces", "null session"])
def test_ntlm_in_disguise_ends_at_the_proxy(proxy, dc, disguise):
    """The DC lets all of these in, as user01 or as a null session. Passwords guessed so would count for nobody."""
    bind = ntlm.Handwritten(USERS[0], **disguise).bind
    with RawClient(dc.endpoint) as client:
        assert bind(client).result_code == ber.SUCCESS
    with RawClient(proxy.endpoint()) as client:
        answer = bind(client)
        assert (answer.result_code, "NTLM" in answer.diagnostic) == (ber.PROTOCOL_ERROR, True)
        assert client.bind(USERS[1]).ask(ber.search)[-1].result_code == ber.SUCCESS


@pytest.mark.parametrize("user", ["", "\0", "\0user01"], ids=["empty", "NUL", "cut"])
def test_an_ntlm_null_session_is_anonymous(start_proxy, dc, user):
    """It has an anonymous client's limits, and none is allowed where anonymous clients aren't."""
    null_session = ntlm.Handwritten(USERS[0], user=wide(user), null=True)
    extra = '[limits]\nrequest_size_anonymous = "1 KiB"\nrequest_size = "1 MiB"'
    open_to_all = start_proxy([dc.backend], extra=extra)
    with RawClient(open_to_all.endpoint()) as client:
        assert null_session.bind(client).result_code == ber.SUCCESS
        client.send(ber.search(9, "cn=" + "x" * 2000))
        assert client.read_to_end()[-1].is_notice(ber.PROTOCOL_ERROR)
    named_only = start_proxy([dc.backend], listener="policy.allow_anonymous = false")
    with RawClient(named_only.endpoint()) as client:
        answer = null_session.bind(client)
        assert (answer.result_code, "anonymous" in answer.diagnostic) == (ber.UNWILLING_TO_PERFORM, True)


def test_a_plain_sasl_session_stays_inspected_and_a_sealed_one_is_a_tunnel(start_proxy, dc):
    """The metrics count operations of the first kind only."""
    proxy = start_proxy([dc.backend])
    searches = {"operation": "search", "result": "success"}
    for layer, counted in [(ntlm.PLAIN, 3), (ntlm.SEAL, 0)]:
        before = proxy.metrics().sum("ldaps_proxy_operations_total", **searches)
        with RawClient(proxy.endpoint()) as client:
            inside = ntlm.bind(client, USERS[0], layer)
            for _ in range(3):
                assert inside.ask(ber.search)[-1].result_code == ber.SUCCESS
        assert proxy.metrics().sum("ldaps_proxy_operations_total", **searches) == before + counted


@pytest.mark.parametrize("mechanism", ["GSSAPI", "GSS-SPNEGO"])
@pytest.mark.parametrize(("options", "strength"), [((), 256), (("-O", "maxssf=0"), 0)], ids=["sealed", "maxssf=0"])
def test_kerberos(proxy, realm, mechanism, options, strength):
    """-N: libldap must not replace the proxy's name by what it finds for 127.0.0.1."""
    done = realm.log_in(ADMINISTRATOR).run([
        "ldapsearch", "-N", "-Y", mechanism, *options, "-H", proxy_url(proxy), "-LLL", "-b", BASE,
        "(|(sAMAccountName=user*)(objectClass=domainDNS))", "description", "cn",
    ])
    assert f"SASL SSF: {strength}" in done.stderr
    assert "description: dc1" in done.stdout
    assert done.stdout.count("cn: user") == len(USERS)


def test_another_mechanism_aborts_a_sasl_bind(proxy):
    """RFC 4513 §5.2.1.2: a simple bind in the middle of an NTLM bind is a new bind."""
    with RawClient(proxy.endpoint()) as client:
        security = ntlm.client_side(USERS[0], ntlm.PLAIN, "CORP")
        _, token = security.update(b"")
        assert client.ask(ber.sasl_bind, "GSS-SPNEGO", token)[-1].result_code == ber.SASL_BIND_IN_PROGRESS
        client.bind(USERS[2])
        entry, _ = client.ask(ber.search, BASE, attributes=["description"])
        assert entry.attributes == {"description": [b"dc1"]}


def test_ldap3_ntlm_ends_as_it_does_directly(proxy, dc):
    """ldap3 speaks Sicily (authentication choices 9 to 11), to which Samba hangs up: no other end through the proxy."""
    def outcome(endpoint):
        server = ldap3.Server(endpoint.host, endpoint.port, use_ssl=bool(endpoint.ca), connect_timeout=10, get_info=ldap3.NONE)
        login = ldap3.Connection(
            server, user=r"CORP\user01", password=USERS[0].password, authentication=ldap3.NTLM, receive_timeout=10
        )
        try:
            return login.bind()
        except ldap3.core.exceptions.LDAPException:
            return "refused"

    assert not outcome(dc.endpoint) or outcome(dc.endpoint) == "refused"
    assert bool(outcome(proxy.endpoint())) == bool(outcome(dc.endpoint))


# The decision octet by octet, on a scripted backend.

@pytest.fixture
def scripted(start_proxy, start_backend):
    """`(proxy, backend)`; the backend accepts every bind and then echoes raw octets."""
    backend = start_backend()
    return start_proxy([backend], pool='health.probe = "tcp"'), backend


def test_octet_0x00_after_a_sasl_bind_opens_a_tunnel_both_ways(scripted):
    proxy, backend = scripted
    wrapped = b"\x00\x00\x00\x08" + b"\x30\xff\x80\x00 raw"
    with RawClient(proxy.endpoint()) as client:
        assert client.ask(ber.sasl_bind, "GSSAPI", b"token")[-1].result_code == ber.SUCCESS
        already = len(backend.session().received)
        client.send(wrapped)
        backend.session().wait_for_octets(already + len(wrapped))
        assert backend.session().received[already:] == wrapped
        backend.session().send(wrapped[::-1])
        assert client.read_octets(len(wrapped)) == wrapped[::-1]
    assert proxy.metrics().sum(TUNNELS) == 1


def test_octet_0x30_after_a_sasl_bind_stays_inspected(scripted):
    proxy, backend = scripted
    with RawClient(proxy.endpoint(), malformed=True) as client:
        assert client.ask(ber.sasl_bind, "GSSAPI", b"token")[-1].result_code == ber.SUCCESS
        assert client.ask(ber.search)[-1].result_code == ber.SUCCESS
        client.send(b"\x00\x00\x00\x01x")
        assert client.read_to_end()[-1].is_notice(ber.PROTOCOL_ERROR)
    assert proxy.metrics().sum(TUNNELS) == 0


@pytest.mark.parametrize("request_", [ber.bind(1, "cn=x", "secret"), ber.search(1)], ids=["simple bind", "search"])
def test_octet_0x00_without_a_sasl_bind_is_malformed(scripted, request_):
    proxy, backend = scripted
    with RawClient(proxy.endpoint(), malformed=True) as client:
        client.send(request_)
        client.read_result(1)
        client.send(b"\x00\x00\x00\x01x")
        assert client.read_to_end()[-1].is_notice(ber.PROTOCOL_ERROR)
    assert bytes(backend.session().received).startswith(request_)
    assert b"\x01x" not in bytes(backend.session().received)[len(request_):]


def test_a_failed_sasl_bind_opens_no_tunnel(scripted):
    proxy, backend = scripted
    backend.answer = lambda connection, pdu: connection.send(
        ber.result(pdu.message_id, ber.BIND_RESPONSE, ber.INVALID_CREDENTIALS)
    )
    with RawClient(proxy.endpoint(), malformed=True) as client:
        assert client.ask(ber.sasl_bind, "GSSAPI", b"token")[-1].result_code == ber.INVALID_CREDENTIALS
        client.send(b"\x00\x00\x00\x01x")
        assert client.read_to_end()[-1].is_notice(ber.PROTOCOL_ERROR)


def test_a_tunnel_is_refused_where_the_listener_says_so(start_proxy, start_backend):
    backend = start_backend()
    proxy = start_proxy([backend], pool='health.probe = "tcp"', listener='policy.sasl_layer = "refuse"')
    with RawClient(proxy.endpoint(), malformed=True) as client:
        client.ask(ber.sasl_bind, "GSSAPI", b"token")
        client.send(b"\x00\x00\x00\x01x")
        assert client.ended_or_notice()
    assert proxy.metrics().sum(TUNNELS) == 0
    assert b"\x01x" not in bytes(backend.session().received)


def test_a_lost_backend_ends_a_tunnel(scripted):
    """It cannot fail over: its state lives in the backend."""
    proxy, backend = scripted
    with RawClient(proxy.endpoint()) as client:
        client.ask(ber.sasl_bind, "GSSAPI", b"token")
        client.send(b"\x00\x00\x00\x01x")
        backend.session().wait_for_octets(len(ber.sasl_bind(1, "GSSAPI", b"token")) + 5)
        backend.die()
        assert client.ended_or_notice()


# RFC 4511 §4.2.1: binds and other operations don't overlap.

BEHIND_A_BIND = {
    "search": ber.search(2), "write": ber.delete(2, "cn=x"), "extended": ber.extended(2, ber.WHO_AM_I),
    "bind": ber.bind(2, "cn=y", "other"),
}


@pytest.mark.parametrize("request_", BEHIND_A_BIND.values(), ids=BEHIND_A_BIND.keys())
@pytest.mark.parametrize("writes", ["one write", "two writes"])
def test_no_request_passes_while_a_bind_is_open(scripted, request_, writes):
    """It is held, and leaves once the bind is answered: the backend looks just before it answers."""
    proxy, backend = scripted
    release, passed = threading.Event(), []

    def answer(connection, pdu):
        if pdu.message_id == 1:
            release.wait(30)
            passed.append(connection.received.removeprefix(bind) + connection.unread())
        answer_everything(connection, pdu)

    backend.answer = answer
    bind = ber.bind(1, "cn=x", "secret")
    with RawClient(proxy.endpoint()) as client:
        if writes == "one write":
            client.send(bind, request_)
        else:
            client.send(bind)
            backend.session().wait_for(ber.BIND_REQUEST)
            client.send(request_)
        eventually(lambda: received(proxy) == len(bind + request_), "the proxy has read both")
        release.set()
        assert client.read_result(1)[-1].result_code == ber.SUCCESS
        assert passed == [b""]
        assert client.read_result(2)[-1].result_code == ber.SUCCESS
    assert backend.session().received == bind + request_


def test_between_the_steps_of_a_sasl_bind_requests_are_refused(scripted):
    """RFC 4511 §4.2.1. Holding them would be for ever, should the client wait for their answers first."""
    proxy, backend = scripted
    codes = iter([ber.SASL_BIND_IN_PROGRESS, ber.SUCCESS])
    backend.answer = lambda connection, pdu: connection.send(ber.result(pdu.message_id, ber.BIND_RESPONSE, next(codes)))
    with RawClient(proxy.endpoint()) as client:
        assert client.ask(ber.sasl_bind, "GSS-SPNEGO", b"1")[-1].result_code == ber.SASL_BIND_IN_PROGRESS
        assert client.ask(ber.search)[-1].result_code == ber.PROTOCOL_ERROR
        assert client.ask(ber.sasl_bind, "GSS-SPNEGO", b"2")[-1].result_code == ber.SUCCESS
    assert backend.session().of(ber.SEARCH_REQUEST) == []


def test_a_bind_does_not_wait_for_operations_under_way(scripted):
    """The backend judges: holding the bind would let one long search keep a client from changing who it is."""
    proxy, backend = scripted
    backend.answer = answer_nothing
    with RawClient(proxy.endpoint()) as client:
        client.send(ber.search(1))
        session = backend.session()
        session.wait_for(ber.SEARCH_REQUEST)
        client.send(ber.bind(2, "cn=x", "secret"))
        session.wait_for(ber.BIND_REQUEST)
        session.send(ber.result(2, ber.BIND_RESPONSE, ber.BUSY), ber.result(1, ber.SEARCH_DONE))
        assert client.read_result(2)[-1].result_code == ber.BUSY
        assert client.read_result(1)[-1].result_code == ber.SUCCESS


def received(proxy):
    """Octets the proxy has read from its clients."""
    return sum(session["received"] for session in json.loads(proxy.http("/api/v1/sessions")[1])["sessions"])


def test_sasl_steps_reach_the_backend_unchanged(scripted):
    """RFC 4513 §5.2.1.3: absent and empty credentials differ."""
    proxy, backend = scripted
    steps = [(None, ber.SASL_BIND_IN_PROGRESS), (b"", ber.SASL_BIND_IN_PROGRESS), (b"\x00\xff", ber.SUCCESS)]
    answers = iter([
        ber.result(number, ber.BIND_RESPONSE, code, "", ber.octets(b"\x00challenge", tag=0x87))
        for number, (_, code) in enumerate(steps, 1)
    ])
    backend.answer = lambda connection, pdu: connection.send(next(answers))
    with RawClient(proxy.endpoint()) as client:
        for credentials, code in steps:
            answer = client.ask(ber.sasl_bind, "GSS-SPNEGO", credentials)[-1]
            assert (answer.result_code, answer.sasl_credentials) == (code, b"\x00challenge")
    expected = b"".join(ber.sasl_bind(n, "GSS-SPNEGO", credentials) for n, (credentials, _) in enumerate(steps, 1))
    assert bytes(backend.session().received).startswith(expected)
