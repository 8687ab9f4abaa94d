"""``headwater report``: exit codes, formats, files, on real run files."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests import runs

from headwater.cli import main
from headwater.records.run_summary import RunSummary, summarize_run
from headwater.store import open_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run files made of formulas."""
    place = tmp_path_factory.mktemp("runs")
    for name, run in (
        ("healthy", runs.healthy()),
        ("vanishing", runs.vanishing(12)),
        ("spiking", runs.spiking()),
        ("hostile", runs.hostile()),
        ("two models", runs.two_models()),
    ):
        runs.write_run(place / name, run)
    return place


def report(*words: object) -> Result:
    return CliRunner().invoke(main, ["report", *map(str, words)])


def test_the_exit_code_says_whether_the_run_is_healthy(folder: Path) -> None:
    assert report(folder / "healthy").exit_code == 0
    assert report(folder / "spiking").exit_code == 0  # a warning
    assert report(folder / "vanishing").exit_code == 1


def test_a_run_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    result = report(tmp_path / "nothing")
    assert result.exit_code == 2
    assert "there is no run at" in result.stderr


def test_a_run_without_a_step_is_nothing_observed(tmp_path: Path) -> None:
    runs.write_run(tmp_path / "empty", runs.nothing())
    result = report(tmp_path / "empty")
    assert result.exit_code == 3
    assert "no step has been recorded yet" in result.stderr


def test_a_file_and_a_source_in_memory_tell_the_same(folder: Path) -> None:
    for name, run in (
        ("healthy", runs.healthy()),
        ("vanishing", runs.vanishing(12)),
        ("spiking", runs.spiking()),
        ("two models", runs.two_models()),
    ):
        stored, computed = summarize_run(open_run(folder / name)), summarize_run(run)
        assert stored.findings == computed.findings
        assert [w.name for w in stored.weights] == [w.name for w in computed.weights]
        for a, b in zip(stored.weights, computed.weights, strict=True):
            assert a.first_log10 == pytest.approx(b.first_log10)
            assert a.last_log10 == pytest.approx(b.last_log10)
            assert a.update_ratio == pytest.approx(b.update_ratio)
        norms = [{(p.group, p.step): p.gradient_norm_log10 for p in summary.course} for summary in (stored, computed)]
        assert norms[0] == pytest.approx(norms[1])
        assert [s.contributors[0][0] for s in stored.spikes] == [s.contributors[0][0] for s in computed.spikes]
        assert (stored.observed, stored.trainable) == (computed.observed, computed.trainable)


def test_json_is_the_summary_alone_on_standard_output(folder: Path) -> None:
    result = report(folder / "vanishing", "--json")
    assert result.exit_code == 1
    summary = RunSummary.from_json(result.stdout)
    assert summary.name == "vanishing"
    assert json.loads(report(folder / "vanishing", "--format", "json").stdout) == json.loads(result.stdout)


def test_csv_and_markdown_go_to_standard_output_or_to_a_file(folder: Path, tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(report(folder / "spiking", "--format", "csv").stdout)))
    assert len(rows) == 25
    target = tmp_path / "report.md"
    result = report(folder / "spiking", "--format", "md", "--output", target)
    assert result.stdout == ""
    assert target.read_text(encoding="utf-8").startswith("# Run spiking\n")


def test_a_page_is_one_file_without_a_link_to_anywhere(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    result = report(folder / "spiking", "--html", target)
    assert result.exit_code == 0
    assert "healthy, with 1 warning" in result.stdout
    page = target.read_text(encoding="utf-8")
    assert "<title>headwater: run spiking</title>" in page
    assert 'src="http' not in page
    assert page + "\n" == report(folder / "spiking", "--format", "html").stdout


def test_a_picture_needs_a_file_and_kaleido(folder: Path, tmp_path: Path) -> None:
    result = report(folder / "spiking", "--format", "png")
    assert result.exit_code == 2
    assert "--output" in result.stderr
    if importlib.util.find_spec("kaleido") is None:
        result = report(folder / "spiking", "--format", "png", "--output", tmp_path / "map.png")
        assert result.exit_code == 2
        assert "headwater[png]" in result.stderr


def test_a_file_that_cannot_be_written_is_told_before_the_run_is_read(folder: Path, tmp_path: Path) -> None:
    for words in (("--html", tmp_path / "no" / "a.html"), ("--format", "md", "--output", tmp_path)):
        result = report(folder / "spiking", *words)
        assert result.exit_code == 2
        assert result.stdout == ""


def test_hostile_names_survive_the_file_and_stay_text(folder: Path) -> None:
    result = report(folder / "hostile", "--width", 140, "--all-rows")
    assert runs.HOSTILE in result.stdout
    assert "[bold red]x[/]" in result.stdout
    assert "\x1b" not in result.stdout


def test_a_run_can_be_reported_while_it_is_written(tmp_path: Path) -> None:
    from headwater.store import RunWriter

    run = runs.vanishing()
    with RunWriter(tmp_path / "live", run.metadata) as writer:
        for step in run.steps[:5]:
            writer.write(run.record(step))
        writer.flush()
        result = report(tmp_path / "live")
        assert result.exit_code == 0
        assert "steps 0 to 8" in result.stdout
