"""The rows of a run are the gradients that the optimizer used: R1, R8, R9, R11, R12."""

from __future__ import annotations

import json
import math
import sqlite3
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.needs.kit import ALWAYS, batch, gradient_norms, loss_of, mlp, norm, norms_at, sgd, train, watched
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import headwater as hw


def scaled(
    model: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any, steps: int, bad: tuple[int, ...] = ()
) -> None:
    for i in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model, i) * (math.inf if i in bad else 1.0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()


# ---- R1: which gradient --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sgd", "adam"])
@pytest.mark.parametrize("fused", [False, True])
def test_a_loss_scaler_changes_no_pre_clip_row(kind: str, fused: bool, tmp_path: Path) -> None:
    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        cls: Any = torch.optim.SGD if kind == "sgd" else torch.optim.Adam
        return cls(model.parameters(), lr=0.01, fused=fused)  # type: ignore[no-any-return]

    plain, amp = mlp(), mlp()
    one, two = optimizer(plain), optimizer(amp)
    a = watched(tmp_path / "fp32", plain, one, lambda: train(plain, one, 6))
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
    b = watched(tmp_path / "amp", amp, two, lambda: scaled(amp, two, scaler, 6))
    for step in range(6):
        assert norms_at(b, step, "pre_clip") == pytest.approx(norms_at(a, step, "pre_clip"), rel=1e-3)
    assert [row.loss_scale for row in b.recorded_steps()] == [65536.0] * 6
    assert [row.loss_scale for row in a.recorded_steps()] == [1.0] * 6


def test_every_gradient_row_of_the_file_names_its_phase(tmp_path: Path) -> None:
    model = mlp()
    optimizer = sgd(model)

    def clipped() -> None:
        for i in range(4):
            optimizer.zero_grad()
            loss_of(model, i).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()

    watched(tmp_path / "a", model, optimizer, clipped)
    with sqlite3.connect(tmp_path / "a" / "run.sqlite") as file:
        phases = {
            p for (p,) in file.execute("SELECT DISTINCT phase FROM tensor_statistics WHERE quantity = 'gradient'")
        }
        columns = {row[1] for row in file.execute("PRAGMA table_info(steps)")}
    file.close()
    assert phases == {"pre_clip", "post_clip"}
    assert {"loss_scale", "clip_coefficient"} <= columns


@pytest.mark.parametrize("limit", [0.05, 1e6])
def test_clipping_by_norm_gives_what_was_before_and_what_was_after(limit: float, tmp_path: Path) -> None:
    model = mlp()
    optimizer = sgd(model)
    before: list[dict[str, float]] = []
    after: list[dict[str, float]] = []

    def body() -> None:
        for i in range(4):
            optimizer.zero_grad()
            loss_of(model, i).backward()
            before.append(gradient_norms(model))
            nn.utils.clip_grad_norm_(model.parameters(), limit)
            after.append(gradient_norms(model))
            optimizer.step()

    run = watched(tmp_path / "a", model, optimizer, body)
    for row in run.recorded_steps():
        assert norms_at(run, row.step, "pre_clip") == pytest.approx(before[row.step], rel=1e-5)
        assert norms_at(run, row.step) == pytest.approx(after[row.step], rel=1e-5)
        total = math.hypot(*before[row.step].values())
        assert row.clip_coefficient == pytest.approx(min(1.0, limit / total), rel=1e-3)
        assert 10**row.gradient_norm_log10 == pytest.approx(total, rel=1e-4)


def test_clipping_by_value_is_told_from_clipping_by_norm_by_its_rows(tmp_path: Path) -> None:
    model = mlp()
    optimizer = sgd(model)
    after: list[dict[str, float]] = []

    def body() -> None:
        for i in range(3):
            optimizer.zero_grad()
            loss_of(model, i).backward()
            nn.utils.clip_grad_value_(model.parameters(), 1e-3)
            after.append(gradient_norms(model))
            optimizer.step()

    run = watched(tmp_path / "a", model, optimizer, body)
    for row in run.recorded_steps():
        assert norms_at(run, row.step, "post_clip") == pytest.approx(after[row.step], rel=1e-5)
        assert row.clip_coefficient is not None
        assert row.clip_coefficient < 1
    assert dict(run.series("0.weight", "gradient.max_abs"))[1] == pytest.approx(1e-3)


@pytest.mark.parametrize("fused", [False, True])
def test_unscaling_and_clipping_by_hand_is_followed(fused: bool, tmp_path: Path) -> None:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before: list[dict[str, float]] = []
    after: list[dict[str, float]] = []

    def body() -> None:
        for i in range(4):
            optimizer.zero_grad()
            scaler.scale(loss_of(model, i)).backward()
            scaler.unscale_(optimizer)
            before.append(gradient_norms(model))
            nn.utils.clip_grad_norm_(model.parameters(), 0.05)
            after.append(gradient_norms(model))
            scaler.step(optimizer)
            scaler.update()

    run = watched(tmp_path / "a", model, optimizer, body)
    for step in range(4):
        assert norms_at(run, step, "pre_clip") == pytest.approx(before[step], rel=1e-4)
        assert norms_at(run, step) == pytest.approx(after[step], rel=1e-4)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_is_a_row_that_says_skipped(fused: bool, tmp_path: Path) -> None:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    run = watched(tmp_path / "a", model, optimizer, lambda: scaled(model, optimizer, scaler, 6, bad=(3,)))
    rows = {row.step: row for row in run.recorded_steps()}
    assert sorted(rows) == [0, 1, 2, 3, 4, 5]
    assert {s: r.skipped for s, r in rows.items()} == {0: None, 1: None, 2: None, 3: "amp", 4: None, 5: None}
    assert [rows[s].loss_scale for s in range(6)] == [1024, 1024, 1024, 1024, 512, 512]


# ---- R8: one row per optimizer step ---------------------------------------------------------------------------------


def accumulated(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, parts: int) -> None:
    for i in range(steps):
        x, y = batch(i, rows=8)
        optimizer.zero_grad()
        for part_x, part_y in zip(x.chunk(parts), y.chunk(parts), strict=True):
            (F.cross_entropy(model(part_x), part_y) / parts).backward()
        optimizer.step()


def test_eight_micro_batches_of_one_give_the_rows_of_one_batch_of_eight(tmp_path: Path) -> None:
    a, b = mlp(), mlp()
    one, two = sgd(a), sgd(b)
    large = watched(tmp_path / "large", a, one, lambda: accumulated(a, one, 5, 1))
    small = watched(tmp_path / "small", b, two, lambda: accumulated(b, two, 5, 8))
    assert large.steps == small.steps == (0, 1, 2, 3, 4)
    assert len(large.recorded_steps()) == len(small.recorded_steps()) == 5
    for step in range(5):
        assert norms_at(small, step) == pytest.approx(norms_at(large, step), rel=1e-5)


def test_micro_batches_are_rows_of_their_own_when_asked_for(tmp_path: Path) -> None:
    model = mlp()
    optimizer = sgd(model)
    seen: list[Any] = []
    watched(
        tmp_path / "a", model, optimizer, lambda: accumulated(model, optimizer, 3, 4), micro=True, on_record=seen.append
    )
    whole = [r.step for r in seen if r.micro is None]
    parts = [(r.step, r.micro) for r in seen if r.micro is not None]
    assert whole == [0, 1, 2]
    assert parts == [(s, m) for s in range(3) for m in range(4)]


def test_a_micro_row_holds_the_gradient_of_its_micro_batch_alone(tmp_path: Path) -> None:
    # With a learning rate of 0 the second micro-batch alone can be computed afterwards.
    model = mlp()
    optimizer = sgd(model, lr=0.0)
    seen: list[Any] = []
    with hw.watch(model, optimizer, micro=True, on_record=seen.append, **ALWAYS):
        accumulated(model, optimizer, 1, 2)
    twin = mlp()
    x, y = batch(0)
    (F.cross_entropy(twin(x[4:]), y[4:]) / 2).backward()
    second = next(r for r in seen if r.micro == 1)
    found = {t.name: s.l2_norm for t, s in second.block("gradient").statistics()}
    assert found == pytest.approx(gradient_norms(twin), rel=1e-4)


def test_gradients_kept_as_zeros_between_steps_change_no_row(tmp_path: Path) -> None:
    def keep(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for i in range(5):
            optimizer.zero_grad(set_to_none=False)
            loss_of(model, i).backward()
            optimizer.step()

    a, b = mlp(), mlp()
    one, two = sgd(a), sgd(b)
    dropped = watched(tmp_path / "a", a, one, lambda: train(a, one, 5))
    kept = watched(tmp_path / "b", b, two, lambda: keep(b, two))
    for step in range(5):
        assert norms_at(kept, step) == pytest.approx(norms_at(dropped, step), rel=1e-6)
        assert {row.clip_coefficient for row in kept.recorded_steps()} == {1.0}


# ---- R9: checkpointing and compile ----------------------------------------------------------------------------------


class Recomputed(nn.Module):
    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(8, 16)
        self.body = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16))
        self.head = nn.Linear(16, 3)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.body(x) if self.reentrant is None else checkpoint(self.body, x, use_reentrant=self.reentrant)
        return self.head(x)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_changes_no_number(reentrant: bool, tmp_path: Path) -> None:
    runs = []
    for how in (None, reentrant):
        model = Recomputed(how)
        optimizer = sgd(model)
        run = watched(
            tmp_path / str(how), model, optimizer, lambda m=model, o=optimizer: train(m, o, 3), activations="recorded"
        )  # type: ignore[misc]
        runs.append(run)
    plain, recomputed = runs
    for tensor in plain.tensors:
        names = (
            ["gradient.l2_norm"]
            if tensor.kind == "parameter"
            else ["activation.rms", "output_gradient.rms", "activation.count"]
        )
        for name in names:
            assert dict(recomputed.series(tensor.name, name)) == pytest.approx(
                dict(plain.series(tensor.name, name)), rel=1e-6
            ), (tensor.name, name)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("in_place", [False, True])
