"""Everything an LDAP client does with Simple AD, over LDAPS through the proxy, on a real Samba domain controller."""

import ldap
import ldap.controls
import ldap3
import pytest

from support import ber, samba
from support.clients import RawClient, ldap3_connection, ldapsearch, python_ldap, tool
from support.samba import ADMINISTRATOR, BASE, USERS

USERS_DN = f"CN=Users,{BASE}"


@pytest.fixture
def through(proxy_for, dc):
    return proxy_for(dc).endpoint()


def names(records):
    return [name for name, _ in records]


def test_the_articles_query(through):
    """The one that the published recipe for Simple AD ends with."""
    found = ldapsearch(through, BASE, "sAMAccountName=Administrator", account=ADMINISTRATOR)
    assert [name.lower() for name in names(found)] == [f"cn=administrator,cn=users,{BASE}"]


@pytest.mark.parametrize("name", ["user01@corp.example.com", "CORP\\user01", f"CN=user01,{USERS_DN}"])
def test_bind_by_every_kind_of_name(through, name):
    assert python_ldap(through).simple_bind_s(name, USERS[0].password)[0] == ldap.RES_BIND


@pytest.mark.parametrize("name", [
    r"us\er01@corp.example.com", r"user01\@corp.example.com@corp.example.com", f'CN="user01",{USERS_DN}',
])
def test_a_denied_name_in_disguise(start_proxy, dc, name):
    """The DC takes these for user01."""
    proxy = start_proxy([dc.backend], listener='policy.denied_bind_names = ["user01"]')
    with RawClient(dc.endpoint) as direct, RawClient(proxy.endpoint()) as client:
        assert direct.ask(ber.bind, name, USERS[0].password)[-1].result_code == ber.SUCCESS
        assert client.ask(ber.bind, name, USERS[0].password)[-1].result_code == ber.UNWILLING_TO_PERFORM
        client.bind(USERS[1])


def test_wrong_password_keeps_the_directorys_own_diagnostic(through, dc):
    def refusal(endpoint):
        with RawClient(endpoint) as client:
            return client.ask(ber.bind, USERS[0].name, "wrong")[-1]

    assert refusal(through).result_code == ber.INVALID_CREDENTIALS
    assert "data 52e" in refusal(through).diagnostic
    assert refusal(through) == refusal(dc.endpoint)


def test_anonymous_sees_the_root_dse_and_nothing_else(through):
    with RawClient(through) as client:
        entry, _ = client.ask(ber.search)
        assert entry.attributes["defaultNamingContext"][0].decode().lower() == BASE
        assert client.ask(ber.search, BASE, ber.SUB)[-1].result_code == ber.OPERATIONS_ERROR


@pytest.mark.parametrize("scope", ["base", "one", "sub"])
def test_search_scopes(through, dc, scope):
    def ask(endpoint):
        return sorted(names(ldapsearch(endpoint, USERS_DN, "-s", scope, "objectClass=*", "cn", account=ADMINISTRATOR)))

    found = ask(through)
    assert found == ask(dc.endpoint)
    assert (len(found) == 1) == (scope == "base")


def test_paged_search_gives_every_entry_once(through):
    everyone = ldapsearch(through, USERS_DN, "objectClass=user", "cn", account=ADMINISTRATOR)
    paged = ldapsearch(through, USERS_DN, "-E", "pr=3/noprompt", "objectClass=user", "cn", account=ADMINISTRATOR)
    assert len(everyone) > 20
    assert sorted(names(paged)) == sorted(names(everyone))


@pytest.mark.parametrize("order", ["sAMAccountName", "-sAMAccountName"])
def test_sorted_search(through, order):
    found = ldapsearch(
        through, USERS_DN, "-E", f"sss={order}", "sAMAccountName=user*", "sAMAccountName", account=ADMINISTRATOR
    )
    accounts = [attributes["sAMAccountName"][0].decode() for _, attributes in found]
    assert len(accounts) == len(USERS)
    assert accounts == sorted(accounts, reverse=order.startswith("-"))


@pytest.mark.parametrize(("value", "exit_code"), [("user01", 6), ("somebody", 5)])
def test_compare(through, value, exit_code):
    done = tool(
        "ldapcompare", through, f"CN=user01,{USERS_DN}", f"sAMAccountName:{value}", account=ADMINISTRATOR, check=False
    )
    assert done.returncode == exit_code, done.stderr


def test_an_entrys_whole_life(through, dc):
    """Add, modify, modify DN and delete, each judged by what the DC itself says afterwards."""
    name, renamed = f"CN=Novelty,{USERS_DN}", f"CN=Renamed,{USERS_DN}"

    def description(of):
        found = ldapsearch(dc.endpoint, USERS_DN, f"distinguishedName={of}", "description", account=ADMINISTRATOR)
        return [attributes.get("description") for _, attributes in found]

    add = f"dn: {name}\nobjectClass: group\nsAMAccountName: novelty\ndescription: fresh\n"
    tool("ldapadd", through, input=add, account=ADMINISTRATOR)
    assert description(name) == [[b"fresh"]]

    change = f"dn: {name}\nchangetype: modify\nreplace: description\ndescription: changed\n"
    tool("ldapmodify", through, input=change, account=ADMINISTRATOR)
    assert description(name) == [[b"changed"]]

    tool("ldapmodrdn", through, "-r", name, "CN=Renamed", account=ADMINISTRATOR)
    assert (description(name), description(renamed)) == ([], [[b"changed"]])

    tool("ldapdelete", through, renamed, account=ADMINISTRATOR)
    assert description(renamed) == []


