#!/usr/bin/python3
"""A domain controller that dies and comes back for half an hour, whatever the proxy thinks of it, under readers and writers
at a low rate: what it costs. Not part of tests/run; docs/failures.md has the figures of the last run.

    /usr/bin/python3 tests/long_flapping.py --minutes 30
"""

import argparse
import itertools
import os
import random
import re
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from support import ber
from support.certs import Authority
from support.clients import ldapsearch
from support.faults import UP, Load, reading
from support.proxy import Proxy, config
from support.samba import ADMINISTRATOR, BASE, DomainController, provision
from support.waiting import NotInTime

SESSIONS, WRITERS, PAUSE = 20, 4, 0.1
LIVES, DEAD = (5, 20), (2, 10)
"""Seconds, at random between these."""


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--minutes", type=float, default=30)
    arguments.add_argument("--seed", type=int, default=int(time.time()))
    options = arguments.parse_args()
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flapping-")))
        template = provision(directory / "template")
        dcs = [DomainController(template, directory / name, name) for name in ("dc1", "dc2")]
        for dc in dcs:
            stack.callback(dc.close)
            dc.start()
        authority = Authority(directory / "certificates")
        text = config(
            authority.issue("proxy"), [dc.backend for dc in dcs],
            pool='rebalance = true\nfailover.write_affinity = "0s"',
        )
        (directory / "proxy").mkdir()
        proxy = stack.enter_context(Proxy(text, directory / "proxy", ca=authority.ca))
        proxy.wait_for(UP, 2)
        print(f"seed {options.seed}, {SESSIONS} sessions, {WRITERS} of them writing", flush=True)
        flap(proxy, dcs, options.minutes * 60, random.Random(options.seed))


def flap(proxy, dcs, seconds, dice):
    flapping = dcs[0]
    succeeded, ejected, falls = [], [], 0
    read, names = reading(BASE), itertools.count()

    def work(client, number):
        if number >= WRITERS:
            return read(client, number)
        name = f"flap{next(names)}"
        answer = client.ask(ber.add, f"CN={name},CN=Users,{BASE}", {"objectClass": ["contact"], "description": ["flap"]})
        if answer[-1].result_code == ber.SUCCESS:
            succeeded.append(name)
        return answer

    end = time.monotonic() + seconds
    with Load(proxy.endpoint(), SESSIONS, ADMINISTRATOR, work, pause=PAUSE) as load:
        while time.monotonic() < end:
            time.sleep(dice.uniform(*LIVES))
            believed = proxy.metrics().sum(UP, backend=flapping.backend) == 1
            flapping.kill()
            falls, killed = falls + 1, time.monotonic()
            if believed:
                proxy.wait_for(UP, 0, backend=flapping.backend)
                ejected.append(time.monotonic() - killed)
            time.sleep(dice.uniform(*DEAD))
            flapping.start()
        back = time.monotonic()
        try:
            proxy.wait_for(UP, 1, seconds=330, backend=flapping.backend)
            print(f"back in service {time.monotonic() - back:.1f} s after its last start")
        except NotInTime:
            print("NOT back in service within 330 s of its last start")
    one, other = (written(dc) for dc in dcs)
    unknown = (one | other) - set(succeeded)
    ejections = re.findall(r"it comes and goes .*length=(\w+)", proxy.log())
    print(f"{falls} falls in {seconds / 60:.0f} min, {len(ejected)} of them while it was in service; ejected for {ejections}")
    print(f"time to eject: {min(ejected):.2f} to {max(ejected):.2f} s")
    counts = load.counts() | {"duplicated": load.duplicated + len(one & other)}
    print(", ".join(f"{count} {what}" for what, count in counts.items()))
    print("\n".join(load.dropped), end="")
    for (code, diagnostic), count in Counter(load.failed).most_common():
        print(f"  {count} times {code}: {diagnostic}")
    print(f"writes: {len(succeeded)} succeeded, {len(set(succeeded) - one - other)} of them missing, "
          f"{len(unknown)} of the failed ones were carried out")


def written(dc):
    """What is in a DC's directory, asked of itself."""
    page = ("-E", "pr=500/noprompt")
    found = ldapsearch(dc.endpoint, f"CN=Users,{BASE}", *page, "(description=flap)", "cn", account=ADMINISTRATOR)
    return {attributes["cn"][0].decode() for _, attributes in found}


if __name__ == "__main__":
    main()