def test_compiling_before_or_after_attaching_gives_equal_rows_without_breaks_or_recompiles(
    when: str, in_place: bool, tmp_path: Path
) -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    plain = mlp()
    one = sgd(plain)
    expected = watched(tmp_path / "plain", plain, one, lambda: train(plain, one, 5))
    counters.clear()
    torch._dynamo.reset()
    model = mlp()

    def compiled(module: nn.Module) -> nn.Module:
        if in_place:
            module.compile(backend="aot_eager")
            return module
        return torch.compile(module, backend="aot_eager")  # type: ignore[return-value]

    if when == "before":
        fast = compiled(model)
        optimizer = sgd(fast)
        train(fast, optimizer, 0)
        with hw.watch(fast, optimizer, run=tmp_path / "fast", **ALWAYS):
            train(fast, optimizer, 5)
    else:
        optimizer = sgd(model)
        with hw.watch(model, optimizer, run=tmp_path / "fast", **ALWAYS):
            fast = compiled(model)
            train(fast, optimizer, 5)
    run = hw.open_run(tmp_path / "fast")
    for step in range(5):
        assert norms_at(run, step) == pytest.approx(norms_at(expected, step), rel=1e-5)
    assert not counters["graph_break"]
    # torch itself counts no graph for an in-place compile right after a reset; more than one would be a recompilation.
    assert counters["stats"]["unique_graphs"] <= 1
    torch._dynamo.reset()


