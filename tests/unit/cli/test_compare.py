"""``headwater compare``: exit codes, rules, files, on real run files."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests import runs

from headwater._compare import compare as compare_verb
from headwater.cli import main
from headwater.records.run_comparison import RunComparison
from headwater.reports import to_figure, to_text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of ten steps: ``a``; ``b`` with half the learning rate from step 7 on; ``renamed``, ``late``, ``other``."""
    place = tmp_path_factory.mktemp("runs")

    def run(lr: float = 0.1, prefix: str = "layers.{}", first: int = 0) -> runs.FormulaRun:
        made = runs.healthy(3, 10)
        made.tensors = runs.stack(3, prefix)
        made.steps = tuple(range(first, first + 10))
        made.layers_at = lambda s: True

        def rate(step: int) -> float:
            return 0.1 if step < 7 else lr

        made.learning_rate = rate
        made.formulas = {
            "update": lambda t, s: rate(s) * 1e-2,
            "gradient": lambda t, s: 1e-3 * (1.0 if s < 8 else rate(s) / 0.1),
        }
        made.loss = lambda s: 1.0
        return made

    runs.write_run(place / "a", run())
    runs.write_run(place / "b", run(lr=0.05))
    runs.write_run(place / "renamed", run(prefix="body.blocks.{}"))
    runs.write_run(place / "late", run(first=100))
    runs.write_run(place / "other", run(prefix="x{}"))
    return place


def compare(*words: object) -> Result:
    return CliRunner().invoke(main, ["compare", *map(str, words)])


def test_a_planted_change_is_named_with_step_and_tensor(folder: Path) -> None:
    result = compare(folder / "a", folder / "b")
    assert result.exit_code == 1
    told = " ".join(result.stdout.split())
    assert "the runs part at step 7: update ratio of layers.0.weight" in told
    assert "learning rate from step 7: 0.1 in the first run, 0.05 in the second" in told
    assert "update at step 7, gradient at step 8" in told
    found = RunComparison.from_json(compare(folder / "a", folder / "b", "--json").stdout)
    update, gradient = found.first("update"), found.first("gradient")
    assert update is not None
    assert gradient is not None
    assert (update.step, gradient.step) == (7, 8)


def test_the_same_run_twice_exits_with_0(folder: Path) -> None:
    result = compare(folder / "a", folder / "a")
    assert result.exit_code == 0
    assert "the runs are the same" in result.stdout


def test_the_tolerance_decides(folder: Path) -> None:
    assert compare(folder / "a", folder / "b", "--rtol", 0.6).exit_code == 0
    assert compare(folder / "a", folder / "b", "--rtol", 0.4).exit_code == 1
    assert compare(folder / "a", folder / "b", "--rtol", -1).exit_code == 2


def test_names_are_aligned_by_rules(folder: Path) -> None:
    assert compare(folder / "a", folder / "renamed").exit_code == 3
    assert compare(folder / "a", folder / "renamed", "--rename", "layers=body.blocks").exit_code == 0
    assert compare(folder / "renamed", folder / "a", "--rename", "body.blocks=layers").exit_code == 0
    wrong = compare(folder / "a", folder / "renamed", "--rename", "layers")
    assert wrong.exit_code == 2
    assert "write OLD=NEW" in wrong.stderr


def test_nothing_in_common_is_3_and_no_run_is_2(folder: Path) -> None:
    result = compare(folder / "a", folder / "late")
    assert result.exit_code == 3
    assert "no recorded step in common" in result.stderr
    assert compare(folder / "a", folder / "other").exit_code == 3
    assert compare(folder / "a", folder / "nothing").exit_code == 2


def test_the_page_has_the_drift_and_the_text_has_it_as_blocks(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "drift.html"
    result = compare(folder / "a", folder / "b", "--html", target)
    assert "How the two runs drift apart" in target.read_text(encoding="utf-8")
    assert "How the runs drift apart" in result.stdout
    figure = to_figure(compare_verb(folder / "a", str(folder / "b")))
    update = next(t for t in figure.data if t.name == "update ratio")
    # Nothing before step 7, and half from there on.
    assert list(update.y) == [None] * 7 + [0.5] * 3


@pytest.mark.parametrize("width", [20, 40, 100])
def test_the_text_fits_and_is_ascii_where_it_must_be(folder: Path, width: int) -> None:
    shown = to_text(compare_verb(folder / "a", folder / "b"), width=width, ascii_only=True)
    shown.encode("ascii")
    assert max(map(len, shown.splitlines())) <= width