def test_binary_attributes_and_binary_filters(through, dc):
    """objectGUID's octets are no text, neither in a result nor in a filter."""
    [(name, attributes)] = ldapsearch(
        dc.endpoint, USERS_DN, "sAMAccountName=user07", "objectGUID", "objectSid", account=ADMINISTRATOR
    )
    guid = attributes["objectGUID"][0]
    with RawClient(through).bind(ADMINISTRATOR) as client:
        entry, *_ = client.ask(
            ber.search, BASE, ber.SUB, ber.equality("objectGUID", guid), ["objectGUID", "objectSid"]
        )
    assert entry.entry_name == name
    assert entry.attributes == attributes


def test_references_arrive(through):
    """Samba ends a search of the whole tree with references to its other partitions."""
    with RawClient(through).bind(ADMINISTRATOR) as client:
        answer = client.ask(ber.search, BASE, ber.SUB, ber.equality("sAMAccountName", "user01"))
    assert [pdu.tag for pdu in answer][0] == ber.SEARCH_ENTRY
    assert ber.SEARCH_REFERENCE in {pdu.tag for pdu in answer}


def test_unknown_critical_control_is_the_directorys_to_refuse(through, dc):
    """Samba answers with an ExtendedResponse whatever the operation was (peers.md): final all the same."""
    request = ber.search(7, BASE, controls=[ber.control("1.2.3.4.5", critical=True)])

    def ask(endpoint):
        with RawClient(endpoint).bind(ADMINISTRATOR) as client:
            client.send(request)
            answer = client.read_result(7)[-1]
            return answer.raw, client.ask(ber.search)[-1].result_code

    assert ask(through) == ask(dc.endpoint)


def test_operations_of_one_client_run_side_by_side(through):
    """A pipelined lot comes back whole, every answer under its own messageID."""
    with RawClient(through).bind(ADMINISTRATOR) as client:
        wanted = {client.next_id(): user for user in USERS}
        client.send(*(
            ber.search(number, USERS_DN, ber.SUB, ber.equality("userPrincipalName", user.name), ["userPrincipalName"])
            for number, user in wanted.items()
        ))
        found, done = {}, set()
        while done != wanted.keys():
            pdu = client.read()
            if pdu.tag == ber.SEARCH_ENTRY:
                assert pdu.message_id not in found
                found[pdu.message_id] = pdu.attributes["userPrincipalName"][0].decode()
            else:
                assert pdu.result_code == ber.SUCCESS
                done.add(pdu.message_id)
    assert found == {number: user.name for number, user in wanted.items()}


def test_a_later_bind_changes_who_the_client_is(through):
    """RFC 4511 §4.2.1: a bind discards the earlier identity, on the same connection."""
    def token_groups(client):
        entry, _ = client.ask(ber.search, attributes=["tokenGroups"])
        return len(entry.attributes["tokenGroups"])

    with RawClient(through) as client:
        anonymous = token_groups(client)
        administrator = token_groups(client.bind(ADMINISTRATOR))
        user = token_groups(client.bind(USERS[15]))
    assert anonymous < user < administrator


def test_ldap3_binds_searches_and_pages(through):
    with ldap3_connection(through, ADMINISTRATOR) as connection:
        found = connection.extend.standard.paged_search(
            USERS_DN, "(sAMAccountName=user*)", attributes=["cn"], paged_size=6, generator=False
        )
    assert len(found) == len(USERS)
    assert all(entry["type"] == "searchResEntry" for entry in found)


def test_global_catalog_beside_the_directory(start_proxy, dc, certificate, authority):
    """636→389 and 3269→3268: two listeners and two pools in one process."""
    proxy = start_proxy(text=f"""
[[listener]]
name = "ldaps"
address = "127.0.0.1:0"
trusted_networks = ["127.0.0.0/8"]
pool = "simple-ad"

[[listener]]
name = "global-catalog"
address = "127.0.0.1:0"
trusted_networks = ["127.0.0.0/8"]
pool = "global-catalog"

[tls]
certificate = "{certificate.certificate}"
private_key = "{certificate.private_key}"

[pools.simple-ad]
backends = ["{dc.address}"]

[pools.global-catalog]
backends = ["{dc.address}:{samba.GLOBAL_CATALOG}"]

[admin]
address = "127.0.0.1:0"
""")

    def references(listener):
        with RawClient(proxy.endpoint(listener)).bind(ADMINISTRATOR) as client:
            answer = client.ask(ber.search, BASE, ber.SUB, ber.equality("sAMAccountName", "user03"))
        assert answer[0].tag == ber.SEARCH_ENTRY
        return [pdu for pdu in answer if pdu.tag == ber.SEARCH_REFERENCE]

    # The catalog holds the whole forest and refers nobody elsewhere: that tells the two apart.
    assert references("ldaps")
    assert not references("global-catalog")
    assert proxy.metrics().sum("ldaps_proxy_backend_up", pool="global-catalog") == 1
