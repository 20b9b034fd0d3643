"""Two minutes of bench/soak, which runs for half an hour where somebody asks it to."""

from pathlib import Path

import pytest

from support.process import run

SOAK = Path(__file__).parents[1] / "bench" / "soak"


@pytest.mark.deadline(200)
def test_nothing_grows_in_two_minutes(tmp_path):
    done = run([SOAK, "2", "--output", tmp_path], seconds=180, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
