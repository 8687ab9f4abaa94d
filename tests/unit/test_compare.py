"""Two real training runs, recorded by hand: a learning rate changed at step 7 is found where it happened."""

from __future__ import annotations

from pathlib import Path

import torch
from tests.models import mlp
from torch import nn

from headwater._compare import compare
from headwater.records import STATISTICS_COLUMNS, Block, StepRecord, WatchedTensor
from headwater.stats import moment_table
from headwater.store import RunWriter


def _watched(model: nn.Module) -> tuple[WatchedTensor, ...]:
    return tuple(
        WatchedTensor(
            kind="parameter", name=name, shape=tuple(p.shape), dtype="float32", order=order,
            role="weight" if name.endswith("weight") else "bias",
        )
        for order, (name, p) in enumerate(model.named_parameters())
    )  # fmt: skip


def _train(path: Path, changed: float | None, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    model = mlp(8, 16, 16, 1, activation=nn.Tanh)
    x, y = torch.randn(32, 8), torch.randn(32, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    tensors = _watched(model)
    with RunWriter(path, {"model_type": "Sequential"}) as writer:
        for step in range(12):
            if step == 7 and changed is not None:
                optimizer.param_groups[0]["lr"] = changed
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            parameters = [p.detach() for p in model.parameters()]
            before = [p.clone() for p in parameters]
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            tables = {name: moment_table(t).tolist() for name, t in (("value", before), ("gradient", gradients))}
            optimizer.step()
            ratios = [[((p - q).norm() / q.norm()).item(), 1.0] for p, q in zip(parameters, before, strict=True)]
            writer.write(
                StepRecord(
                    step=step, time=1.7e9 + step, elapsed_seconds=float(step), loss=loss.item(),
                    learning_rate=optimizer.param_groups[0]["lr"],
                    blocks=(
                        Block(quantity="value", tensors=tensors, columns=STATISTICS_COLUMNS, rows=tables["value"]),
                        Block(
                            quantity="gradient", phase="pre_clip", tensors=tensors, columns=STATISTICS_COLUMNS,
                            rows=tables["gradient"],
                        ),
                        Block(
                            quantity="update", tensors=tensors, columns=("update_ratio", "read_fraction"), rows=ratios
                        ),
                    ),
                )
            )  # fmt: skip
    return path


def test_a_learning_rate_changed_at_step_7_parts_the_updates_at_7_and_the_gradients_at_8(tmp_path: Path) -> None:
    found = compare(_train(tmp_path / "a", None), _train(tmp_path / "b", 0.04))
    update, gradient, value = found.first("update"), found.first("gradient"), found.first("value")
    assert update is not None
    assert gradient is not None
    assert value is not None
    assert (update.step, gradient.step, value.step) == (7, 8, 8)
    assert found.partings[0] == update
    assert [(p.quantity, p.step) for p in found.settings] == [("learning_rate", 7)]
    assert ("loss", 8) in [(p.quantity, p.step) for p in found.results]


def test_training_again_with_the_same_seed_is_the_same_run(tmp_path: Path) -> None:
    assert compare(_train(tmp_path / "a", None), _train(tmp_path / "b", None), rtol=0.0).same


def test_another_seed_parts_at_the_first_value(tmp_path: Path) -> None:
    first = compare(_train(tmp_path / "a", None), _train(tmp_path / "b", None, seed=1)).partings[0]
    assert (first.step, first.quantity, first.name) == (0, "value", "0.weight")
