"""Clients inside the realm: names that resolve, a KDC, tickets."""

import os
from pathlib import Path

from . import samba
from .certs import PROXY_NAME
from .clients import SECONDS, tool_environment
from .process import run


class Realm:
    """Runs commands as on a machine that has joined the domain of `controller`; the proxy's name is 127.0.0.1.

    The names stand in an /etc/hosts that only these commands see (a mount namespace; needs root).
    """

    def __init__(self, controller, directory, ca=None):
        self.directory = Path(directory)
        self._hosts = self.directory / "hosts"
        self._hosts.write_text(f"127.0.0.1 {PROXY_NAME} localhost\n{controller.address} {samba.HOST_NAME}\n")
        settings = self.directory / "krb5.conf"
        settings.write_text(_KRB5_CONF.format(realm=samba.REALM, address=controller.address))
        self._environment = {
            **tool_environment(ca), "KRB5_CONFIG": str(settings), "KRB5CCNAME": f"FILE:{self.directory / 'tickets'}",
        }

    def log_in(self, account):
        """Gets `account` (whose name is name@realm) a ticket-granting ticket."""
        name = account.name.partition("@")[0]
        self.run(["kinit", f"{name}@{samba.REALM}"], input=account.password + "\n")
        return self

    def run(self, argv, **options):
        return run(
            ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', self._hosts, *argv],
            env={**os.environ, **self._environment}, seconds=SECONDS, **options,
        )


_KRB5_CONF = """\
[libdefaults]
    default_realm = {realm}
    dns_lookup_kdc = false
    dns_lookup_realm = false
    dns_canonicalize_hostname = false
    rdns = false
[realms]
    {realm} = {{
        kdc = {address}
        kpasswd_server = {address}
    }}
[domain_realm]
    .corp.example.com = {realm}
"""
