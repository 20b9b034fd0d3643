"""A host of its own for a server: a network namespace behind a link that can be cut (needs root)."""

import os
import random

from .process import run


class Host:
    """`address` reaches it; `prefix` before a command line runs that command there."""

    def __init__(self):
        tag = f"lp{os.getpid() % 10_000}x{random.randint(0, 999)}"
        subnet = f"198.18.{random.randint(0, 255)}"
        self.name, self._link = tag, f"{tag}a"
        self.address = f"{subnet}.2"
        self.prefix = ["ip", "netns", "exec", self.name]
        _ip("netns", "add", self.name)
        _ip("link", "add", self._link, "type", "veth", "peer", "name", f"{tag}b", "netns", self.name)
        _ip("address", "add", f"{subnet}.1/24", "dev", self._link)
        _ip("link", "set", self._link, "up")
        for command in (["address", "add", f"{self.address}/24", "dev", f"{tag}b"], ["link", "set", f"{tag}b", "up"], ["link", "set", "lo", "up"]):
            _ip("-n", self.name, *command)

    def cut(self):
        """From now on packets vanish, in both directions and without a word."""
        for chain in ("INPUT", "OUTPUT"):
            run([*self.prefix, "iptables", "-I", chain, "-j", "DROP"])

    def mend(self):
        for chain in ("INPUT", "OUTPUT"):
            run([*self.prefix, "iptables", "-D", chain, "-j", "DROP"])

    def close(self):
        _ip("link", "delete", self._link)
        _ip("netns", "delete", self.name)


def _ip(*arguments):
    run(["ip", *arguments])
