"""What a run leaves behind is data that people and programs can use: R14, R21, R25, R29, R36, R37."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.needs.kit import ALWAYS, batch, loss_of, mlp, norm, sgd, train, watched
from torch import nn

import headwater as hw


def headwater(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "headwater.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )


def in_process(*arguments: object) -> Any:
    from click.testing import CliRunner

    from headwater.cli import main

    return CliRunner().invoke(main, list(map(str, arguments)))


def strictly(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "a"
    model = mlp()
    optimizer = sgd(model)
    w = hw.watch(model, optimizer, run=path, **ALWAYS)
    with w:
        for i in range(30):
            optimizer.zero_grad()
            loss = loss_of(model, i)
            w.record(loss=loss)
            loss.backward()
            optimizer.step()
    return path


# ---- R14: the schedule --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (1, (0,)), (3, (0, 1, 2)), (5, (0, 1, 2, 4)), (7, (0, 1, 2, 4, 6)), (12, (0, 1, 2, 4, 8, 10, 11)),
        (24, (0, 1, 2, 4, 8, 10, 20, 23)), (31, (0, 1, 2, 4, 8, 10, 20, 30)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("cleared", ["before", "after"])
def test_short_runs_show_their_first_steps_and_their_last(
    steps: int, expected: tuple[int, ...], cleared: str, tmp_path: Path
) -> None:
    model = mlp()
    optimizer = sgd(model)
    with hw.watch(model, optimizer, run=tmp_path / "a"):
        for i in range(steps):
            if cleared == "before":
                optimizer.zero_grad()
            loss_of(model, i).backward()
            optimizer.step()
            if cleared == "after":
                optimizer.zero_grad()
    recorded = hw.open_run(tmp_path / "a").steps
    if cleared == "after":
        # The gradients of the last step are gone when the block ends; every other step of the schedule is there.
        assert set(recorded) >= set(expected) - {steps - 1}
        assert set(recorded) <= set(expected)
    else:
        assert recorded == expected


def test_start_and_stop_bound_what_is_recorded(tmp_path: Path) -> None:
    model = mlp()
    optimizer = sgd(model)
    with hw.watch(model, optimizer, run=tmp_path / "a", every=1, start=5, stop=9, max_overhead=None):
        train(model, optimizer, 15)
    assert hw.open_run(tmp_path / "a").steps == (5, 6, 7, 8)


def test_a_resumed_training_goes_on_counting(tmp_path: Path) -> None:
    model = mlp()
    optimizer = sgd(model)
    w = hw.watch(model, optimizer, run=tmp_path / "a", **ALWAYS)
    with w:
        train(model, optimizer, 4)
    state = json.loads(json.dumps(w.state_dict()))
    again = hw.watch(model, optimizer, run=tmp_path / "a", **ALWAYS)
    again.load_state_dict(state)
    with again:
        train(model, optimizer, range(4, 7))
    run = hw.open_run(tmp_path / "a")
    assert run.steps == (0, 1, 2, 3, 4, 5, 6)
    assert len(run.sessions) == 2


# ---- R21: one picture for hundreds of layers ------------------------------------------------------------------------------


class Tags:
    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.closed = False

    def write(self, scalars: Any, step: int) -> None:
        self.rows.append((step, dict(scalars)))

    def close(self) -> None:
        self.closed = True


class Thousand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(500))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + 0.01 * torch.tanh(block(x))
        return x


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tags]:
    path = tmp_path_factory.mktemp("runs") / "thousand"
    model = Thousand()
    optimizer = sgd(model)
    tags = Tags()
    w = hw.watch(model, optimizer, run=path, sinks=[tags], every=2, max_overhead=None)
    with w:
        for _ in range(6):
            optimizer.zero_grad()
            loss = model(torch.ones(2, 2)).square().mean()
            w.record(loss=loss)
            loss.backward()
            optimizer.step()
    return path, tags


def test_a_thousand_parameters_are_ten_tags_at_most(thousand: tuple[Path, Tags]) -> None:
    _, tags = thousand
    assert tags.closed
    assert tags.rows
    assert len({name for _, row in tags.rows for name in row}) <= 10
    assert "grad/norm/total" in tags.rows[0][1]
    assert all(math.isfinite(v) for _, row in tags.rows for v in row.values())


def test_the_page_of_a_thousand_parameters_needs_no_network_and_has_a_labelled_colour_bar(
    thousand: tuple[Path, Tags], tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    done = in_process("report", thousand[0], "--html", page)
    assert done.exit_code in (0, 1), done.output
    text = page.read_text(encoding="utf-8")
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)\s*=\s*[\"']?(?:https?:)?//", text)
    assert "log10" in text
    assert "heatmap" in text
    assert len(text) < 12e6


def test_the_text_of_a_thousand_parameters_folds_its_blocks(thousand: tuple[Path, Tags]) -> None:
    done = in_process("report", thousand[0])
    assert done.exit_code in (0, 1), done.output
    assert len(done.output.splitlines()) < 120
    assert max(map(len, done.output.splitlines())) < 200


@pytest.mark.browser
@pytest.mark.slow
def test_no_two_labels_of_the_page_overlap(thousand: tuple[Path, Tags], tmp_path: Path) -> None:
    from tests.browser.test_page import CHROMIUM, assert_no_label_overlaps, browse

    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    page = tmp_path / "page.html"
    in_process("report", thousand[0], "--html", page)
    seen = browse(page.read_text(encoding="utf-8"), tmp_path, width=1200)
    assert seen["errors"] == []
    for plot in seen["plots"]:
        assert_no_label_overlaps(plot)


# ---- R25: distributions ----------------------------------------------------------------------------------------------------


def test_a_run_has_mergeable_histograms_of_gradients(tmp_path: Path) -> None:
    from headwater.stats import log2_histogram

    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []
    with hw.watch(model, optimizer, run=tmp_path / "run", histograms=True):
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(16, next(model.parameters()).shape[1])).square().mean().backward()
            seen.append([p.grad.clone() for p in model.parameters()])
            optimizer.step()
    run = hw.open_run(tmp_path / "run")
    names = [name for name, _ in model.named_parameters()]
    for step, gradients in enumerate(seen):
        found = [run.histogram(name, step) for name in names]
        assert found == [log2_histogram(g) for g in gradients]
        whole = found[0]
        for histogram in found[1:]:
            whole = whole + histogram
        assert whole == log2_histogram(torch.cat([g.flatten() for g in gradients]))


def test_a_run_without_histograms_says_how_to_record_them(trained: Path) -> None:
    with pytest.raises(KeyError, match="histograms=True"):
        hw.open_run(trained).histogram("0.weight", 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_histograms_of_parts_add_up_to_that_of_the_whole(dtype: torch.dtype) -> None:
    from headwater.stats import log2_histogram

    x = (torch.randn(1001) * torch.logspace(-6, 3, 1001)).to(dtype)
    x[:3] = torch.tensor([0.0, math.nan, math.inf]).to(dtype)
    assert log2_histogram(x[:400]) + log2_histogram(x[400:]) == log2_histogram(x)


# ---- R29: where two runs part ------------------------------------------------------------------------------------------------


def parted(path: Path, name: str, at: int | None, lr: float = 0.2) -> Path:
    model = mlp()
    optimizer = sgd(model, lr=0.1)

    def body() -> None:
        for i in range(12):
            for group in optimizer.param_groups:
                group["lr"] = lr if i == at else 0.1
            train(model, optimizer, [i])

    watched(path / name, model, optimizer, body)
    return path / name


def test_a_learning_rate_planted_at_step_seven_is_found_at_seven_and_in_the_gradients_at_eight(tmp_path: Path) -> None:
    a, b = parted(tmp_path, "a", None), parted(tmp_path, "b", 7)
    done = in_process("compare", a, b, "--json")
    assert done.exit_code == 1, done.output
    found = strictly(done.output)
    first: dict[str, int] = {}
    for parting in found["partings"]:
        first.setdefault(parting["quantity"], parting["step"])
    assert first["update"] == 7
    assert first["gradient"] == 8
    assert min(first.values()) == 7
    assert [(s["step"], s["quantity"]) for s in found["settings"]] == [(7, "learning_rate")]
    assert re.search(r"part at step 7\b", in_process("compare", a, b).output)


def test_two_equal_runs_are_called_the_same(tmp_path: Path) -> None:
    a, b = parted(tmp_path, "a", None), parted(tmp_path, "b", None)
    assert in_process("compare", a, b).exit_code == 0


def test_renamed_layers_are_compared_under_a_rule(tmp_path: Path) -> None:
    for name, attribute in (("a", "encoder"), ("b", "body")):
        model = nn.Module()
        model.add_module(attribute, mlp())
        optimizer = sgd(model)
        with hw.watch(model, optimizer, run=tmp_path / name, **ALWAYS):
            for i in range(3):
                optimizer.zero_grad()
                loss_of(getattr(model, attribute), i).backward()
                optimizer.step()
    done = in_process("compare", tmp_path / "a", tmp_path / "b", "--rename", "encoder=body")
    assert done.exit_code == 0, done.output


# ---- R36: data ------------------------------------------------------------------------------------------------------------------


def test_parts_taken_together_are_the_whole_taken_at_once(tmp_path: Path) -> None:
    model = mlp()
    optimizer = sgd(model)
    whole: list[torch.Tensor] = []
    with hw.watch(model, optimizer, run=tmp_path / "a", **ALWAYS):
        for i in range(3):
            optimizer.zero_grad()
            loss_of(model, i).backward()
            whole.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double())
            optimizer.step()
    run = hw.open_run(tmp_path / "a")
    names = [t.name for t in run.tensors if t.kind == "parameter"]
    for step, x in enumerate(whole):
        s = run.pooled(names, "gradient", step)
        assert s.count == x.numel()
        assert s.l2_norm == pytest.approx(norm(x), rel=1e-5)
        assert s.mean == pytest.approx(float(x.mean()), rel=1e-4, abs=1e-9)
        assert s.std == pytest.approx(float(x.std(unbiased=False)), rel=1e-5)
        assert s.mean_abs == pytest.approx(float(x.abs().mean()), rel=1e-5)
        assert s.max_abs == pytest.approx(float(x.abs().max()), rel=1e-6)
        assert s.kurtosis == pytest.approx(float((x**4).mean() / (x**2).mean() ** 2), rel=1e-5)


def test_the_file_holds_the_sums_that_add_up(trained: Path) -> None:
    with sqlite3.connect(trained / "run.sqlite") as file:
        columns = {row[1] for row in file.execute("PRAGMA table_info(statistics)")}
        counts = dict(
            file.execute("SELECT tensor, count FROM tensor_statistics WHERE quantity = 'gradient' AND step = 0")
        )
    file.close()
    assert {"count", "zero_count", "scaled_sum", "scaled_sum_squared_deviations", "scaled_sum_fourth_powers"} <= columns
    assert counts == {"0.weight": 128, "0.bias": 16, "2.weight": 256, "2.bias": 16, "4.weight": 48, "4.bias": 3}


KILLED = """
import sys, torch
torch.set_num_threads(1)
import headwater as hw
model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with hw.watch(model, optimizer, run=sys.argv[1], every=1, max_overhead=None):
    i = 0
    while True:
        optimizer.zero_grad()
        model(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()
        i += 1
        if i % 100 == 0:
            print(i, flush=True)
"""


@pytest.mark.slow
def test_a_killed_training_leaves_a_file_that_loads(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "a")], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    with child.stdout:
        child.stdout.readline()
        time.sleep(2.5)
        child.send_signal(signal.SIGKILL)
        child.wait(60)
    run = hw.open_run(tmp_path / "a")
    assert len(run.steps) > 100
    assert run.steps == tuple(range(len(run.steps)))
    last = run.steps[-1]
    assert len(run.profile(last).parameters) == 4
    assert in_process("report", tmp_path / "a").exit_code in (0, 1)
    with sqlite3.connect(tmp_path / "a" / "run.sqlite") as file:
        assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    file.close()


def test_a_run_can_be_read_while_it_is_written(tmp_path: Path) -> None:
    model = mlp()
    optimizer = sgd(model)
    with hw.watch(model, optimizer, run=tmp_path / "a", **ALWAYS):
        train(model, optimizer, 20)
        end = time.monotonic() + 20
        while time.monotonic() < end and not hw.open_run(tmp_path / "a").steps:
            time.sleep(0.2)
        assert hw.open_run(tmp_path / "a").steps
        train(model, optimizer, range(20, 25))
    assert hw.open_run(tmp_path / "a").steps == tuple(range(25))


@pytest.mark.parametrize("what", ["missing", "text", "other database", "cut"])
def test_what_is_no_run_is_refused_with_a_sentence(what: str, trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    file = folder / "run.sqlite"
    if what == "text":
        file.write_text("hello " * 1000)
    elif what == "other database":
        with sqlite3.connect(file) as db:
            db.execute("CREATE TABLE t (x)")
        db.close()
    elif what == "cut":
        file.write_bytes((trained / "run.sqlite").read_bytes()[:5000])
    with pytest.raises(hw.HeadwaterError):
        hw.open_run(folder).series("0.weight", "gradient.rms")
    for command in (("report", folder), ("top", folder, "--once"), ("compare", folder, trained)):
        done = in_process(*command)
        assert done.exit_code == 2, (command, done.output, done.exception)
        assert "Traceback" not in done.output


# ---- R37: read by programs -----------------------------------------------------------------------------------------


def test_json_is_strict_and_names_its_schema_and_version(trained: Path) -> None:
    done = in_process("report", trained, "--format", "json")
    found = strictly(done.output)
    assert found["schema"].startswith("headwater.run_summary")
    assert any("version" in key for key in found), found.keys()


def test_json_stays_strict_when_the_training_is_full_of_nan(tmp_path: Path) -> None:
    model = mlp()
    optimizer = sgd(model)
    w = hw.watch(model, optimizer, run=tmp_path / "a", **ALWAYS)
    with w:
        for i in range(4):
            w.record(loss=math.nan if i else math.inf)
            train(model, optimizer, [i], factor=math.nan)
    for command in (["report", tmp_path / "a", "--format", "json"], ["top", tmp_path / "a", "--json"]):
        done = in_process(*command)
        strictly(done.output)
    done = in_process("compare", tmp_path / "a", tmp_path / "a", "--json")
    strictly(done.output)
    assert in_process("report", tmp_path / "a").exit_code == 1
    json.dumps(w.state_dict(), allow_nan=False)


def test_csv_has_one_row_per_recorded_step(trained: Path) -> None:
    done = in_process("report", trained, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(done.output)))
    assert [int(row["step"]) for row in rows] == list(range(30))
    assert float(rows[0]["loss"]) == pytest.approx(float(loss_of(mlp(), 0).detach()), rel=1e-5)


@pytest.mark.parametrize("form", ["md", "html", "text"])
def test_every_format_can_be_written(form: str, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / f"out.{form}"
    done = in_process("report", trained, "--format", form, "--output", out)
    assert done.exit_code in (0, 1), done.output
    assert out.stat().st_size > 200


def test_a_picture_is_written_or_the_package_it_needs_is_named(trained: Path, tmp_path: Path) -> None:
    done = in_process("report", trained, "--format", "png", "--output", tmp_path / "map.png")
    if done.exit_code in (0, 1) and (tmp_path / "map.png").exists():
        assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    else:
        assert done.exit_code == 2
        assert "kaleido" in done.output


@pytest.mark.slow
def test_text_is_safe_on_an_ascii_terminal(trained: Path) -> None:
    done = headwater("report", trained, PYTHONIOENCODING="ascii", LC_ALL="C", PYTHONUTF8="0")
    assert done.returncode in (0, 1), done.stderr
    assert done.stdout.isascii()
    assert "Traceback" not in done.stderr


def test_findings_keep_their_codes(tmp_path: Path) -> None:
    model = mlp()
    optimizer = sgd(model)
    w = hw.watch(model, optimizer, run=tmp_path / "a", **ALWAYS)
    with w:
        train(model, optimizer, 3)
        train(model, optimizer, range(3, 6), factor=math.nan)
    codes = [f.code for f in w.findings]
    assert codes
    assert all(re.fullmatch(r"HW\d{3}", code) for code in codes)
    assert [f.code for f in hw.open_run(tmp_path / "a").findings] == codes
    found = strictly(in_process("report", tmp_path / "a", "--format", "json").output)
    assert [f["code"] for f in found["findings"]] == codes


def test_data_frames_and_csv_agree_with_series(trained: Path, tmp_path: Path) -> None:
    run = hw.open_run(trained)
    frame = run.to_pandas()
    rows = frame[(frame.tensor == "0.weight") & (frame.quantity == "gradient")]
    assert dict(zip(rows.step, rows.rms, strict=True)) == pytest.approx(dict(run.series("0.weight", "gradient.rms")))
    run.to_csv(tmp_path / "a.csv")
    with (tmp_path / "a.csv").open() as file:
        assert sum(1 for _ in csv.reader(file)) == len(frame) + 1


def test_exit_codes_tell_healthy_unhealthy_usage_and_nothing(trained: Path, tmp_path: Path) -> None:
    assert in_process("report", trained).exit_code == 0, in_process("report", trained).output
    assert in_process("report", tmp_path / "none").exit_code == 2
    model = mlp()
    optimizer = sgd(model)
    with hw.watch(model, optimizer, run=tmp_path / "empty", **ALWAYS):
        pass
    assert in_process("report", tmp_path / "empty").exit_code == 3


def test_an_unknown_step_or_tensor_is_answered_with_near_ones(trained: Path) -> None:
    run = hw.open_run(trained)
    with pytest.raises(KeyError, match="29"):
        run.profile(1000)
    with pytest.raises(KeyError, match=r"0\.weight"):
        run.series("0.wieght", "gradient.rms")
    with pytest.raises((KeyError, ValueError, hw.HeadwaterError), match="rms"):
        run.series("0.weight", "gradient.rmss")


def test_the_profile_of_a_step_has_the_numbers_of_measure(tmp_path: Path) -> None:
    model = mlp()
    x, y = batch(0)
    measured = hw.measure(mlp(), x, y, F.cross_entropy)
    optimizer = sgd(model)
    with hw.watch(model, optimizer, run=tmp_path / "a", **ALWAYS):
        train(model, optimizer, 1)
    profile = hw.open_run(tmp_path / "a").profile(0)
    assert profile.gradients("rms") == pytest.approx(measured.gradients("rms"), rel=1e-5)
    assert [row.name for row in profile.layers if row.type == "Linear"] == ["0", "2", "4"]
    for row in profile.layers:
        other = measured.layer(row.name)
        assert row.activation.rms == pytest.approx(other.activation.rms, rel=1e-5)
        if row.gradient is not None and other.gradient is not None:
            assert row.gradient.rms == pytest.approx(other.gradient.rms, rel=1e-5)
