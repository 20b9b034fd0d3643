"""The closed lists of the documentation, and tests that are named there or here."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
METRICS = (TESTS.parent / "docs" / "metrics.md").read_text()


def words(heading):
    """The words that a table of docs/metrics.md explains, such as the one under "`reason` of a refusal"."""
    table = METRICS.partition(f"\n### {heading}\n")[2].partition("\n#")[0]
    found = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    assert found, f"no table under {heading!r}"
    return found


def names_a_test(where, word):
    """Whether `test_x.py::test_y` is there and speaks of `word`."""
    file, _, test = where.partition("::")
    body = re.search(rf"^def {test}\(.*?(?=^(?:def |@|\w+ = )|\Z)", (TESTS / file).read_text(), re.MULTILINE | re.DOTALL)
    return bool(body) and word in body[0]
