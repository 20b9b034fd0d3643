"""A throw-away OpenLDAP slapd with a sample tree: what Samba lacks (whoami, passwd, 10,000 entries, huge values)."""

import base64
from pathlib import Path

from . import ber, net
from .clients import Account, Endpoint, RawClient
from .process import Process, run
from .waiting import eventually

BASE = "dc=example,dc=org"
PEOPLE = f"ou=people,{BASE}"
MANAGER = Account(f"cn=manager,{BASE}", "manager-secret")
ALICE = Account(f"uid=alice,{BASE}", "alice-secret")
PEOPLE_COUNT = 10_000
REFERRAL = "ldap://elsewhere.example.org/ou=elsewhere,dc=example,dc=org"
PHOTO = bytes(range(256)) * 4096
"""alice's jpegPhoto: 1 MiB that holds every octet."""


class Slapd:
    """Loads the tree with slapadd, starts slapd on an ephemeral port of 127.0.0.1, or on port 389 of `host`."""

    def __init__(self, directory, host=None):
        self.directory = Path(directory)
        (self.directory / "data").mkdir(parents=True)
        self._settings = self.directory / "slapd.conf"
        self._settings.write_text(_SLAPD_CONF.format(directory=self.directory, base=BASE, manager=MANAGER))
        run(["slapadd", "-q", "-f", self._settings], input=_tree(), seconds=120)
        self.endpoint = Endpoint(host.address, 389) if host else Endpoint(*net.closed_port())
        self._prefix = host.prefix if host else []
        self._process = None

    @property
    def backend(self):
        return f"{self.endpoint.host}:{self.endpoint.port}"

    def start(self):
        if self._process is None:
            self._process = Process(
                [*self._prefix, "slapd", "-d", "0", "-h", self.endpoint.url, "-f", self._settings], directory=self.directory
            )
            eventually(self._answers, f"slapd answers on {self.backend}")
        return self

    def kill(self):
        if self._process is not None:
            self._process.kill()
            self._process.close()
            self._process = None

    close = kill

    def _answers(self):
        if self._process.returncode() is not None:
            raise RuntimeError(f"slapd ended at its start:\n{self._process.stderr()}")
        with RawClient(self.endpoint, seconds=10) as client:
            return client.ask(ber.bind, *MANAGER)[-1].result_code == ber.SUCCESS


_SLAPD_CONF = """\
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
modulepath /usr/lib/ldap
moduleload back_mdb
pidfile {directory}/slapd.pid
sockbuf_max_incoming 4194303
database mdb
suffix "{base}"
rootdn "{manager.name}"
rootpw {manager.password}
directory {directory}/data
maxsize 268435456
dbnosync
sizelimit unlimited
index objectClass,uid,cn eq
access to attrs=userPassword by self write by anonymous auth by * none
access to * by * read
"""


def _tree():
    records = [
        f"dn: {BASE}\nobjectClass: dcObject\nobjectClass: organization\ndc: example\no: Example",
        f"dn: {PEOPLE}\nobjectClass: organizationalUnit\nou: people",
        f"dn: ou=elsewhere,{BASE}\nobjectClass: referral\nobjectClass: extensibleObject\nou: elsewhere\nref: {REFERRAL}",
        f"dn: {ALICE.name}\nobjectClass: inetOrgPerson\nuid: alice\ncn: Alice\nsn: Liddell\n"
        f"userPassword: {ALICE.password}\njpegPhoto:: {base64.b64encode(PHOTO).decode()}",
    ]
    records += (
        f"dn: uid=p{number:05},{PEOPLE}\nobjectClass: inetOrgPerson\nuid: p{number:05}\ncn: Person {number}\n"
        f"sn: Number {number:05}\ntelephoneNumber: +49 30 {number:07}"
        for number in range(PEOPLE_COUNT)
    )
    return "\n\n".join(records) + "\n"
