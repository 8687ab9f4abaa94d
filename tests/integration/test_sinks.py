"""What a sink wrote, read back with the library's own reader."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import headwater as hw
from headwater.errors import HeadwaterError, InputError
from headwater.integrations import Sink
from headwater.integrations.mlflow import MlflowSink
from headwater.integrations.tensorboard import TensorBoardSink
from headwater.integrations.wandb import STEP_METRIC, WandbSink

STEPS = {0: {"grad/norm/total": 2.5, "train/loss": 1.0}, 10: {"grad/norm/total": math.inf, "train/loss": 0.5}}


def write_all(sink: Sink) -> None:
    for step, scalars in STEPS.items():
        sink.write(scalars, step)
    sink.close()


# ---------------------------------------------------------------- TensorBoard


def event_file(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


WRITTEN = {"grad/norm/total": [(0, 2.5), (10, math.inf)], "train/loss": [(0, 1.0), (10, 0.5)]}


@pytest.mark.integration
def test_a_tensorboard_folder_holds_every_scalar(tmp_path: Path) -> None:
    write_all(TensorBoardSink(tmp_path / "tb"))
    assert event_file(tmp_path / "tb") == WRITTEN


@pytest.mark.integration
def test_a_summary_writer_that_was_given_stays_open(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        write_all(TensorBoardSink(writer))
        writer.add_scalar("mine", 3.0, 11)
    assert event_file(tmp_path) == {**WRITTEN, "mine": [(11, 3.0)]}


def train(model: nn.Module, steps: int, **options: Any) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with hw.watch(model, optimizer, every=1, **options) as watch:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = model(torch.ones(2, 4)).square().mean()
            loss.backward()
            watch.record(loss=loss)
            optimizer.step()
    return watch


@pytest.mark.integration
def test_a_model_with_a_thousand_parameters_gives_at_most_ten_tags(tmp_path: Path) -> None:
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(500)])
    train(model, 3, sinks=[TensorBoardSink(tmp_path)], alerts=())
    tags = event_file(tmp_path)
    assert len(tags) <= 10
    assert [step for step, _ in tags["grad/norm/total"]] == [0, 1, 2]


@pytest.mark.integration
def test_each_sink_gets_its_own_naming_and_the_numbers_the_loop_gives(tmp_path: Path) -> None:
    sinks = [TensorBoardSink(tmp_path / "a"), TensorBoardSink(tmp_path / "b", naming="hf", per_layer=["0.*"])]
    train(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1)), 2, sinks=sinks)
    first, second = event_file(tmp_path / "a"), event_file(tmp_path / "b")
    assert first["grad/norm/total"] == second["grad_norm"]
    assert first["train/loss"] == second["loss"]
    assert {"grad_rms/0.weight", "grad_rms/0.bias"} <= second.keys()


def test_a_sink_that_fails_is_said_once_and_costs_nobody_anything(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def write(self, scalars: Any, step: int) -> None:
            raise OSError("no space left")

        def close(self) -> None:
            raise AssertionError("a sink that failed is left alone")

    class Kept:
        def __init__(self) -> None:
            self.steps: list[int] = []

        def write(self, scalars: Any, step: int) -> None:
            self.steps.append(step)

        def close(self) -> None:
            self.steps.append(-1)

    kept = Kept()
    watch = train(nn.Linear(4, 1), 3, sinks=[Broken(), kept], alerts=())
    assert kept.steps == [0, 1, 2, -1]
    said = [event.message for event in watch.events if event.kind == "notice"]
    assert said == ["the sink Broken failed and gets no more: OSError: no space left"]
    assert len([r for r in caplog.records if "Broken" in r.message]) == 1


# ---------------------------------------------------------------- Weights & Biases


@pytest.fixture
def wandb_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An offline run with its files under tmp_path."""
    import wandb

    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    settings = wandb.Settings(disable_git=True, disable_code=True, x_disable_stats=True, console="off")
    run = wandb.init(project="headwater", mode="offline", dir=str(tmp_path), settings=settings)
    yield run
    run.finish()


