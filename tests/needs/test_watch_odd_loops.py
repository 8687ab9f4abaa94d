"""Loops and models that are less common: several optimizers, replicas, sparse, complex, lazy, threads, workers, forgotten ends."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.needs.kit import ALWAYS, batch, gradient_norms, loss_of, mlp, norm, norms_at, sgd, train, watched
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import headwater as hw


def test_two_optimizers_that_share_a_model_make_one_row_of_each_round(tmp_path: Path) -> None:
    a, b = mlp(), mlp()
    one = sgd(a)
    plain = watched(tmp_path / "a", a, one, lambda: train(a, one, 4))
    first = torch.optim.SGD(b[0].parameters(), lr=0.1)
    second = torch.optim.SGD([*b[2].parameters(), *b[4].parameters()], lr=0.1)
    with hw.watch(b, [first, second], run=tmp_path / "b", **ALWAYS):
        for i in range(4):
            b.zero_grad()
            loss_of(b, i).backward()
            first.step()
            second.step()
    run = hw.open_run(tmp_path / "b")
    assert run.steps == plain.steps
    for step in range(4):
        assert norms_at(run, step) == pytest.approx(norms_at(plain, step), rel=1e-5)


@pytest.fixture
def alone(tmp_path: Path) -> Any:
    """A process group of one."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield dist
    dist.destroy_process_group()


@pytest.mark.parametrize("parts", [1, 4])
def test_accumulation_under_no_sync_gives_the_rows_of_the_plain_model(parts: int, alone: Any, tmp_path: Path) -> None:
    def loop(model: Any, optimizer: torch.optim.Optimizer) -> None:
        for i in range(4):
            x, y = batch(i)
            optimizer.zero_grad()
            for part, (px, py) in enumerate(zip(x.chunk(parts), y.chunk(parts), strict=True)):
                later = part < parts - 1 and hasattr(model, "no_sync")
                with model.no_sync() if later else contextlib.nullcontext():
                    (F.cross_entropy(model(px), py) / parts).backward()
            optimizer.step()

    a, b = mlp(), mlp()
    one = sgd(a)
    plain = watched(tmp_path / "a", a, one, lambda: loop(a, one))
    replica = nn.parallel.DistributedDataParallel(b)
    two = sgd(replica)
    run = watched(tmp_path / "b", replica, two, lambda: loop(replica, two))
    assert run.steps == plain.steps == (0, 1, 2, 3)
    for step in range(4):
        assert norms_at(run, step) == pytest.approx(norms_at(plain, step), rel=1e-5)


def test_sparse_gradients_are_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.EmbeddingBag(50, 4, sparse=True)
    optimizer = torch.optim.SparseAdam(model.parameters())
    expected = []

    def body() -> None:
        for i in range(4):
            optimizer.zero_grad()
            model(torch.tensor([[1, 1, i + 2]])).square().sum().backward()
            assert model.weight.grad is not None
            expected.append(norm(model.weight.grad.to_dense()))
            optimizer.step()

    run = watched(tmp_path / "a", model, optimizer, body)
    assert [v for _, v in run.series("weight", "gradient.l2_norm")] == pytest.approx(expected, rel=1e-5)


def test_complex_parameters_are_read(tmp_path: Path) -> None:
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.w = nn.Parameter(torch.randn(4, 4, dtype=torch.complex64))

        def forward(self, x: Tensor) -> Tensor:
            return (x @ self.w).abs()

    model = Complex()
    optimizer = sgd(model)
    expected = []

    def body() -> None:
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(2, 4, dtype=torch.complex64)).square().mean().backward()
            assert model.w.grad is not None
            expected.append(norm(torch.view_as_real(model.w.grad)))
            optimizer.step()

    run = watched(tmp_path / "a", model, optimizer, body)
    assert [v for _, v in run.series("w", "gradient.l2_norm")] == pytest.approx(expected, rel=1e-5)


def test_a_lazy_model_is_refused_with_advice_until_it_has_its_shapes(tmp_path: Path) -> None:
    model = nn.Sequential(nn.LazyLinear(6), nn.Tanh(), nn.LazyLinear(3))
    optimizer = sgd(model)
    with pytest.raises(hw.HeadwaterError, match="lazy"):
        hw.watch(model, optimizer, run=tmp_path / "a", **ALWAYS).attach()
    model(batch(0)[0])
    run = watched(tmp_path / "a", model, optimizer, lambda: train(model, optimizer, 3))
    assert norms_at(run, 2) == pytest.approx(gradient_norms(model), rel=1e-5)


def test_weight_normalisation_is_watched_under_its_parameters(tmp_path: Path) -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 3)))
    optimizer = sgd(model)
    run = watched(tmp_path / "a", model, optimizer, lambda: train(model, optimizer, 3))
    assert len(norms_at(run, 1)) == 3


def test_experts_without_a_sample_have_no_row_at_that_step(tmp_path: Path) -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.experts = nn.ModuleList(nn.Linear(4, 1, bias=False) for _ in range(2))

        def forward(self, x: Tensor, which: int) -> Tensor:
            return self.experts[which](x)

    model = Experts()
    optimizer = sgd(model)

    def body() -> None:
        for i in range(6):
            optimizer.zero_grad()
            model(torch.ones(2, 4), i % 2).mean().backward()
            optimizer.step()

    run = watched(tmp_path / "a", model, optimizer, body)
    assert [s for s, _ in run.series("experts.0.weight", "gradient.rms")] == [0, 2, 4]
    assert [s for s, _ in run.series("experts.1.weight", "gradient.rms")] == [1, 3, 5]


