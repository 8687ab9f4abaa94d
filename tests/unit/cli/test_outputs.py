"""Where a command may write, and how --json reads its value."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from headwater.cli.outputs import JsonCommand, check_writable
from headwater.errors import OutputError


@click.command(cls=JsonCommand)
@click.argument("target")
@click.option("--json", "json_path")
def _command(target: str, json_path: str | None) -> None:
    click.echo(f"{target} {json_path}")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["m:f"], "m:f None"),
        (["m:f", "--json"], "m:f -"),
        (["--json", "m:f"], "m:f -"),
        (["--json", "-", "m:f"], "m:f -"),
        (["m:f", "--json", "out.json"], "m:f out.json"),
        (["--json", "out.json", "m:f"], "m:f out.json"),
        (["--json=out.txt", "m:f"], "m:f out.txt"),
        (["--json", "--", "m:f"], "m:f -"),
        (["--", "--json"], "--json None"),
    ],
)
def test_json_takes_a_file_but_never_the_target(words: list[str], expected: str) -> None:
    result = CliRunner().invoke(_command, words)
    assert result.output.strip() == expected


def test_a_new_file_and_an_old_one_are_writable_and_are_not_touched(tmp_path: Path) -> None:
    old = tmp_path / "old.json"
    old.write_text("kept")
    check_writable(old, "--json")
    check_writable(tmp_path / "new.json", "--json")
    check_writable("-", "--json")
    check_writable(None, "--json")
    assert [p.name for p in tmp_path.iterdir()] == ["old.json"]
    assert old.read_text() == "kept"


def test_an_unwritable_place_is_named_with_its_option(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"--html .*this is a folder"):
        check_writable(tmp_path, "--html")
    with pytest.raises(OutputError, match=r"the folder .*missing does not exist"):
        check_writable(tmp_path / "missing" / "a.json", "--json")
    with pytest.raises(OutputError, match=r"no ordinary file"):
        check_writable("/dev/null", "--csv")


def test_a_folder_that_refuses_new_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> object:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(OutputError, match="Permission denied"):
        check_writable(tmp_path / "a.json", "--json")
