"""What the documentation says is tested, is."""

import grp
import re
import stat
import textwrap
from pathlib import Path

import pytest

from support.process import run
from support.proxy import check

HERE = Path(__file__).parent
SOURCE = HERE.parent / "src"
# Where answers to clients come from.
ROOMS = ("policy/**/*.rs", "session/**/*.rs", "throttle/mod.rs", "ldap/frame.rs", "referral.rs")
# Literals that look like diagnostics and are none a client reads by itself.
OTHERS = (
    "is not a DN: write one",                                   # `check`
    "cannot be read",                                           # the beginning of the one for `undecodable`
    "the session's bind was refused by another backend",        # the log
    "a name that isn't known", "its session ended with", "operations in flight: {in", "{name} at {}",  # recent failures
    "an attempt that is not settled counts",                    # the compiler
    "the bind was answered",                                    # the log, as the two below
    "the bind was not answered in time",
    "the backend answered the bind with something else",
    "a name that isn't known",                                  # the log and "recent failures", as the three below
    "its session ended with",
    "operations in flight of",
    "{name} at {}: {reason}",
)


@pytest.mark.parametrize(("page", "head"), [("failures.md", "| when"), ("protocol.md", "| rule")])
def test_every_row_has_its_test(page, head):
    """`test_x.py::test_y` of this folder, `src/x.rs::y` of the code."""
    text = (HERE.parent / "docs" / page).read_text()
    rows = [row for row in text.splitlines() if row.startswith("| ") and not row.startswith(head)]
    assert len(rows) > 10
    for row in rows:
        named = re.findall(r"`(test_\w+\.py|src/[\w/]+\.rs)::(\w+)`", row)
        assert named, row
        for file, test in named:
            python = file.endswith(".py")
            code = ((HERE if python else HERE.parent) / file).read_text()
            assert re.search(rf"^def {test}\(" if python else rf"^ *(async )?fn {test}\(", code, re.MULTILINE), f"{file}::{test}"


def test_every_diagnostic_is_in_the_runbook():
    runbook = (HERE.parent / "docs" / "runbook.md").read_text().partition("\n## What clients read\n")[2]
    rows = {row.split(" | ")[0].removeprefix("| ") for row in runbook.splitlines() if row.startswith("| ")}
    sources = [file for room in ROOMS for file in SOURCE.glob(room) if "tests" not in str(file.relative_to(SOURCE))]
    said = {text for file in sources for text in diagnostics(file)}
    assert len(said) > 40
    assert said <= rows, said - rows


def test_the_steps_of_the_readme_lead_to_a_good_configuration(tmp_path):
    """Its certificate, made by its command, beside its configuration: `check` has nothing to say."""
    readme = (HERE.parent / "README.md").read_text()
    make, configuration = block(readme, "sh", "openssl req"), block(readme, "toml", "[[listener]]")
    (tmp_path / "certs").mkdir()
    run(["sh", "-ec", make], cwd=tmp_path / "certs")
    (tmp_path / "ldaps-proxy.toml").write_text(configuration)
    done = check(tmp_path / "ldaps-proxy.toml")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def test_ticket_keys_stay_readable_for_the_service(tmp_path):
    """A key that was rotated was root's alone: no renewal was taken any more, and no start succeeded."""
    page, group = (HERE.parent / "docs" / "tls.md").read_text(), grp.getgrnam("nogroup")
    begin, rotate = (block(page, "sh", f"umask 027\nopenssl rand -hex 48 > {file}") for file in ("tickets ", "tickets.new"))
    keys = []
    for commands in (begin, rotate, rotate):
        run(["sh", "-ec", commands.replace("chgrp ldaps-proxy", f"chgrp {group.gr_name}")], cwd=tmp_path)
        [file] = tmp_path.iterdir()
        assert (stat.S_IMODE(file.stat().st_mode), file.stat().st_gid) == (0o640, group.gr_gid)
        before, keys = keys, file.read_text().split()
        assert keys[1:] == before[:1]


def block(text, language, beginning):
    """The fenced block of a language that begins so, without its indentation."""
    [found] = re.findall(rf"^( *)```{language}\n(\1{re.escape(beginning)}.*?\n)\1```", text, re.DOTALL | re.MULTILINE)
    return textwrap.dedent(found[1])


def diagnostics(source):
    """Literals of the code before the tests that read like a sentence; what is filled in is `…`."""
    code = source.read_text().partition("#[cfg(test)]\nmod")[0]
    lines = [
        line for line in code.splitlines()
        if not re.match(r" *//", line) and not any(word in line for word in ("expect(", "unreachable!", "tracing::"))
    ]
    for text in re.findall(r'"((?:[^"\\]|\\.)*)"', "\n".join(lines), re.DOTALL):
        text = re.sub(r"\\\n *", "", text)
        if text.count(" ") >= 3 and "\n" not in text and not any(other in text for other in OTHERS):
            yield re.sub(r"0x\{[^}]*\}", "0x…", re.sub(r"\{[^}]*\}", "…", text)).replace("0x0x", "0x")
