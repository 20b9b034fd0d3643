"""Real Samba AD domain controllers, the software behind AWS Simple AD.

One domain is provisioned per run; each `DomainController` is a copy of it on an address of its own. Copies don't
replicate: the domain's `description` tells which one answered.
"""

import json
import shutil
import signal
from pathlib import Path

from . import ber, net
from .certs import PROXY_NAME
from .clients import Account, Endpoint, RawClient
from .process import Process, run
from .waiting import eventually

REALM, BASE = "CORP.EXAMPLE.COM", "dc=corp,dc=example,dc=com"
ADMINISTRATOR = Account("Administrator@corp.example.com", "Passw0rd!")
USERS = tuple(Account(f"user{number:02}@corp.example.com", f"Secret-{number:02}!") for number in range(1, 21))
HOST_NAME = "dc1.corp.example.com"
LDAP, LDAPS, GLOBAL_CATALOG, KERBEROS, KPASSWD = 389, 636, 3268, 88, 464


def provision(directory):
    """Makes the domain with Administrator and USERS in `directory`, and returns it: the template of every copy."""
    template = Path(directory)
    run([
        "samba-tool", "domain", "provision", "--server-role=dc", "--use-rfc2307", "--dns-backend=NONE",
        f"--realm={REALM}", "--domain=CORP", "--host-name=dc1", "--host-ip=127.0.0.1",
        f"--adminpass={ADMINISTRATOR.password}", f"--targetdir={template}",
    ], seconds=180)
    _configure(template, "127.0.0.1", _NO_TLS)
    contents = {"users": USERS, "services": [f"ldap/{name}" for name in (HOST_NAME, PROXY_NAME)]}
    populate = Path(__file__).with_name("populate.py")
    run(["/usr/bin/python3", "-I", populate, _settings(template)], input=json.dumps(contents), seconds=120)
    return template


class DomainController:
    """One DC. `endpoint` is its LDAP port, `global_catalog` its second one; `name` is what its description says.

    With an `authority` it has a certificate for HOST_NAME and its address, and demands what DCs do by default: passwords
    under TLS only. `endpoint` is its LDAPS port then.
    """

    def __init__(self, template, directory, name, authority=None):
        self.name = name
        self.directory = Path(directory)
        self.address = net.free_address(LDAP, LDAPS, GLOBAL_CATALOG, KERBEROS, KPASSWD)
        self.endpoint = Endpoint(self.address, LDAPS, authority.ca) if authority else Endpoint(self.address, LDAP)
        self.global_catalog = Endpoint(self.address, GLOBAL_CATALOG)
        self._process = None
        shutil.copytree(template, self.directory, symlinks=True)
        security = _NO_TLS
        if authority:
            own = authority.issue(name, [f"DNS:{HOST_NAME}", f"IP:{self.address}"])
            security = _TLS.format(own=own, ca=authority.ca)
        _configure(self.directory, self.address, security)

    @property
    def backend(self):
        """As it stands in a pool's `backends`, and in labels."""
        return f"{self.address}:{LDAP}"

    def start(self):
        """Starts it where it doesn't run, and waits until it answers. Returns itself."""
        if self._process is None:
            self._process = Process(
                ["samba", "-F", "-s", _settings(self.directory), "--debug-stdout", "-d", "1"], directory=self.directory
            )
            eventually(self._answers, f"{self.name} on {self.address} answers", seconds=60, pause=0.05)
            with RawClient(self.endpoint).bind(ADMINISTRATOR) as client:
                answer = client.ask(ber.modify, BASE, {"description": [self.name]})[-1]
                assert answer.result_code == ber.SUCCESS, answer.diagnostic
        return self

    def kill(self):
        """kill -9 of the whole process tree: its connections are reset, its port refuses."""
        if self._process is not None:
            self._process.kill()
            self._process.close()
            self._process = None

    def freeze(self):
        """SIGSTOP: the kernel still accepts connections, nobody answers."""
        self._process.signal_tree(signal.SIGSTOP)

    def thaw(self):
        self._process.signal_tree(signal.SIGCONT)

    def set_password(self, account, password):
        """As an administrator on the DC itself would."""
        name = account.name.partition("@")[0]
        run(["samba-tool", "user", "setpassword", name, f"--newpassword={password}", "-s", _settings(self.directory)])

    def restore(self):
        """Running and answering, whatever a test did to it."""
        if self._process is not None:
            self.thaw()
        return self.start()

    def log(self):
        return self._process.stdout() + self._process.stderr() if self._process else "(not running)"

    def close(self):
        if self._process is not None:
            self._process.signal_tree(signal.SIGCONT)
        self.kill()

    def _answers(self):
        if self._process.returncode() is not None:
            raise RuntimeError(f"samba ended at its start:\n{self.log()}")
        ports = [self.endpoint] if self.endpoint.ca else [self.endpoint, self.global_catalog]
        return all(_binds(endpoint) for endpoint in ports)


def _binds(endpoint):
    with RawClient(endpoint, seconds=10) as client:
        return client.ask(ber.bind, *ADMINISTRATOR)[-1].result_code == ber.SUCCESS


def _settings(directory):
    return Path(directory) / "etc" / "smb.conf"


def _configure(directory, address, security):
    run_directory = Path(directory) / "run"
    (run_directory / "ntp_signd").mkdir(parents=True, exist_ok=True)
    _settings(directory).write_text(_SMB_CONF.format(directory=directory, run=run_directory, address=address, realm=REALM, security=security))


_NO_TLS = """\
    ldap server require strong auth = no
    tls enabled = no
"""

_TLS = """\
    ldap server require strong auth = yes
    tls enabled = yes
    tls keyfile = {own.private_key}
    tls certfile = {own.certificate}
    tls cafile = {ca}
"""

# The mask is /8 because with /32 Samba finds no interface.
_SMB_CONF = """\
[global]
    netbios name = DC1
    realm = {realm}
    workgroup = CORP
    server role = active directory domain controller
    server services = ldap kdc
    idmap_ldb:use rfc2307 = yes
    interfaces = {address}/8
    bind interfaces only = yes
{security}    private dir = {directory}/private
    state directory = {directory}/state
    cache directory = {directory}/cache
    lock directory = {directory}
    binddns dir = {directory}/bind-dns
    pid directory = {run}
    ncalrpc dir = {run}/ncalrpc
    winbindd socket directory = {run}/winbindd
    ntp signd socket directory = {run}/ntp_signd
    log file = {run}/log.%m
[sysvol]
    path = {directory}/state/sysvol
    read only = no
"""
