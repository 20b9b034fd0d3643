"""The same requests directly and through the proxy get the same answers, PDU by PDU."""

import pytest

from support import ber, samba, slapd
from support.clients import RawClient

USERS_DN = f"CN=Users,{samba.BASE}"

VOLATILE = {"currentTime", "highestCommittedUSN", "lastLogon", "logonCount", "badPwdCount", "badPasswordTime", "lockoutTime"}
"""Attributes that the clock or a logon changes between two requests."""

SAMBA_REQUESTS = [
    ("anonymous root DSE", lambda n: ber.search(n)),
    ("anonymous search", lambda n: ber.search(n, samba.BASE, ber.SUB)),
    ("bind that fails", lambda n: ber.bind(n, samba.ADMINISTRATOR.name, "wrong")),
    ("bind without a password", lambda n: ber.bind(n, "", "")),
    ("bind with version 2", lambda n: ber.bind(n, *samba.USERS[0], version=2)),
    ("bind", lambda n: ber.bind(n, *samba.ADMINISTRATOR)),
    ("root DSE", lambda n: ber.search(n, attributes=["*", "+", "tokenGroups"])),
    ("whole tree", lambda n: ber.search(n, samba.BASE, ber.SUB, attributes=["*", "+"])),
    ("no such object", lambda n: ber.search(n, f"CN=nobody,{samba.BASE}")),
    ("malformed name", lambda n: ber.search(n, "not a name")),
    ("size limit", lambda n: ber.search(n, USERS_DN, ber.SUB, size_limit=3)),
    ("no attributes", lambda n: ber.search(n, USERS_DN, ber.ONE, attributes=["1.1"])),
    ("bit-and filter", lambda n: ber.search(n, USERS_DN, ber.SUB, _bit_and("userAccountControl", 2), ["cn"])),
    ("paged", lambda n: ber.search(n, USERS_DN, ber.SUB, attributes=["cn"], controls=[_paged(5)])),
    ("deleted objects", lambda n: ber.search(n, samba.BASE, ber.SUB, ber.present("isDeleted"), controls=[_SHOW_DELETED])),
    ("extended DNs", lambda n: ber.search(n, USERS_DN, ber.SUB, ber.present("memberOf"), ["memberOf"], controls=[_EXTENDED_DN])),
    ("unknown control", lambda n: ber.search(n, USERS_DN, controls=[ber.control("1.2.3.4", b"\x00\xff")])),
    ("compare true", lambda n: ber.compare(n, f"CN=user01,{USERS_DN}", "sAMAccountName", "user01")),
    ("compare false", lambda n: ber.compare(n, f"CN=user01,{USERS_DN}", "sAMAccountName", "user02")),
    ("add without a class", lambda n: ber.add(n, f"CN=x,{USERS_DN}", {"cn": ["x"]})),
    ("modify nothing there", lambda n: ber.modify(n, f"CN=nobody,{USERS_DN}", {"description": ["x"]})),
    ("delete nothing there", lambda n: ber.delete(n, f"CN=nobody,{USERS_DN}")),
    ("rename nothing there", lambda n: ber.modify_dn(n, f"CN=nobody,{USERS_DN}", "CN=x")),
    ("unknown extended operation", lambda n: ber.extended(n, "1.2.3.4.5", b"\x01")),
    ("whoami", lambda n: ber.extended(n, ber.WHO_AM_I)),
]

SLAPD_REQUESTS = [
    ("root DSE", lambda n: ber.search(n, attributes=["*", "+"])),
    ("bind that fails", lambda n: ber.bind(n, slapd.ALICE.name, "wrong")),
    ("bind", lambda n: ber.bind(n, *slapd.ALICE)),
    ("own entry with its photo", lambda n: ber.search(n, slapd.ALICE.name, attributes=["*", "+"])),
    ("subtree with a referral", lambda n: ber.search(n, slapd.BASE, ber.SUB, ber.equality("ou", "people"))),
    ("below a referral", lambda n: ber.search(n, f"cn=x,ou=elsewhere,{slapd.BASE}")),
    ("forbidden write", lambda n: ber.modify(n, slapd.ALICE.name, {"sn": ["Other"]})),
    ("compare", lambda n: ber.compare(n, slapd.ALICE.name, "sn", "Liddell")),
    ("unknown critical control", lambda n: ber.search(n, controls=[ber.control("1.2.3.4.5", critical=True)])),
    ("unknown extended operation", lambda n: ber.extended(n, "1.2.3.4.5")),
    ("whoami", lambda n: ber.extended(n, ber.WHO_AM_I)),
]


def test_samba(dc, proxy_for):
    assert_same_answers(SAMBA_REQUESTS, dc.endpoint, proxy_for(dc).endpoint())


def test_slapd(slapd, proxy_for):
    assert_same_answers(SLAPD_REQUESTS, slapd.endpoint, proxy_for(slapd).endpoint())


def assert_same_answers(requests, direct, through):
    with RawClient(direct) as one, RawClient(through) as other:
        for what, build in requests:
            expected, seen = one.ask(build), other.ask(build)
            assert list(map(comparable, seen)) == list(map(comparable, expected)), what
            if not any(VOLATILE & _attributes(pdu).keys() for pdu in expected):
                assert [pdu.raw for pdu in seen] == [pdu.raw for pdu in expected], what


def comparable(pdu):
    steady = {name: values for name, values in _attributes(pdu).items() if name not in VOLATILE}
    return (pdu.tag, pdu.entry_name, steady) if pdu.tag == ber.SEARCH_ENTRY else pdu


def _attributes(pdu):
    return pdu.attributes if pdu.tag == ber.SEARCH_ENTRY else {}


def _bit_and(attribute, bits):
    return ber.tlv(
        0xA9, ber.octets("1.2.840.113556.1.4.803", tag=0x81), ber.octets(attribute, tag=0x82),
        ber.octets(str(bits), tag=0x83),
    )


def _paged(size):
    return ber.control("1.2.840.113556.1.4.319", ber.tlv(0x30, ber.integer(size), ber.octets("")))


_SHOW_DELETED = ber.control("1.2.840.113556.1.4.417", critical=True)
_EXTENDED_DN = ber.control("1.2.840.113556.1.4.529", ber.tlv(0x30, ber.integer(1)), critical=True)


def test_the_comparison_can_fail(dc, slapd):
    """Two different servers do not pass for the same."""
    with pytest.raises(AssertionError):
        assert_same_answers(SLAPD_REQUESTS, dc.endpoint, slapd.endpoint)
