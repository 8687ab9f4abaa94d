"""Every example runs, says something and warns of nothing."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
LIBRARY_ONLY = {"models.py"}  # targets for the command line: importing them prints nothing


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_example_runs(path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [str(path)])  # an example that reads its command line finds none of pytest's
    runpy.run_path(str(path), run_name="__main__")
    assert bool(capsys.readouterr().out) == (path.name not in LIBRARY_ONLY)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 5