def test_a_compiled_call_that_ran_before_attaching_is_not_compiled_again(tmp_path: Path) -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    model = mlp()
    fast = torch.compile(model, backend="aot_eager", fullgraph=True)
    optimizer = sgd(model)
    train(fast, optimizer, 2)  # type: ignore[arg-type]
    counters.clear()
    run = watched(tmp_path / "a", model, optimizer, lambda: train(fast, optimizer, 4))  # type: ignore[arg-type]
    assert counters["stats"]["unique_graphs"] == 0
    assert all(len(norms_at(run, s)) == 6 for s in range(4))
    torch._dynamo.reset()


def test_asking_for_the_layers_of_a_compiled_model_is_refused_with_advice() -> None:
    model = torch.compile(mlp(), backend="aot_eager")
    optimizer = sgd(model)  # type: ignore[arg-type]
    with pytest.raises(hw.HeadwaterError, match="compile"):
        hw.watch(model, optimizer, activations="recorded").attach()


def test_wrapper_prefixes_are_stripped_from_the_names(tmp_path: Path) -> None:
    inner = mlp()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outer = torch.compile(nn.DataParallel(inner), backend="eager")
    optimizer = sgd(outer)  # type: ignore[arg-type]
    with hw.watch(outer, optimizer, run=tmp_path / "a", **ALWAYS):
        for i in range(2):
            optimizer.zero_grad()
            loss_of(inner, i).backward()
            optimizer.step()
    names = {t.name for t in hw.open_run(tmp_path / "a").tensors if t.kind == "parameter"}
    assert names == {"0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"}


