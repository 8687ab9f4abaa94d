"""What a row of a watched run stands for: one optimizer step, the gradient it says it is, every parameter once."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests import models
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import headwater as hw
from headwater.errors import NothingObservedError
from headwater.records import StepRecord
from headwater.records.statistics import Statistics


def whole_steps(records: list[StepRecord]) -> list[StepRecord]:
    return [r for r in records if r.micro is None]


def gradients(record: StepRecord, phase: Any = None) -> dict[str, Statistics]:
    block = record.block("gradient", phase)
    return {} if block is None else {t.name: s for t, s in block.statistics()}


def l2(record: StepRecord, phase: Any = None) -> dict[str, float]:
    return {name: s.l2_norm for name, s in gradients(record, phase).items()}


def watched_steps(
    model: nn.Module, optimizer: Any, step: Callable[[int], object], steps: int, **options: Any
) -> list[StepRecord]:
    records: list[StepRecord] = []
    options = {"every": 1, "alerts": (), "max_overhead": None, **options}
    with hw.watch(model, optimizer, on_record=records.append, **options):
        for i in range(steps):
            step(i)
    return records


def batch(i: int, rows: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(i)
    return torch.randn(rows, 8, generator=generator), torch.randint(0, 3, (rows,), generator=generator)


def plain(model: nn.Module, optimizer: torch.optim.Optimizer, clip: float | None = None) -> Callable[[int], None]:
    def step(i: int) -> None:
        x, y = batch(i)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()

    return step


def two_of(widths: tuple[int, ...] = (8, 16, 16, 3)) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    a = models.mlp(*widths)
    torch.manual_seed(0)
    return a, models.mlp(*widths)


# -------------------------------------------------------------------- R1: which gradient


def test_the_row_holds_the_gradient_the_optimizer_used() -> None:
    model = models.mlp(8, 16, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    truth: list[dict[str, float]] = []
    inner = plain(model, optimizer)

    def step(i: int) -> None:
        inner(i)
        truth.append({n: float(p.grad.norm()) for n, p in model.named_parameters() if p.grad is not None})

    records = watched_steps(model, optimizer, step, 4)
    assert [r.step for r in records] == [0, 1, 2, 3]
    for record, expected in zip(records, truth, strict=True):
        assert record.clip_coefficient == 1.0
        assert [b.phase for b in record.blocks if b.quantity == "gradient"] == ["pre_clip"]
        assert l2(record) == pytest.approx(expected, rel=1e-5)


def test_clipping_by_norm_gives_both_gradients_and_their_ratio() -> None:
    model = models.mlp(8, 16, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    norms: list[Tensor] = []

    def step(i: int) -> None:
        x, y = batch(i)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.01))
        optimizer.step()

    for record, norm in zip(watched_steps(model, optimizer, step, 3), norms, strict=True):
        before = sum(v**2 for v in l2(record, "pre_clip").values()) ** 0.5
        after = sum(v**2 for v in l2(record, "post_clip").values()) ** 0.5
        assert before == pytest.approx(float(norm), rel=1e-5)
        assert after == pytest.approx(0.01, rel=1e-4)
        assert record.clip_coefficient == pytest.approx(0.01 / float(norm), rel=1e-4)


def test_clipping_by_value_is_seen_as_well() -> None:
    model = models.mlp(8, 16, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(i: int) -> None:
        x, y = batch(i)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        nn.utils.clip_grad_value_(model.parameters(), 1e-3)
        optimizer.step()

    for record in watched_steps(model, optimizer, step, 2):
        assert max(s.max_abs for s in gradients(record, "post_clip").values()) == pytest.approx(1e-3)
        assert max(s.max_abs for s in gradients(record, "pre_clip").values()) > 1e-3
        assert record.clip_coefficient is not None
        assert record.clip_coefficient < 1.0


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_a_loss_scaler_changes_no_row(fused: bool, unscale: bool, given: bool) -> None:
    a, b = two_of()
    plain_optimizer = torch.optim.SGD(a.parameters(), lr=0.1)
    optimizer = torch.optim.SGD(b.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)

    def scaled(i: int) -> None:
        x, y = batch(i)
        optimizer.zero_grad()
        scaler.scale(F.cross_entropy(b(x), y)).backward()
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()

    reference = watched_steps(a, plain_optimizer, plain(a, plain_optimizer), 3, activations="recorded")
    records = watched_steps(b, optimizer, scaled, 3, activations="recorded", scaler=scaler if given else None)
    for record, expected in zip(records, reference, strict=True):
        assert record.loss_scale == 65536.0
        assert record.clip_coefficient == 1.0
        assert l2(record, "pre_clip") == pytest.approx(l2(expected), rel=1e-3)
        found, wanted = record.block("output_gradient"), expected.block("output_gradient")
        assert found is not None
        assert wanted is not None
        for (_, s), (_, t) in zip(found.statistics(), wanted.statistics(), strict=True):
            assert s.l2_norm == pytest.approx(t.l2_norm, rel=1e-3)


@pytest.mark.parametrize("fused", [False, True])
def test_a_loss_scaler_and_clipping_give_unscaled_rows_before_and_after(fused: bool) -> None:
    a, b = two_of()
    plain_optimizer = torch.optim.SGD(a.parameters(), lr=0.1)
    optimizer = torch.optim.SGD(b.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)

    def scaled(i: int) -> None:
        x, y = batch(i)
        optimizer.zero_grad()
        scaler.scale(F.cross_entropy(b(x), y)).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(b.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()

    reference = watched_steps(a, plain_optimizer, plain(a, plain_optimizer, clip=0.1), 3)
    for record, expected in zip(watched_steps(b, optimizer, scaled, 3), reference, strict=True):
        assert l2(record, "pre_clip") == pytest.approx(l2(expected, "pre_clip"), rel=1e-3)
        assert l2(record, "post_clip") == pytest.approx(l2(expected, "post_clip"), rel=1e-3)
        assert record.clip_coefficient == pytest.approx(expected.clip_coefficient, rel=1e-3)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("every", [1, 3])
def test_a_step_that_the_scaler_skips_is_a_row_and_counts(fused: bool, every: int) -> None:
    model = models.mlp(8, 16, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)

    def step(i: int) -> None:
        x, y = batch(i)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y) * (float("inf") if i in (0, 3, 5) else 1.0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    records = watched_steps(model, optimizer, step, 7, every=every)
    expected = {
        i: "amp" if i in (0, 3, 5) else None for i in ({0, 1, 2, 3, 4, 5, 6} if every == 1 else {0, 1, 2, 3, 4, 6})
    }
    assert {r.step: r.skipped for r in records} == expected
    first = records[0]
    assert any(s.nonfinite_count for s in gradients(first).values())
    assert first.loss_scale == 65536.0
    assert records[1].loss_scale == 32768.0


def test_gradients_that_are_not_finite_and_dropped_are_a_row_that_says_so() -> None:
    model = models.mlp(8, 16, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(i: int) -> None:
        x, y = batch(i)
        optimizer.zero_grad()
        (F.cross_entropy(model(x), y) * (float("nan") if i == 2 else 1.0)).backward()
        if i != 2:
            optimizer.step()

    records = watched_steps(model, optimizer, step, 5)
    assert [(r.step, r.skipped) for r in records] == [(0, None), (1, None), (2, "not stepped"), (3, None), (4, None)]


# -------------------------------------------------------------------- R8: accumulation


def test_accumulation_gives_the_rows_of_the_large_batch() -> None:
    a, b = two_of()
    one, eight = torch.optim.SGD(a.parameters(), lr=0.1), torch.optim.SGD(b.parameters(), lr=0.1)

    def large(i: int) -> None:
        x, y = batch(i)
        one.zero_grad()
        F.cross_entropy(a(x), y).backward()
        one.step()

    def small(i: int) -> None:
        x, y = batch(i)
        eight.zero_grad()
        for k in range(8):
            (F.cross_entropy(b(x[k : k + 1]), y[k : k + 1]) / 8).backward()
        eight.step()

    reference, records = watched_steps(a, one, large, 3), watched_steps(b, eight, small, 3, micro=True)
    micro = [r for r in records if r.micro is not None]
    assert [(r.step, r.micro) for r in micro] == [(i, k) for i in range(3) for k in range(8)]
    records = whole_steps(records)
    assert len(records) == len(reference)
    for record, expected in zip(records, reference, strict=True):
        assert l2(record) == pytest.approx(l2(expected), rel=1e-5)
        assert record.clip_coefficient == 1.0
    # The micro-batches of the first step add up to its gradient: means of 8 rows, and a mean is Σx / n.
    for name, s in gradients(records[0]).items():
        parts = [gradients(r)[name].mean for r in micro[:8]]
        assert sum(parts) == pytest.approx(s.mean, rel=1e-3, abs=1e-7)


def test_accumulation_that_is_clipped_has_the_whole_gradient_before_the_clip() -> None:
    a, b = two_of()
    one, four = torch.optim.SGD(a.parameters(), lr=0.1), torch.optim.SGD(b.parameters(), lr=0.1)

    def small(i: int) -> None:
        x, y = batch(i)
        four.zero_grad()
        for k in range(4):
            (F.cross_entropy(b(x[2 * k : 2 * k + 2]), y[2 * k : 2 * k + 2]) / 4).backward()
        nn.utils.clip_grad_norm_(b.parameters(), 0.1)
        four.step()

    reference = watched_steps(a, one, plain(a, one, clip=0.1), 3)
    for record, expected in zip(watched_steps(b, four, small, 3), reference, strict=True):
        assert l2(record, "pre_clip") == pytest.approx(l2(expected, "pre_clip"), rel=1e-4)
        assert record.clip_coefficient == pytest.approx(expected.clip_coefficient, rel=1e-4)


# -------------------------------------------------------------------- R9: checkpointing and compilation


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 16)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(3))
        self.head = nn.Linear(16, 3)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = block(h) if self.reentrant is None else checkpoint(block, h, use_reentrant=self.reentrant)
        return self.head(h)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_no_row(reentrant: bool) -> None:
    found = []
    for kind in (None, reentrant):
        torch.manual_seed(0)
        model = Checkpointed(kind)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        found.append(watched_steps(model, optimizer, plain(model, optimizer, clip=0.05), 3, activations="recorded"))
    for expected, record in zip(*found, strict=True):
        for quantity in ("gradient", "activation", "output_gradient"):
            one, other = expected.block(quantity), record.block(quantity)
            assert one is not None
            assert other is not None
            wanted = {t.name: s.l2_norm for t, s in one.statistics()}
            assert {t.name: s.l2_norm for t, s in other.statistics()} == pytest.approx(wanted, rel=1e-6)
        assert record.clip_coefficient == pytest.approx(expected.clip_coefficient, rel=1e-6)


# -------------------------------------------------------------------- R11: tied parameters


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embed(tokens))


def test_a_tied_parameter_is_one_row_with_both_names() -> None:
    model = Tied()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(i: int) -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(torch.arange(11)), torch.arange(11)).backward()
        optimizer.step()

    (record,) = watched_steps(model, optimizer, step, 1)
    block = record.block("gradient")
    assert block is not None
    assert [(t.name, t.aliases) for t in block.tensors] == [("embed.weight", ("head.weight",))]
    assert l2(record)["embed.weight"] == pytest.approx(float(model.embed.weight.grad.norm()), rel=1e-5)


# -------------------------------------------------------------------- R12: unusual optimizers


def test_an_optimizer_that_steps_inside_the_backward_gives_the_ordinary_rows() -> None:
    a, b = two_of()
    ordinary = torch.optim.SGD(a.parameters(), lr=0.1)
    own = {p: torch.optim.SGD([p], lr=0.1) for p in b.parameters()}

    def at_once(p: Tensor) -> None:
        own[p].step()
        own[p].zero_grad()

    handles = [p.register_post_accumulate_grad_hook(at_once) for p in b.parameters()]

    def step(i: int) -> None:
        x, y = batch(i)
        F.cross_entropy(b(x), y).backward()

    reference = watched_steps(a, ordinary, plain(a, ordinary), 3)
    records = watched_steps(b, own, step, 3)
    assert [r.step for r in records] == [0, 1, 2]
    for record, expected in zip(records, reference, strict=True):
        assert l2(record) == pytest.approx(l2(expected), rel=1e-6)
        assert record.block("update") is not None
        assert not record.missing
    for handle in handles:
        handle.remove()


def test_every_closure_call_is_a_labelled_row() -> None:
    model = models.mlp(8, 16, 3)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3, max_eval=10)
    norms: list[list[float]] = []

    def step(i: int) -> None:
        x, y = batch(i)
        norms.append([])

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            norms[-1].append(float(nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])))
            return loss

        optimizer.step(closure)

    records = watched_steps(model, optimizer, step, 2)
    calls = [r for r in records if r.micro is not None]
    assert [(r.step, r.micro) for r in calls] == [(i, k) for i in range(2) for k in range(len(norms[i]))]
    for record in calls:
        total = sum(v**2 for v in l2(record).values()) ** 0.5
        assert record.micro is not None
        assert total == pytest.approx(norms[record.step][record.micro], rel=1e-5)
    whole = whole_steps(records)
    assert [r.step for r in whole] == [0, 1]
    assert sum(v**2 for v in l2(whole[1]).values()) ** 0.5 == pytest.approx(norms[1][0], rel=1e-5)


def test_a_closure_that_is_called_once_gives_one_row_with_the_clip_inside_it() -> None:
    """As Lightning steps: forward, backward and clipping all happen inside the closure."""
    a, b = two_of()
    ordinary, inside = torch.optim.SGD(a.parameters(), lr=0.1), torch.optim.SGD(b.parameters(), lr=0.1)

    def step(i: int) -> None:
        x, y = batch(i)

        def closure() -> Tensor:
            inside.zero_grad()
            loss = F.cross_entropy(b(x), y)
            loss.backward()
            nn.utils.clip_grad_norm_(b.parameters(), 0.1)
            return loss

        inside.step(closure)

    reference = watched_steps(a, ordinary, plain(a, ordinary, clip=0.1), 3)
    records = watched_steps(b, inside, step, 3)
    assert [(r.step, r.micro) for r in records] == [(0, None), (1, None), (2, None)]
    for record, expected in zip(records, reference, strict=True):
        assert l2(record, "pre_clip") == pytest.approx(l2(expected, "pre_clip"), rel=1e-6)
        assert l2(record, "post_clip") == pytest.approx(l2(expected, "post_clip"), rel=1e-6)
        assert record.clip_coefficient == pytest.approx(expected.clip_coefficient, rel=1e-6)


def test_two_optimizers_of_one_model_make_one_row_together() -> None:
    model = models.mlp(8, 16, 3)
    first = torch.optim.SGD(model[0].parameters(), lr=0.1)
    second = torch.optim.AdamW(model[2].parameters())

    def step(i: int) -> None:
        x, y = batch(i)
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        first.step()
        second.step()

    records = watched_steps(model, [first, second], step, 3)
    assert [r.step for r in records] == [0, 1, 2]
    for record in records:
        update = record.block("update")
        assert len(l2(record)) == 4
        assert update is not None
        assert {t.name for t in update.tensors} == {"0.weight", "0.bias", "2.weight", "2.bias"}
        assert all(ratio > 0 for ratio in update.column("update_ratio"))


# -------------------------------------------------------------------- R14: short runs, late looks


@pytest.mark.parametrize("every", [10, 1000])
def test_a_short_run_shows_data(every: int) -> None:
    model = models.mlp(8, 16, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    records = watched_steps(model, optimizer, plain(model, optimizer), 5, every=every)
    assert [r.step for r in records] == [0, 1, 2, 4]


def test_the_last_step_is_recorded_where_its_gradients_are_still_there() -> None:
    model = models.mlp(8, 16, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    records = watched_steps(model, optimizer, plain(model, optimizer), 16)
    assert records[-1].step == 15
    records = watched_steps(model, optimizer, plain(model, optimizer), 16, every=10)
    assert [r.step for r in records] == [0, 1, 2, 4, 8, 10, 15]
    expected = {n: float(p.grad.norm()) for n, p in model.named_parameters() if p.grad is not None}
    assert l2(records[-1]) == pytest.approx(expected, rel=1e-5)
    assert records[-1].clip_coefficient == 1.0


@pytest.mark.parametrize("to_none", [False, True])
def test_a_last_step_whose_gradients_are_gone_keeps_its_loss_and_rate_and_has_no_row_of_zeros(to_none: bool) -> None:
    model = models.mlp(8, 16, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    records: list[StepRecord] = []
    with hw.watch(model, optimizer, alerts=(), on_record=records.append) as watch:
        for i in range(16):
            watch.record(loss=float(i))
            plain(model, optimizer)(i)
            optimizer.zero_grad(set_to_none=to_none)
            schedule.step()
    last = records[-1]
    assert [r.step for r in records] == [0, 1, 2, 4, 8, 10, 15]
    # The rate is that of the step, not of the one the schedule has moved on to.
    assert (last.loss, last.learning_rate) == (15.0, 0.1 * 0.5**15)
    assert (last.blocks, dict(last.missing), last.clip_coefficient) == ((), {}, None)


def test_the_memory_it_held_is_said_after_the_model_is_gone() -> None:
    model = models.mlp(8, 16, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with hw.watch(model, optimizer, alerts=()) as watch:
        plain(model, optimizer)(0)
    held = watch.overhead.bytes
    assert held > 0
    del model, optimizer
    gc.collect()
    assert watch.overhead.bytes == held
    assert f"{held:,} bytes held" in watch.summary()


def test_a_loss_given_after_the_step_is_that_of_the_last_step_too() -> None:
    model = models.mlp(8, 16, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    records: list[StepRecord] = []
    with hw.watch(model, optimizer, alerts=(), on_record=records.append) as watch:
        for i in range(16):
            plain(model, optimizer)(i)
            optimizer.zero_grad()
            watch.record(loss=float(i))
    assert [(r.step, r.loss) for r in records] == [(i, float(i)) for i in (0, 1, 2, 4, 8, 10, 15)]


def test_the_row_of_a_clipped_last_step_holds_the_gradient_after_the_clip_and_no_coefficient() -> None:
    model = models.mlp(8, 16, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    last = watched_steps(model, optimizer, plain(model, optimizer, clip=0.1), 16, every=10)[-1]
    assert (last.step, [(b.quantity, b.phase) for b in last.blocks]) == (15, [("gradient", "post_clip")])
    assert last.clip_coefficient is None
    assert l2(last) == pytest.approx({n: float(p.grad.norm()) for n, p in model.named_parameters()}, rel=1e-5)


# -------------------------------------------------------------------- R5, R6: what is not there


def test_a_parameter_without_a_gradient_is_named_and_gets_no_number() -> None:
    model = nn.ModuleDict({"used": models.mlp(8, 16, 3), "unused": nn.Linear(2, 2)})
    model["used"][0].bias.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    records = watched_steps(model, optimizer, plain(model["used"], optimizer), 2)
    for record in records:
        assert dict(record.missing) == {"unused.weight": "none", "unused.bias": "none"}
        assert set(l2(record)) == {"used.0.weight", "used.2.weight", "used.2.bias"}


def test_a_run_in_which_no_gradient_was_ever_seen_ends_with_an_error() -> None:
    model, other = two_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(i: int) -> None:
        x, y = batch(i)
        F.cross_entropy(other(x), y).backward()
        optimizer.step()

    with pytest.raises(NothingObservedError, match="no parameter of the watched model had a gradient"):
        watched_steps(model, optimizer, step, 2)


def test_a_generator_whose_discriminator_is_idle_is_not_interrupted() -> None:
    g, d = two_of()
    one, two = torch.optim.SGD(g.parameters(), lr=0.1), torch.optim.SGD(d.parameters(), lr=0.1)
    inner = plain(g, one)

    def step(i: int) -> None:
        inner(i)
        two.step()

    records = watched_steps({"G": (g, one), "D": (d, two)}, None, step, 2)  # type: ignore[arg-type]
    assert [(r.group, len(l2(r))) for r in records if r.group == "G"] == [("G", 6), ("G", 6)]
    assert all(set(r.missing.values()) == {"none"} for r in records if r.group == "D")


# -------------------------------------------------------------------- R16, R17


def test_excluded_parameters_and_layers_cost_no_hook_and_no_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from headwater.capture.training import gradients as reading

    read: list[tuple[int, ...]] = []
    original = reading.read_table

    def spy(tensors: Any, tier: Any) -> Tensor:
        read.extend(tuple(t.shape) for t in tensors)
        return original(tensors, tier)

    for module in ("gradients", "pair_row", "collector"):
        monkeypatch.setattr(f"headwater.capture.training.{module}.read_table", spy)
    model = models.mlp(8, 16, 5, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hooks = []
    inner = plain(model, optimizer)

    def step(i: int) -> None:
        hooks.append({n: len(m._forward_hooks) for n, m in model.named_modules()})
        inner(i)

    records = watched_steps(model, optimizer, step, 1, exclude="2*", activations="recorded")
    assert hooks[0] == {"": 1, "0": 1, "1": 1, "2": 0, "3": 1, "4": 1}
    assert (5, 16) not in read
    assert (5,) not in read
    assert set(l2(records[0])) == {"0.weight", "0.bias", "4.weight", "4.bias"}
    assert records[0].missing == {"2.weight": "excluded", "2.bias": "excluded"}


def test_a_parameter_that_is_unfrozen_later_has_rows_from_then_on_and_an_event() -> None:
    model = models.mlp(8, 16, 3)
    model[0].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    records: list[StepRecord] = []
    inner = plain(model, optimizer)
    with hw.watch(model, optimizer, every=1, alerts=(), on_record=records.append) as watch:
        for i in range(14):
            if i == 10:
                model[0].weight.requires_grad_(True)
            inner(i)
    seen = [r.step for r in records if "0.weight" in l2(r)]
    assert seen == [10, 11, 12, 13]
    assert [(e.step, e.names) for e in watch.events if e.kind == "unfrozen"] == [(10, ("0.weight",))]


def test_two_models_with_their_optimizers_are_both_recorded() -> None:
    generator, discriminator = models.mlp(4, 8, 8), models.mlp(8, 8, 1)
    one = torch.optim.Adam(generator.parameters())
    two = torch.optim.Adam(discriminator.parameters())

    def step(i: int) -> None:
        two.zero_grad()
        noise = torch.randn(6, 4)
        real, fake = discriminator(torch.randn(6, 8)), discriminator(generator(noise).detach())
        F.softplus(-real).mean().backward()
        F.softplus(fake).mean().backward()
        two.step()
        one.zero_grad()
        F.softplus(-discriminator(generator(noise))).mean().backward()
        one.step()

    records = watched_steps({"G": (generator, one), "D": (discriminator, two)}, None, step, 4)  # type: ignore[arg-type]
    for group, prefix in (("G", "G."), ("D", "D.")):
        rows = [r for r in records if r.group == group]
        assert [(r.step, r.skipped, r.clip_coefficient) for r in rows] == [(i, None, 1.0) for i in range(4)]
        assert all(name.startswith(prefix) for r in rows for name in l2(r))
        assert all(len(l2(r)) == 4 for r in rows)


def test_sparse_gradients_are_counted_with_their_implicit_zeros() -> None:
    model = nn.Sequential(nn.Embedding(50, 4, sparse=True), nn.Flatten(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(i: int) -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(torch.tensor([[1, 2], [3, 2]])), torch.tensor([0, 1])).backward()
        optimizer.step()

    records = watched_steps(model, optimizer, step, 3)
    for record in records:
        s = gradients(record)["0.weight"]
        assert (s.count, s.zero_count) == (200, 200 - 3 * 4)
        assert record.clip_coefficient == 1.0
