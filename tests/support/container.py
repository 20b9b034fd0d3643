"""Debian 12 with systemd as PID 1, in a container with a network of its own: systemd-nspawn over a tree of debootstrap's."""

import os
import shutil
from pathlib import Path

from .process import Process, run
from .waiting import eventually

REPOSITORY = Path(__file__).parents[2]
BOOKWORM = REPOSITORY / "target" / "bookworm"
"""The tree every container starts from; made once (a minute, 350 MB) and never written to."""

_PACKAGES = "systemd,systemd-sysv,dbus,ca-certificates,openssl,gcc,libc6-dev"


def bookworm():
    """The path of the tree. What debootstrap says is in the error where it can't be made."""
    if not BOOKWORM.exists():
        growing = BOOKWORM.with_suffix(".growing")
        shutil.rmtree(growing, ignore_errors=True)
        growing.parent.mkdir(exist_ok=True)
        run(["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", "bookworm", growing], seconds=300)
        growing.rename(BOOKWORM)
    return BOOKWORM


class Container:
    """Boots, and waits until systemd is up. `address` is its own, `gateway` ours; what it writes is gone at the end.

    `shared` is a directory of ours, seen as /shared.
    """

    def __init__(self, directory, shared):
        number = os.getpid() % 16000
        network = f"169.254.{number // 64}.{number % 64 * 4}".rpartition(".")
        self.gateway, self.address = (f"{network[0]}.{int(network[2]) + host}" for host in (1, 2))
        outside = f"lp{os.getpid()}"
        self._process = Process(
            ["systemd-nspawn", "-D", bookworm(), "--volatile=overlay", "--boot", "--register=no", "--keep-unit",
             f"--machine={outside}", "--private-network", f"--network-veth-extra={outside}:host0",
             f"--bind-ro={shared}:/shared", "--console=pipe"],
            directory=directory,
        )
        self.leader = eventually(self._first_process, "the container has a first process", 60)
        # The tree has no `ip`: ours, in its network.
        run(["ip", "address", "add", f"{self.gateway}/30", "dev", outside])
        run(["ip", "link", "set", outside, "up"])
        inside = ["nsenter", f"--net=/proc/{self.leader}/ns/net", "ip"]
        run([*inside, "address", "add", f"{self.address}/30", "dev", "host0"])
        run([*inside, "link", "set", "host0", "up"])
        eventually(lambda: "running" in self.run("systemctl", "is-system-running", check=False).stdout,
                   "systemd has started everything", 60)

    def close(self):
        self._process.close()

    def run(self, *argv, check=True, seconds=60):
        """Runs a command in the container."""
        enter = ["nsenter", "--all", "--target", str(self.leader), "--", "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]
        return run([*enter, *argv], check=check, seconds=seconds)

    def path(self, path):
        """A path of the container, from outside."""
        return Path(f"/proc/{self.leader}/root") / path.lstrip("/")

    def show(self, unit, setting):
        """One property of a unit."""
        return self.run("systemctl", "show", "--property", setting, "--value", unit).stdout.strip()

    def kill(self, unit, signal):
        """Sends a signal to a service's main process alone."""
        self.run("systemctl", "kill", "--kill-whom=main", f"--signal={signal}", unit)

    def drop_in(self, unit, name, text):
        """Writes a drop-in, as `systemctl edit` would."""
        directory = self.path(f"/etc/systemd/system/{unit}.d")
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{name}.conf").write_text(text)
        self.run("systemctl", "daemon-reload")

    def journal(self, unit="ldaps-proxy*"):
        return self.run("journalctl", "--no-pager", "-u", unit).stdout

    def _first_process(self):
        assert self._process.returncode() is None, f"systemd-nspawn ended:\n{self._process.stdout()}{self._process.stderr()}"
        # setpriv has become systemd-nspawn; its only child is the container's first process, once it is systemd.
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return next((pid for pid in children if _comm(pid) == "systemd"), None)


def _comm(pid):
    return Path(f"/proc/{pid}/comm").read_text().strip()
