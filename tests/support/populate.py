"""Fills a freshly provisioned domain through Samba's own library, before its server starts.

A program of its own: `populate.py SMB_CONF`, with `{"users": [[name@realm, password], …], "services": [SPN, …]}` on
standard input.
"""

import json
import sys

import ldb
from samba.auth import system_session
from samba.param import LoadParm
from samba.samdb import SamDB

contents = json.load(sys.stdin)
settings = LoadParm(sys.argv[1])
directory = SamDB(url=settings.private_path("sam.ldb"), session_info=system_session(), lp=settings)


def change(dn, attribute, values, how):
    message = ldb.Message(ldb.Dn(directory, str(dn)))
    message[attribute] = ldb.MessageElement(values, how, attribute)
    directory.modify(message)


directory.transaction_start()
names = [name.partition("@")[0] for name, _ in contents["users"]]
for name, (_, password) in zip(names, contents["users"]):
    directory.newuser(name, password, givenname=name, surname="Müller")
directory.newgroup("staff")
directory.add_remove_group_members("staff", names[:10])
# Without a threshold Samba does not count bad passwords.
change(directory.domain_dn(), "lockoutThreshold", "100", ldb.FLAG_MOD_REPLACE)
# What clients ask a Kerberos ticket for; the provision leaves it out.
machine = directory.search(expression="(sAMAccountName=DC1$)", attrs=[])[0].dn
change(machine, "servicePrincipalName", contents["services"], ldb.FLAG_MOD_ADD)
directory.transaction_commit()
