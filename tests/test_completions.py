"""What bash offers after a command of ldaps-proxy, by the completion script that the package installs."""

import re

import pytest

from support.process import run
from support.proxy import BINARY


def shown(*command):
    """The help of a command."""
    return run([BINARY, *command, "--help"]).stdout


COMMANDS = re.findall(r"^  ([a-z][\w-]*)  +\S", shown().partition("Commands:\n")[2].partition("\n\n")[0], re.MULTILINE)


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    file = tmp_path_factory.mktemp("completions") / "ldaps-proxy"
    file.write_text(run([BINARY, "completions", "bash"]).stdout)
    return file


def offered(script, *words):
    """What bash offers for the last of the words."""
    *before, last = ["ldaps-proxy", *words]
    complete = f"""
source {script}
function=$(complete -p ldaps-proxy | sed "s/.*-F \\([^ ]*\\).*/\\1/")
COMP_WORDS=({" ".join([*before, last])}) COMP_CWORD={len(before)}
$function ldaps-proxy "{last}" "{before[-1]}"
echo "${{COMPREPLY[@]}}"
"""
    return set(run(["bash", "-c", complete]).stdout.split())


def test_commands(script):
    assert len(COMMANDS) > 8
    assert set(COMMANDS) <= offered(script, "")


@pytest.mark.parametrize("command", [command for command in COMMANDS if command != "help"])
def test_options_of_a_command(script, command):
    options = set(re.findall(r"^ +(?:-\w, |    )(--[a-z-]+)", shown(command), re.MULTILINE))
    assert "--help" in options
    assert options == {word for word in offered(script, command, "--") if word.startswith("--")}