def test_a_model_in_bfloat16_is_read_to_its_own_precision(tmp_path: Path) -> None:
    model = mlp().bfloat16()
    optimizer = sgd(model)
    expected = []

    def body() -> None:
        for i in range(3):
            x, y = batch(i)
            optimizer.zero_grad()
            F.cross_entropy(model(x.bfloat16()).float(), y).backward()
            expected.append(gradient_norms(model))
            optimizer.step()

    run = watched(tmp_path / "a", model, optimizer, body)
    for step in range(3):
        assert norms_at(run, step) == pytest.approx(expected[step], rel=1e-5)


def test_a_training_in_another_thread_is_recorded(tmp_path: Path) -> None:
    model = mlp()
    optimizer = sgd(model)
    with hw.watch(model, optimizer, run=tmp_path / "a", **ALWAYS):
        thread = threading.Thread(target=train, args=(model, optimizer, 5))
        thread.start()
        thread.join()
    assert hw.open_run(tmp_path / "a").steps == (0, 1, 2, 3, 4)


@pytest.mark.slow
def test_data_loader_workers_neither_hang_nor_hold_the_run(tmp_path: Path) -> None:
    model = mlp()
    optimizer = sgd(model)
    data = TensorDataset(*batch(0, rows=16))
    with hw.watch(model, optimizer, run=tmp_path / "a", **ALWAYS):
        for x, y in DataLoader(data, batch_size=4, num_workers=2):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    assert hw.open_run(tmp_path / "a").steps == (0, 1, 2, 3)


FORGOTTEN = """
import sys, torch
torch.set_num_threads(1)
import headwater as hw
model = torch.nn.Linear(8, 3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
w = hw.watch(model, optimizer, run=sys.argv[1], every=1, max_overhead=None).attach()
for i in range(25):
    optimizer.zero_grad()
    model(torch.randn(4, 8)).square().mean().backward()
    optimizer.step()
if sys.argv[2] == "raise":
    raise RuntimeError("the user's own")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [("return", 0), ("raise", 1)])
def test_a_program_that_ends_without_detaching_keeps_all_its_rows(how: str, code: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FORGOTTEN), str(tmp_path / "a"), how],
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ},
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert hw.open_run(tmp_path / "a").steps == tuple(range(25))


def test_an_interrupt_from_the_keyboard_leaves_a_whole_run(tmp_path: Path) -> None:
    model = mlp()
    optimizer = sgd(model)

    def body() -> None:
        with hw.watch(model, optimizer, run=tmp_path / "a", **ALWAYS):
            train(model, optimizer, 5)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        body()
    assert hw.open_run(tmp_path / "a").steps == (0, 1, 2, 3, 4)


def test_an_error_of_the_loop_is_not_covered_up_by_nothing_observed() -> None:
    model = mlp()
    optimizer = sgd(model)

    def body() -> None:
        with hw.watch(model, optimizer, **ALWAYS):
            optimizer.step()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        body()


def test_a_second_backward_before_the_step_is_part_of_the_same_row(tmp_path: Path) -> None:
    model = mlp()
    optimizer = sgd(model)
    expected = []

    def body() -> None:
        for i in range(3):
            optimizer.zero_grad()
            loss_of(model, i).backward(retain_graph=True)
            (0.5 * loss_of(model, i + 10)).backward()
            expected.append(gradient_norms(model))
            optimizer.step()

    run = watched(tmp_path / "a", model, optimizer, body)
    assert run.steps == (0, 1, 2)
    for step in range(3):
        assert norms_at(run, step) == pytest.approx(expected[step], rel=1e-5)
        assert run.recorded_steps()[step].clip_coefficient == 1.0


@pytest.mark.parametrize("kind", ["scale", "replace"])
def test_gradients_changed_by_hand_are_seen_before_and_after(kind: str, tmp_path: Path) -> None:
    model = mlp()
    optimizer = sgd(model)
    before: list[dict[str, float]] = []
    after: list[dict[str, float]] = []

    def body() -> None:
        for i in range(3):
            optimizer.zero_grad()
            loss_of(model, i).backward()
            before.append(gradient_norms(model))
            for p in model.parameters():
                assert p.grad is not None
                if kind == "scale":
                    p.grad.mul_(0.25)
                else:
                    p.grad = p.grad * 0.25
            after.append(gradient_norms(model))
            optimizer.step()

    run = watched(tmp_path / "a", model, optimizer, body)
    for step in range(3):
        assert norms_at(run, step, "pre_clip") == pytest.approx(before[step], rel=1e-5)
        assert norms_at(run, step) == pytest.approx(after[step], rel=1e-5)
        assert run.recorded_steps()[step].clip_coefficient == pytest.approx(0.25, rel=1e-5)


def test_only_norms_may_be_asked_for(tmp_path: Path) -> None:
    model = mlp()
    optimizer = sgd(model)
    expected = []

    def body() -> None:
        for i in range(3):
            train(model, optimizer, [i])
            expected.append(gradient_norms(model))

    run = watched(tmp_path / "a", model, optimizer, body, statistics="norms", updates=None, activations=None)
    for step in range(3):
        assert norms_at(run, step) == pytest.approx(expected[step], rel=1e-5)
    assert run.series("0.weight", "update.update_ratio") == ()


def test_the_live_view_shows_one_frame_of_a_run(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from headwater.cli import main

    model = mlp()
    optimizer = sgd(model)
    with hw.watch(model, optimizer, run=tmp_path / "a", **ALWAYS):
        train(model, optimizer, 5)
    done = CliRunner().invoke(main, ["top", str(tmp_path / "a"), "--once"])
    assert done.exit_code == 0, done.output
    assert "weight" in done.output
