"""`ldaps-proxy config-schema`: what an editor checks a configuration by agrees with what the proxy says of it."""

import json
import re
import tomllib
from pathlib import Path

import jsonschema
import pytest

from support.process import run
from support.proxy import BINARY

ROOT = Path(__file__).parents[1]
SCHEMA = ROOT / "config/ldaps-proxy.schema.json"
FULL = ROOT / "config/full.toml"
FIXTURES = ROOT / "tests/fixtures/config"
RIGHT = [ROOT / "config/minimal.toml", FULL, *(FIXTURES / "valid").glob("*.toml")]
# What only a rule between keys or the text of a value forbids, a schema can't see.
WRONG = [FIXTURES / "invalid" / name for name in ("unknown_keys.toml", "wrong_types.toml", "brackets.toml", "empty.toml")]


@pytest.fixture(scope="module")
def validator():
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_schema_that_is_shipped_is_that_of_the_binary():
    assert SCHEMA.read_text() == run([BINARY, "config-schema"]).stdout, f"ldaps-proxy config-schema > {SCHEMA.relative_to(ROOT)}"


@pytest.mark.parametrize("file", RIGHT, ids=lambda file: file.name)
def test_right_files_are_valid(validator, file):
    validator.validate(tomllib.loads(file.read_text()))


def test_every_key_of_the_full_file_is_valid_when_it_is_written(validator):
    """Those commented out as well: a key follows `#` at once, a comment after a space."""
    written, keys = re.subn(r"^#(?=\S)", "", FULL.read_text(), flags=re.MULTILINE)
    assert keys > 30
    validator.validate(tomllib.loads(written))


@pytest.mark.parametrize("file", WRONG, ids=lambda file: file.name)
def test_wrong_files_are_not(validator, file):
    assert not validator.is_valid(tomllib.loads(file.read_text()))


def test_every_unknown_key_is_refused_where_it_stands(validator):
    """As many as the proxy itself reports, and the key that one of them was meant for."""
    document = tomllib.loads((FIXTURES / "invalid/unknown_keys.toml").read_text())
    unknown = [error for error in validator.iter_errors(document) if error.validator == "additionalProperties"]
    assert [error.json_path for error in unknown] == [
        "$", "$.listener[0]", "$.listener[0].policy", "$.pools.simple-ad.failover", "$.tls",
    ]
