"""What the documentation says is tested, is."""

import re
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = (
    "policy/mod.rs", "policy/bind.rs", "session/operations.rs", "session/state.rs", "session/run/requests.rs",
    "session/run/ending.rs", "throttle/mod.rs",
)
# Literals that look like diagnostics and are none a client reads by itself.
OTHERS = (
    "is not a DN: write one",                                   # `check`
    "cannot be read",                                           # the beginning of the one for `undecodable`
    "the session's bind was refused by another backend",        # the log
    "an attempt that is not settled counts",                    # the compiler
)


def test_every_failure_has_its_test():
    text = (HERE.parent / "docs" / "failures.md").read_text()
    rows = [row for row in text.splitlines() if row.startswith("| ") and not row.startswith("| when")]
    assert len(rows) > 10
    for row in rows:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", row)
        assert named, row
        for file, test in named:
            assert f"\ndef {test}(" in (HERE / file).read_text(), f"{file}::{test}"


def test_every_diagnostic_is_in_the_runbook():
    runbook = (HERE.parent / "docs" / "runbook.md").read_text().partition("\n## What clients read\n")[2]
    rows = {row.split(" | ")[0].removeprefix("| ") for row in runbook.splitlines() if row.startswith("| ")}
    said = {text for source in SOURCES for text in diagnostics(HERE.parent / "src" / source)}
    assert len(said) > 30
    assert said <= rows, said - rows


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
