"""What the documentation says is tested, is."""

import re
from pathlib import Path

HERE = Path(__file__).parent


def test_every_failure_has_its_test():
    text = (HERE.parent / "docs" / "failures.md").read_text()
    rows = [row for row in text.splitlines() if row.startswith("| ") and not row.startswith("| when")]
    assert len(rows) > 10
    for row in rows:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", row)
        assert named, row
        for file, test in named:
            assert f"\ndef {test}(" in (HERE / file).read_text(), f"{file}::{test}"