# ---- R11: tied parameters ------------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.e = nn.Embedding(11, 6)
        self.mix = nn.Linear(6, 6)
        self.h = nn.Linear(6, 11, bias=False)
        self.h.weight = self.e.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.h(torch.tanh(self.mix(self.e(x))))


def test_tied_parameters_are_counted_once_and_show_both_names(tmp_path: Path) -> None:
    model = Tied()
    optimizer = sgd(model)
    totals: list[float] = []

    def body() -> None:
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(torch.arange(11)), torch.arange(11).flip(0)).backward()
            totals.append(math.hypot(*(norm(p.grad) for p in model.parameters() if p.grad is not None)))
            optimizer.step()

    run = watched(tmp_path / "a", model, optimizer, body)
    (row,) = [t for t in run.tensors if t.kind == "parameter" and "e.weight" in (t.name, *t.aliases)]
    assert (row.name, row.aliases) == ("e.weight", ("h.weight",))
    for step in run.recorded_steps():
        assert 10**step.gradient_norm_log10 == pytest.approx(totals[step.step], rel=1e-5)
    assert sum(share for _, share in run.top_contributors(1)) == pytest.approx(1.0)


def test_a_view_of_the_same_storage_is_an_alias_too(tmp_path: Path) -> None:
    # Two Parameter objects over one storage: the optimizer gets both, the file tells that they are one memory.
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4, bias=False)
            self.b = nn.Linear(4, 4, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x))

    model = Views()
    optimizer = sgd(model)

    def body() -> None:
        optimizer.zero_grad()
        model(torch.ones(2, 4)).square().mean().backward()
        optimizer.step()

    run = watched(tmp_path / "a", model, optimizer, body)
    assert [(t.name, t.aliases) for t in run.tensors if t.kind == "parameter"] == [("a.weight", ("b.weight",))]


# ---- R12: closures, fused, optimizer in the backward -------------------------------------------------------------------


def test_an_optimizer_inside_the_backward_gives_the_rows_of_the_ordinary_loop(tmp_path: Path) -> None:
    a, b = mlp(), mlp()
    one = sgd(a)
    ordinary = watched(tmp_path / "a", a, one, lambda: train(a, one, 4))
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in b.parameters()}

    def at_once(p: Tensor) -> None:
        optimizers[p].step()  # type: ignore[index]
        optimizers[p].zero_grad()  # type: ignore[index]

    for p in b.parameters():
        p.register_post_accumulate_grad_hook(at_once)
    with hw.watch(b, list(optimizers.values()), run=tmp_path / "b", **ALWAYS):
        for i in range(4):
            loss_of(b, i).backward()
    inside = hw.open_run(tmp_path / "b")
    assert inside.steps == ordinary.steps
    for step in range(4):
        assert norms_at(inside, step) == pytest.approx(norms_at(ordinary, step), rel=1e-5)


def test_every_closure_call_of_lbfgs_is_a_labelled_row() -> None:
    model = mlp()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4)
    calls: list[dict[str, float]] = []
    seen: list[Any] = []
    with hw.watch(model, optimizer, on_record=seen.append, **ALWAYS):
        for _ in range(2):

            def closure() -> Tensor:
                optimizer.zero_grad()
                loss = loss_of(model, 0)
                loss.backward()
                calls.append(gradient_norms(model))
                return loss

            optimizer.step(closure)
    rows = [r for r in seen if r.micro is not None]
    assert len(rows) == len(calls) > 4
    for row, call in zip(rows, calls, strict=True):
        assert {t.name: s.l2_norm for t, s in row.block("gradient").statistics()} == pytest.approx(call, rel=1e-5)
    assert {r.step for r in seen} == {0, 1}


def test_an_ordinary_optimizer_with_a_closure_gives_one_row_per_step(tmp_path: Path) -> None:
    model = mlp()
    optimizer = sgd(model)
    seen: list[Any] = []
    with hw.watch(model, optimizer, on_record=seen.append, **ALWAYS):
        for i in range(3):

            def closure(i: int = i) -> Tensor:
                optimizer.zero_grad()
                loss = loss_of(model, i)
                loss.backward()
                return loss

            optimizer.step(closure)
    assert sorted({r.step for r in seen if r.micro is None} or {r.step for r in seen}) == [0, 1, 2]


