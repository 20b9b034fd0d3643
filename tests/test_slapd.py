"""What Samba lacks, on a real OpenLDAP slapd: huge results and values, whoami, passwd, referral objects, abandon."""

import pytest

from support import ber
from support.clients import Account, RawClient, ldapsearch, python_ldap, tool
from support.slapd import ALICE, BASE, MANAGER, PEOPLE, PEOPLE_COUNT, PHOTO, REFERRAL


@pytest.fixture
def through(proxy_for, slapd):
    return proxy_for(slapd).endpoint()


def test_ten_thousand_entries(through, slapd):
    def ask(endpoint):
        with RawClient(endpoint) as client:
            return [pdu.raw for pdu in client.ask(ber.search, PEOPLE, ber.ONE)]

    found = ask(through)
    assert len(found) == PEOPLE_COUNT + 1
    assert found == ask(slapd.endpoint)


def test_ten_thousand_entries_in_pages_of_ldapsearch(through):
    found = ldapsearch(through, PEOPLE, "-E", "pr=500/noprompt", "uid=p*", "uid")
    assert len({name for name, _ in found}) == len(found) == PEOPLE_COUNT


def test_a_megabyte_value_comes_whole(through):
    [(_, attributes)] = python_ldap(through, ALICE).search_s(ALICE.name, 0, attrlist=["jpegPhoto"])
    assert attributes["jpegPhoto"] == [PHOTO]


def test_a_megabyte_value_goes_whole(through, slapd):
    name = f"uid=big,{BASE}"
    entry = {"objectClass": ["inetOrgPerson"], "uid": ["big"], "cn": ["Big"], "sn": ["Big"], "jpegPhoto": [PHOTO]}
    with RawClient(through).bind(MANAGER) as client:
        assert client.ask(ber.add, name, entry)[-1].result_code == ber.SUCCESS
        with RawClient(slapd.endpoint) as direct:
            stored, _ = direct.ask(ber.search, name)
        assert client.ask(ber.delete, name)[-1].result_code == ber.SUCCESS
    assert stored.attributes["jpegPhoto"] == [PHOTO]


def test_whoami_is_answered_by_the_directory(through):
    """RFC 4532: forwarded, never synthesised."""
    assert tool("ldapwhoami", through, account=ALICE).stdout == f"dn:{ALICE.name}\n"
    assert tool("ldapwhoami", through).stdout == "anonymous\n"


def test_passwd(through):
    bob = Account(f"uid=bob,{BASE}", "old-secret")
    tool("ldapadd", through, account=MANAGER, input=(
        f"dn: {bob.name}\nobjectClass: inetOrgPerson\nuid: bob\ncn: Bob\nsn: Bob\nuserPassword: {bob.password}\n"
    ))
    tool("ldappasswd", through, "-s", "new-secret", account=bob)
    assert tool("ldapwhoami", through, account=bob, check=False).returncode == ber.INVALID_CREDENTIALS
    assert tool("ldapwhoami", through, account=Account(bob.name, "new-secret")).stdout == f"dn:{bob.name}\n"
    tool("ldapdelete", through, bob.name, account=MANAGER)


def test_referral_object(through):
    with RawClient(through) as client:
        answer = client.ask(ber.search, BASE, ber.ONE)
    [reference] = [pdu for pdu in answer if pdu.tag == ber.SEARCH_REFERENCE]
    assert [uri.text() for uri in reference.operation.children()] == [f"{REFERRAL}??base"]


def test_abandon(through):
    """RFC 4511 §4.11: no response to the abandon; the abandoned search may stop anywhere; the session goes on."""
    with RawClient(through) as client:
        search, abandon, whoami = client.next_id(), client.next_id(), client.next_id()
        client.send(ber.search(search, PEOPLE, ber.ONE))
        assert client.read().message_id == search
        client.send(ber.abandon(abandon, search), ber.extended(whoami, ber.WHO_AM_I))
        # slapd's threads may overtake one another: the search's entries may come after the later answer.
        seen = []
        while whoami not in seen:
            seen.append(client.read().message_id)
        assert set(seen) <= {search, whoami}
    with RawClient(through) as client:
        assert client.ask(ber.extended, ber.WHO_AM_I)[-1].result_code == ber.SUCCESS
