"""Promises that every command keeps."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from headwater.cli import COMMANDS, main

_NAMES = list(COMMANDS)


def _command(name: str) -> click.Command:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    return command


@pytest.mark.parametrize("name", _NAMES)
def test_every_command_can_print_json(name: str) -> None:
    assert any("--json" in parameter.opts for parameter in _command(name).params)


@pytest.mark.parametrize("name", _NAMES)
def test_help_has_an_example_and_the_exit_codes(name: str) -> None:
    result = CliRunner().invoke(main, [name, "--help"])
    assert result.exit_code == 0
    assert "Example" in result.output
    assert f"headwater {name}" in result.output
    assert "Exit codes" in result.output


@pytest.mark.parametrize("name", _NAMES)
def test_every_option_has_a_help_line(name: str) -> None:
    for parameter in _command(name).params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts[0]}"


@pytest.mark.parametrize("name", [None, *_NAMES])
def test_help_can_be_shown_on_any_terminal(name: str | None) -> None:
    text = CliRunner().invoke(main, [name, "--help"] if name else ["--help"]).output
    text.encode("ascii")
    assert "\\b" not in text  # click's mark for a block that keeps its lines, written by mistake as two characters


@pytest.mark.parametrize("name", _NAMES)
def test_the_overview_says_what_the_command_itself_says(name: str) -> None:
    assert _command(name).get_short_help_str(limit=200) == COMMANDS[name][1]


@pytest.mark.parametrize("name", _NAMES)
def test_an_unknown_option_is_a_usage_error(name: str) -> None:
    assert CliRunner().invoke(main, [name, "--no-such-option"]).exit_code == 2


def test_an_unknown_command_is_a_usage_error() -> None:
    assert CliRunner().invoke(main, ["chekc"]).exit_code == 2


def _modules_after(*words: str) -> set[str]:
    program = (
        "import sys; from headwater.cli import main; main({!r}, standalone_mode=False); "
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program.format(list(words))], capture_output=True, text=True, check=True
    )
    return set(done.stderr.split())


def test_help_imports_nothing_heavy() -> None:
    # An answer to --help that takes seconds is a bug: it must not wait for torch. What breaks this is an import in
    # headwater/__init__.py that runs at once instead of when a name is first used.
    for words in (["--help"], ["check", "--help"]):
        assert not {"torch", "rich", "plotly", "pandas", "networkx", "jinja2"} & _modules_after(*words)


def test_python_m_headwater_is_the_same_program() -> None:
    done = subprocess.run([sys.executable, "-m", "headwater", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: headwater")
    done = subprocess.run([sys.executable, "-m", "headwater", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("headwater ")