# ---- other loops ------------------------------------------------------------------------------------------------------


def test_parameter_groups_with_their_own_rates_and_schedules_are_followed(tmp_path: Path) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters(), "lr": 0.4}, {"params": [*model[2].parameters(), *model[4].parameters()]}],
        lr=0.01,
    )
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)

    def body() -> None:
        for i in range(5):
            optimizer.zero_grad()
            loss_of(model, i).backward()
            optimizer.step()
            schedule.step()

    run = watched(tmp_path / "a", model, optimizer, body)
    # StepLR halves after every second step: 0.4 0.4 0.2 0.2 0.1 for the first group.
    assert [row.learning_rate for row in run.recorded_steps()] == pytest.approx([0.4, 0.4, 0.2, 0.2, 0.1])
    assert all(len(norms_at(run, s)) == 6 for s in range(5))


def test_nan_losses_and_gradients_are_written_as_nan_and_not_as_nothing(tmp_path: Path) -> None:
    model = mlp()
    optimizer = sgd(model)
    w = hw.watch(model, optimizer, run=tmp_path / "a", alerts=(), **ALWAYS)
    with w:
        for i in range(3):
            optimizer.zero_grad()
            loss = loss_of(model, i) * (math.nan if i == 1 else 1.0)
            w.record(loss=loss)
            loss.backward()
            optimizer.step()
    run = hw.open_run(tmp_path / "a")
    rows = run.recorded_steps()
    assert [row.loss is not None and math.isnan(row.loss) for row in rows] == [False, True, True]
    assert dict(run.series("0.weight", "gradient.nan_count"))[1] == 8 * 16
    run.to_json(tmp_path / "a.json")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads((tmp_path / "a.json").read_text(), parse_constant=refuse)


def test_an_empty_batch_gives_a_row_and_no_error(tmp_path: Path) -> None:
    model = mlp()
    optimizer = sgd(model)

    def body() -> None:
        for rows in (4, 0, 4):
            optimizer.zero_grad()
            model(torch.ones(rows, 8)).sum().backward()
            optimizer.step()

    run = watched(tmp_path / "a", model, optimizer, body, activations="recorded", alerts=())
    assert run.steps == (0, 1, 2)
    assert set(norms_at(run, 1).values()) == {0.0}


def test_a_model_in_eval_mode_is_watched_and_stays_in_it(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)).eval()
    optimizer = sgd(model)
    before = [b.clone() for b in model.buffers()]
    run = watched(tmp_path / "a", model, optimizer, lambda: train(model, optimizer, 3), activations="recorded")
    assert not model.training
    assert all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))
    assert run.steps == (0, 1, 2)


def test_evaluation_between_training_steps_adds_no_row(tmp_path: Path) -> None:
    a, b = mlp(), mlp()
    one, two = sgd(a), sgd(b)

    def interleaved() -> None:
        for i in range(4):
            b.eval()
            with torch.no_grad():
                b(torch.full((64, 8), 100.0))
            b.train()
            train(b, two, [i])

    plain = watched(tmp_path / "a", a, one, lambda: train(a, one, 4), activations="recorded")
    mixed = watched(tmp_path / "b", b, two, interleaved, activations="recorded")
    assert mixed.steps == plain.steps
    assert dict(mixed.series("0", "activation.rms")) == pytest.approx(
        dict(plain.series("0", "activation.rms")), rel=1e-6
    )


def test_a_gradient_penalty_by_autograd_grad_does_not_become_a_row(tmp_path: Path) -> None:
    model = mlp()
    optimizer = sgd(model)
    expected: list[dict[str, float]] = []

    def body() -> None:
        for i in range(3):
            x, y = batch(i)
            x.requires_grad_()
            optimizer.zero_grad()
            out = model(x)
            (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
            (F.cross_entropy(out, y) + slope.square().mean()).backward()
            expected.append(gradient_norms(model))
            optimizer.step()

    run = watched(tmp_path / "a", model, optimizer, body)
    assert run.steps == (0, 1, 2)
    for step in range(3):
        assert norms_at(run, step) == pytest.approx(expected[step], rel=1e-5)