def wandb_records(path: Path) -> Iterator[bytes]:
    """The records of a .wandb file: a 7-byte header, then blocks of 32 KiB with chunks as in LevelDB's log.

    A chunk is a checksum (4 bytes), a length (2), a type (1 whole, 2 first, 3 middle, 4 last) and its data; fewer
    than 7 bytes at the end of a block are padding.
    """
    data, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def wandb_history(folder: Path) -> list[dict[str, Any]]:
    """The rows of the one offline run below a folder, without those W&B adds.

    W&B's own process writes the file, and ``finish()`` may return a moment before the last record, ``exit``, is there.
    """
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.rglob("*.wandb")
    deadline = time.monotonic() + 60.0
    while True:
        records = [wandb_internal_pb2.Record.FromString(data) for data in wandb_records(path)]
        if any(record.HasField("exit") for record in records):
            break
        assert time.monotonic() < deadline, "W&B did not finish its file"
        time.sleep(0.05)
    rows = []
    for record in records:
        if record.HasField("history"):
            items = {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
            rows.append({key: value for key, value in items.items() if not key.startswith("_")})
    return rows


@pytest.mark.integration
def test_an_offline_wandb_run_holds_every_scalar_with_its_step(wandb_run: Any, tmp_path: Path) -> None:
    write_all(WandbSink())  # takes the active run
    wandb_run.log({"mine": 1.0})  # no step of the user's is dropped
    wandb_run.finish()
    assert wandb_history(tmp_path) == [
        {"grad/norm/total": 2.5, "train/loss": 1.0, STEP_METRIC: 0},
        {"grad/norm/total": math.inf, "train/loss": 0.5, STEP_METRIC: 10},
        {"mine": 1.0},
    ]


@pytest.mark.integration
def test_scalars_join_the_next_row_of_a_loop_that_passes_steps(wandb_run: Any, tmp_path: Path) -> None:
    sink = WandbSink(wandb_run, commit=False)
    sink.write(STEPS[0], 0)
    wandb_run.log({"mine": 1.0}, step=0)
    wandb_run.log({"mine": 2.0}, step=1)
    wandb_run.finish()
    assert wandb_history(tmp_path) == [{**STEPS[0], STEP_METRIC: 0, "mine": 1.0}, {"mine": 2.0}]


@pytest.mark.integration
def test_without_an_active_wandb_run_the_error_says_what_to_do() -> None:
    with pytest.raises(InputError, match=r"wandb\.init\(\)"):
        WandbSink()


# ---------------------------------------------------------------- MLflow


@pytest.fixture
def mlflow_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """MLflow with a file store under tmp_path: kept behind a switch since MLflow 3, and all that mlflow-skinny has."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    yield mlflow
    mlflow.set_tracking_uri(before)


@pytest.mark.integration
def test_an_mlflow_file_store_holds_every_scalar(mlflow_store: Any) -> None:
    with mlflow_store.start_run() as run:
        sink = MlflowSink()  # takes the active run
    write_all(sink)
    client = mlflow_store.MlflowClient()
    found = {
        tag: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, tag)]
        for tag in client.get_run(run.info.run_id).data.metrics
    }
    assert found == WRITTEN


@pytest.mark.integration
def test_mlflow_is_written_from_another_thread(mlflow_store: Any) -> None:
    from threading import Thread

    with mlflow_store.start_run() as run:
        sink = MlflowSink(run)
        thread = Thread(target=sink.write, args=({"grad/rms/0.<weight>": 1.0}, 3))
        thread.start()
        thread.join()
    history = mlflow_store.MlflowClient().get_metric_history(run.info.run_id, "grad/rms/0._weight_")
    assert [(m.step, m.value) for m in history] == [(3, 1.0)]


@pytest.mark.integration
def test_without_an_active_mlflow_run_the_error_says_what_to_do() -> None:
    with pytest.raises(InputError, match=r"mlflow\.start_run\(\)"):
        MlflowSink()


# ---------------------------------------------------------------- missing libraries


@pytest.mark.parametrize(
    ("module", "make", "package"),
    [
        ("tensorboard", lambda: TensorBoardSink("unused"), "tensorboard"),
        ("wandb", WandbSink, "wandb"),
        ("mlflow", MlflowSink, "mlflow-skinny"),
    ],
)
def test_a_missing_library_is_named_with_the_command_that_installs_it(
    module: str, make: Any, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # what the import system takes for "not there"
    with pytest.raises(HeadwaterError, match=f"pip install {package}"):
        make()
