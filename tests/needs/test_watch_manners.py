"""It says what it cannot see, costs what it says, and leaves nothing behind: R5, R13, R15, R16, R17, R33, R38."""

from __future__ import annotations

import copy
import gc
import io
import logging
import math
import multiprocessing
import pickle
import re
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.needs.kit import ALWAYS, batch, bits, loss_of, mlp, norms_at, sgd, train
from torch import Tensor, nn

import headwater as hw
from headwater.errors import NothingObservedError

# ---- R5: coverage ---------------------------------------------------------------------------------------------------


def test_a_run_in_which_nothing_was_observed_is_an_error() -> None:
    model, other = mlp(), mlp(seed=1)
    optimizer = sgd(model)

    def blind() -> None:
        with hw.watch(model, optimizer, **ALWAYS):
            for i in range(3):
                loss_of(other, i).backward()
                optimizer.step()

    with pytest.raises(NothingObservedError, match="gradient"):
        blind()


class OneUnused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.used = nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(9))
        self.spare = nn.Linear(4, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.used:
            x = torch.tanh(layer(x))
        return x


def test_one_of_ten_parameters_without_a_gradient_is_ninety_percent_and_its_name(tmp_path: Path) -> None:
    model = OneUnused()
    optimizer = sgd(model)
    w = hw.watch(model, optimizer, run=tmp_path / "a", **ALWAYS)
    with w:
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(2, 4)).square().mean().backward()
            optimizer.step()
    text = w.summary()
    assert "9 of 10" in text
    assert "90 %" in text
    assert "spare.weight" in text
    run = hw.open_run(tmp_path / "a")
    assert run.series("spare.weight", "gradient.rms") == ()
    profile = run.profile(1)
    assert (profile.coverage.observed, profile.coverage.trainable) == (9, 10)
    assert list(profile.coverage.missing) == ["spare.weight"]
    assert profile.parameter("spare.weight").gradient is None


def test_layers_inside_a_compiled_model_are_said_to_be_unseen() -> None:
    torch._dynamo.reset()
    model = torch.compile(mlp(), backend="eager")
    optimizer = sgd(model)  # type: ignore[arg-type]
    w = hw.watch(model, optimizer, **ALWAYS)
    with w:
        train(model, optimizer, 3)  # type: ignore[arg-type]
    assert "compiled" in w.summary()
    torch._dynamo.reset()


def test_frozen_parameters_are_not_counted_as_missing() -> None:
    model = mlp()
    model[0].requires_grad_(False)
    optimizer = sgd(model)
    w = hw.watch(model, optimizer, **ALWAYS)
    with w:
        train(model, optimizer, 3)
    assert "4 of 4" in w.summary()
    assert "100 %" in w.summary()


# ---- R13: cost ------------------------------------------------------------------------------------------------------


def test_the_summary_tells_time_share_and_bytes() -> None:
    model = mlp()
    optimizer = sgd(model)
    w = hw.watch(model, optimizer, **ALWAYS)
    with w:
        train(model, optimizer, 5)
    assert re.search(r"\d s of [\d.]+ s \(\d", w.summary())
    assert "bytes" in w.summary()
    assert w.overhead.seconds > 0
    assert 0 < w.overhead.share <= 1
    assert w.overhead.bytes >= 0


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_less_than_a_hundredth_of_the_parameters_memory_is_held(kind: str) -> None:
    # 1.1 million parameters, 4.3 MB.
    model = mlp(8, 1000, 1000, 3, activation=nn.ReLU)
    optimizer = sgd(model) if kind == "sgd" else torch.optim.Adam(model.parameters())
    w = hw.watch(model, optimizer, **ALWAYS)
    with w:
        train(model, optimizer, 4)
        assert 0 < w.overhead.bytes < 0.01 * 4 * sum(p.numel() for p in model.parameters())


def test_recording_is_spread_out_when_it_costs_more_than_it_may(tmp_path: Path) -> None:
    # A model so small that looking at it costs more than training it; after the first second the limit holds.
    model = mlp(4, 4)
    optimizer = sgd(model)
    w = hw.watch(model, optimizer, run=tmp_path / "a", every=1, max_overhead=0.02)
    with w:
        end = time.perf_counter() + 2.5
        steps = 0
        while time.perf_counter() < end:
            optimizer.zero_grad()
            model(torch.ones(2, 4)).square().mean().backward()
            optimizer.step()
            steps += 1
    run = hw.open_run(tmp_path / "a")
    assert any(e.kind == "throttled" for e in run.events)
    late = [s for s in run.steps if s > steps * 0.7]
    assert len(late) < 0.5 * 0.3 * steps


def test_steps_that_are_not_recorded_carry_no_module_hook() -> None:
    model = mlp()
    optimizer = sgd(model)
    hooks: dict[int, int] = {}
    with hw.watch(model, optimizer, every=10):
        for i in range(20):
            optimizer.zero_grad()
            hooks[i] = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
            loss_of(model, i).backward()
            optimizer.step()
    assert all(hooks[i] == 0 for i in (3, 5, 6, 7, 9, 11, 12, 13, 14, 15, 16, 17, 18, 19))
    assert hooks[1] > 0


def test_no_backward_hook_is_ever_put_on_a_module() -> None:
    model = mlp()
    optimizer = sgd(model)
    with hw.watch(model, optimizer, **ALWAYS, activations="recorded"):
        for i in range(4):
            optimizer.zero_grad()
            assert not any(m._backward_hooks or m._backward_pre_hooks for m in model.modules())
            loss_of(model, i).backward()
            optimizer.step()


def test_no_gradient_is_kept_alive() -> None:
    model = mlp()
    optimizer = sgd(model)
    with hw.watch(model, optimizer, **ALWAYS):
        train(model, optimizer, 3)
        assert model[0].weight.grad is not None
        dead = weakref.ref(model[0].weight.grad)
        optimizer.zero_grad()
        train(model, optimizer, 2)
        gc.collect()
        assert dead() is None


# ---- R15: no residue ------------------------------------------------------------------------------------------------


def marks(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Everything that a guest could leave behind."""
    kept: dict[str, Any] = {"optimizer": sorted(vars(optimizer))}
    for name, value in vars(optimizer).items():
        if "hook" in name:
            kept[f"optimizer.{name}"] = len(value)
    for name, module in model.named_modules():
        kept[name] = (
            sorted(vars(module)),
            [len(v) for k, v in vars(module).items() if "hook" in k and hasattr(v, "__len__")],
        )
        kept[f"{name}.class"] = type(module).__qualname__
    for name, p in model.named_parameters():
        kept[f"{name}.p"] = len(p._backward_hooks or ()), len(p._post_accumulate_grad_hooks or ()), sorted(vars(p))
    return kept


@pytest.mark.parametrize("steps", [0, 1, 3, 4, 11])
@pytest.mark.parametrize("where", ["nowhere", "body", "forward", "backward", "between"])
def test_after_the_block_the_model_and_the_optimizer_are_as_before(where: str, steps: int) -> None:
    model = mlp()
    optimizer = sgd(model)
    before = marks(model, optimizer)

    class Boom(RuntimeError):
        pass

    def boom(*_: Any) -> None:
        raise Boom

    def run() -> None:
        with hw.watch(model, optimizer, **ALWAYS, activations="recorded"):
            train(model, optimizer, steps)
            if where == "body":
                raise Boom
            if where == "forward":
                model(torch.ones(2, 5))  # RuntimeError: shapes
            if where == "backward":
                y = loss_of(model, 0)
                y.register_hook(boom)
                y.backward()
            if where == "between":
                loss_of(model, 0).backward()
                raise Boom

    if where == "nowhere":
        run()
    else:
        with pytest.raises(RuntimeError):
            run()
    assert marks(model, optimizer) == before
    train(model, optimizer, 1)


def test_training_is_bit_identical_with_and_without(tmp_path: Path) -> None:
    weights, randoms = [], []
    for enabled in (False, True):
        torch.manual_seed(5)
        model = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Linear(16, 3)
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        w = hw.watch(
            model, optimizer, run=tmp_path / str(enabled), activations="recorded", micro=True, enabled=enabled, **ALWAYS
        )
        with w:
            for i in range(60):
                x, y = batch(i)
                with torch.autocast("cpu", torch.bfloat16):
                    loss = F.cross_entropy(model(x), y)
                loss.backward()
                w.record(loss=loss)
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
                optimizer.zero_grad()
        weights.append(bits(model))
        randoms.append(torch.get_rng_state())
    assert weights[0] == weights[1]
    assert torch.equal(*randoms)


def answer(model: nn.Module, queue: Any) -> None:
    queue.put([tuple(p.shape) for p in model.parameters()])


class Attached:
    def __init__(self) -> None:
        self.model = mlp()
        self.optimizer = sgd(self.model, momentum=0.9)
        self.watch = hw.watch(self.model, self.optimizer, **ALWAYS, activations="recorded").attach()
        train(self.model, self.optimizer, 3)


@pytest.fixture
def attached() -> Any:
    it = Attached()
    yield it
    it.watch.detach()


def test_saving_and_loading_work_while_attached(attached: Attached) -> None:
    for thing in (attached.model, attached.optimizer, attached.model.state_dict(), attached.optimizer.state_dict()):
        buffer = io.BytesIO()
        torch.save(thing, buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=False)
    assert bits(pickle.loads(pickle.dumps(attached.model))) == bits(attached.model)


def test_a_copy_trains_on_its_own_and_adds_no_row(attached: Attached) -> None:
    twin = copy.deepcopy(attached.model)
    optimizer = sgd(twin)
    step = attached.watch.step
    train(twin, optimizer, 4)
    assert attached.watch.step == step
    assert not any(p._post_accumulate_grad_hooks for p in twin.parameters())


def test_what_is_saved_while_attached_can_be_loaded_where_headwater_is_not_installed(attached: Attached) -> None:
    buffer = io.BytesIO()
    torch.save(attached.model, buffer)
    assert b"headwater" not in buffer.getvalue()


@pytest.mark.slow
def test_the_model_can_be_sent_to_a_spawned_process_while_attached(attached: Attached) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=answer, args=(attached.model, queue))
    child.start()
    assert queue.get(timeout=120) == [tuple(p.shape) for p in attached.model.parameters()]
    child.join(60)
    assert child.exitcode == 0


def test_the_watch_itself_is_refused_or_copied_but_never_spoils_a_checkpoint(attached: Attached) -> None:
    torch.save({"watch": attached.watch.state_dict()}, io.BytesIO())


def test_attaching_and_detaching_twice_is_a_notice_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    model = mlp()
    optimizer = sgd(model)
    seen: list[Any] = []
    w = hw.watch(model, optimizer, on_record=seen.append, **ALWAYS)
    with caplog.at_level(logging.DEBUG):
        w.attach()
        w.attach()
    noticed = [r.getMessage() for r in caplog.records] + [e.message for e in w.events if e.kind == "notice"]
    assert any("already" in m or "twice" in m or "attached" in m for m in noticed), noticed
    train(model, optimizer, 2)
    w.detach()
    w.detach()
    assert [r.step for r in seen] == [0, 1]


def test_detaching_what_was_never_attached_does_nothing() -> None:
    model = mlp()
    hw.watch(model, sgd(model)).detach()


def test_the_same_watch_in_two_nested_blocks_records_each_step_once() -> None:
    model = mlp()
    optimizer = sgd(model)
    seen: list[Any] = []
    w = hw.watch(model, optimizer, on_record=seen.append, **ALWAYS)
    before = marks(model, optimizer)
    with w, w:
        train(model, optimizer, 3)
    assert [r.step for r in seen] == [0, 1, 2]
    assert marks(model, optimizer) == before


def test_two_watches_on_one_model_do_not_disturb_each_other(tmp_path: Path) -> None:
    model = mlp()
    optimizer = sgd(model)
    before = marks(model, optimizer)
    with hw.watch(model, optimizer, run=tmp_path / "a", **ALWAYS):
        with hw.watch(model, optimizer, run=tmp_path / "b", **ALWAYS):
            train(model, optimizer, 3)
        train(model, optimizer, [3, 4])
    a, b = hw.open_run(tmp_path / "a"), hw.open_run(tmp_path / "b")
    assert (a.steps, b.steps) == ((0, 1, 2, 3, 4), (0, 1, 2))
    for step in range(3):
        assert norms_at(a, step) == pytest.approx(norms_at(b, step))
    assert marks(model, optimizer) == before


def test_a_notebook_cell_that_is_run_three_times_works_each_time(tmp_path: Path) -> None:
    # The watch of the cell's earlier runs was never detached: their names are simply bound anew.
    lengths = []
    for _ in range(3):
        model = mlp()
        optimizer = sgd(model)
        w = hw.watch(model, optimizer, run=tmp_path / "cell", **ALWAYS).attach()
        train(model, optimizer, 4)
        w.detach()
        lengths.append(len(hw.open_run(tmp_path / "cell").steps))
    assert lengths == [4, 4, 4]


def test_a_cell_that_forgot_to_detach_is_told_to_do_so(tmp_path: Path) -> None:
    model = mlp()
    optimizer = sgd(model)
    w = hw.watch(model, optimizer, run=tmp_path / "cell", **ALWAYS).attach()
    train(model, optimizer, 4)
    model = mlp()
    optimizer = sgd(model)
    again = hw.watch(model, optimizer, run=tmp_path / "cell", **ALWAYS)
    with pytest.raises(hw.HeadwaterError, match="detach"):
        again.attach()
    w.detach()
    again.attach()
    train(model, optimizer, 3)
    again.detach()
    assert hw.open_run(tmp_path / "cell").steps == (0, 1, 2)


def test_a_second_writer_of_a_run_is_refused_and_training_can_go_on(tmp_path: Path) -> None:
    model = mlp()
    optimizer = sgd(model)
    before = marks(model, optimizer)
    with hw.watch(model, optimizer, run=tmp_path / "a", **ALWAYS):
        with pytest.raises(hw.HeadwaterError, match="a"):
            hw.watch(model, optimizer, run=tmp_path / "a", **ALWAYS).attach()
        train(model, optimizer, 3)
    assert hw.open_run(tmp_path / "a").steps == (0, 1, 2)
    assert marks(model, optimizer) == before


def test_the_model_dies_when_it_is_deleted_while_attached() -> None:
    model = mlp()
    optimizer = sgd(model)
    w = hw.watch(model, optimizer, **ALWAYS).attach()
    train(model, optimizer, 3)
    dead = weakref.ref(model)
    del model, optimizer
    gc.collect()
    assert dead() is None
    w.detach()


# ---- R16: filters -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ("0.*", None, {"0.weight", "0.bias"}),
        (None, re.compile(r"bias$"), {"0.weight", "2.weight", "4.weight"}),
        (lambda name, thing: name.startswith("2"), None, {"2.weight", "2.bias"}),
        (["0.*", "4.*"], "*.bias", {"0.weight", "4.weight"}),
        (None, [re.compile("^0"), "2.*"], {"4.weight", "4.bias"}),
    ],
)
def test_filters_take_globs_regular_expressions_and_callables(
    include: Any, exclude: Any, expected: set[str], tmp_path: Path
) -> None:
    model = mlp()
    optimizer = sgd(model)
    with hw.watch(model, optimizer, run=tmp_path / "a", include=include, exclude=exclude, **ALWAYS):
        train(model, optimizer, 3)
    assert set(norms_at(hw.open_run(tmp_path / "a"), 1)) == expected


def test_a_filter_takes_a_layer_type(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.LayerNorm(6), nn.Linear(6, 3))
    optimizer = sgd(model)
    with hw.watch(model, optimizer, run=tmp_path / "a", exclude=nn.LayerNorm, activations="recorded", **ALWAYS):
        train(model, optimizer, 3)
    run = hw.open_run(tmp_path / "a")
    assert not any(t.name.startswith("1") for t in run.tensors)
    assert set(norms_at(run, 1)) == {"0.weight", "0.bias", "2.weight", "2.bias"}


def test_what_is_excluded_gets_no_hook_at_all() -> None:
    model = mlp()
    optimizer = sgd(model)
    hooked = set()
    with hw.watch(model, optimizer, exclude=["0", "0.*"], activations="recorded", **ALWAYS):
        for i in range(4):
            optimizer.zero_grad()
            hooked |= {n for n, m in model.named_modules() if m._forward_hooks or m._forward_pre_hooks}
            loss_of(model, i).backward()
            optimizer.step()
        assert not model[0].weight._post_accumulate_grad_hooks
    assert "0" not in hooked
    assert "2" in hooked


def test_a_filter_that_leaves_nothing_is_an_error_that_says_so() -> None:
    model = mlp()
    optimizer = sgd(model)
    with pytest.raises(hw.HeadwaterError), hw.watch(model, optimizer, include="nothing.like.this", **ALWAYS):
        train(model, optimizer, 3)


# ---- R17: parameters that come later; several models --------------------------------------------------------------------


def test_a_layer_unfrozen_at_step_ten_has_rows_from_step_ten_and_an_event(tmp_path: Path) -> None:
    model = mlp()
    model[0].requires_grad_(False)
    optimizer = sgd(model)
    with hw.watch(model, optimizer, run=tmp_path / "a", **ALWAYS):
        train(model, optimizer, 10)
        model[0].requires_grad_(True)
        train(model, optimizer, range(10, 15))
        model[4].requires_grad_(False)
        train(model, optimizer, range(15, 18))
    run = hw.open_run(tmp_path / "a")
    assert [s for s, _ in run.series("0.weight", "gradient.rms")] == [10, 11, 12, 13, 14, 15, 16, 17]
    assert [(e.kind, e.step) for e in run.events if e.kind in ("frozen", "unfrozen")] == [
        ("unfrozen", 10),
        ("frozen", 15),
    ]
    (event,) = [e for e in run.events if e.kind == "unfrozen"]
    assert set(event.names) == {"0.weight", "0.bias"}


def test_a_parameter_group_added_later_is_recorded_from_then_on(tmp_path: Path) -> None:
    model = mlp()
    optimizer = torch.optim.SGD([*model[2].parameters(), *model[4].parameters()], lr=0.1)
    with hw.watch(model, optimizer, run=tmp_path / "a", **ALWAYS):
        train(model, optimizer, 3)
        optimizer.add_param_group({"params": list(model[0].parameters())})
        train(model, optimizer, range(3, 6))
    run = hw.open_run(tmp_path / "a")
    assert {3, 4, 5} <= {s for s, _ in run.series("0.weight", "gradient.rms")}
    assert {3, 4, 5} <= {s for s, v in run.series("0.weight", "update.update_ratio") if v > 0}


def gan_steps(
    g: nn.Module, d: nn.Module, og: torch.optim.Optimizer, od: torch.optim.Optimizer, steps: int
) -> list[Any]:
    seen = []
    for i in range(steps):
        real = torch.randn(6, 4, generator=torch.Generator().manual_seed(i))
        noise = torch.randn(6, 2, generator=torch.Generator().manual_seed(i + 50))
        od.zero_grad()
        (F.softplus(-d(real)).mean() + F.softplus(d(g(noise).detach())).mean()).backward()
        nd = {n: float(p.grad.norm()) for n, p in d.named_parameters() if p.grad is not None}
        od.step()
        og.zero_grad()
        F.softplus(-d(g(noise))).mean().backward()
        ng = {n: float(p.grad.norm()) for n, p in g.named_parameters() if p.grad is not None}
        og.step()
        seen.append((ng, nd))
    return seen


def test_a_gan_with_two_optimizers_has_both_in_their_own_namespaces(tmp_path: Path) -> None:
    g, d = mlp(2, 5, 4), mlp(4, 5, 1, seed=1)
    og, od = sgd(g), torch.optim.Adam(d.parameters())
    with hw.watch({"G": (g, og), "D": (d, od)}, run=tmp_path / "a", **ALWAYS):
        expected = gan_steps(g, d, og, od, 5)
    run = hw.open_run(tmp_path / "a")
    assert set(run.groups) == {"G", "D"}
    for step in range(5):
        got = norms_at(run, step)
        wanted = {f"G.{n}": v for n, v in expected[step][0].items()} | {
            f"D.{n}": v for n, v in expected[step][1].items()
        }
        assert got == pytest.approx(wanted, rel=1e-4)


def test_a_discriminator_that_steps_more_often_counts_its_own_steps(tmp_path: Path) -> None:
    g, d = mlp(2, 5, 4), mlp(4, 5, 1, seed=1)
    og, od = sgd(g), sgd(d)
    with hw.watch({"G": (g, og), "D": (d, od)}, run=tmp_path / "a", **ALWAYS):
        for i in range(6):
            od.zero_grad()
            d(torch.ones(3, 4)).square().mean().backward()
            od.step()
            if i % 3 == 2:
                og.zero_grad()
                d(g(torch.ones(3, 2))).mean().backward()
                og.step()
    run = hw.open_run(tmp_path / "a")
    assert [row.step for row in run.recorded_steps("D")] == [0, 1, 2, 3, 4, 5]
    assert [row.step for row in run.recorded_steps("G")] == [0, 1]
    assert {row.clip_coefficient for row in run.recorded_steps("G")} == {1.0}


def test_a_list_of_models_takes_a_list_of_optimizers(tmp_path: Path) -> None:
    g, d = mlp(2, 5, 4), mlp(4, 5, 1, seed=1)
    og, od = sgd(g), sgd(d)
    with hw.watch([g, d], [og, od], run=tmp_path / "a", **ALWAYS):
        gan_steps(g, d, og, od, 3)
    run = hw.open_run(tmp_path / "a")
    assert len(run.groups) == 2
    assert len(norms_at(run, 2)) == 8


# ---- R33: replicas and duplicate initialisation ----------------------------------------------------------------------------


def test_two_layers_that_start_bit_equal_are_pointed_out(tmp_path: Path) -> None:
    model = mlp(8, 8, 8, 8)
    with torch.no_grad():
        model[2].weight.copy_(model[0].weight)
    optimizer = sgd(model)
    w = hw.watch(model, optimizer, run=tmp_path / "a", **ALWAYS)
    with w:
        optimizer.zero_grad()
        model(torch.ones(2, 8)).square().mean().backward()
        optimizer.step()
    words = [(e.message, e.names) for e in w.events] + [(str(f), f.where) for f in w.findings]
    assert any({"0.weight", "2.weight"} <= set(names) for _, names in words), words


def test_biases_and_gains_that_start_equal_are_not_pointed_out() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4), nn.LayerNorm(4))
    for layer in (model[0], model[2]):
        nn.init.zeros_(layer.bias)
    optimizer = sgd(model)
    w = hw.watch(model, optimizer, **ALWAYS)
    with w:
        optimizer.zero_grad()
        model(torch.randn(2, 4)).square().mean().backward()
        optimizer.step()
    assert not any({"0.bias", "2.bias"} & set(e.names) or {"1.weight", "3.weight"} & set(e.names) for e in w.events), (
        w.events
    )


def test_seed_versions_and_device_are_in_the_file(tmp_path: Path) -> None:
    model = mlp()
    optimizer = sgd(model)
    with hw.watch(model, optimizer, run=tmp_path / "a", **ALWAYS):
        train(model, optimizer, 1)
    text = repr(dict(hw.open_run(tmp_path / "a").metadata))
    assert torch.__version__.split("+")[0] in text
    assert "seed" in text
    assert "cpu" in text


# ---- R38: the switch ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["environment", "argument"])
def test_switched_off_it_does_nothing_at_all(how: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if how == "environment":
        monkeypatch.setenv("HEADWATER_DISABLE", "1")
    model = mlp()
    optimizer = sgd(model)
    before = marks(model, optimizer)
    w = hw.watch(model, optimizer, run=tmp_path / "a", **ALWAYS, enabled=how == "environment")
    with w:
        assert marks(model, optimizer) == before
        train(model, optimizer, 3)
        w.record(loss=1.0)
    assert not (tmp_path / "a").exists()
    assert not w.findings
    assert not w.should_stop
    assert w.summary()
    w.load_state_dict(w.state_dict())


@pytest.mark.parametrize("value", ["0", "", "false", "no"])
def test_the_switch_set_to_no_leaves_it_on(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER_DISABLE", value)
    model = mlp()
    assert hw.watch(model, sgd(model)).enabled


# ---- arguments that make no sense, and models that are odd ------------------------------------------------------------------


def test_a_model_without_parameters_ends_in_an_error_that_says_that_nothing_was_seen() -> None:
    model = nn.ReLU()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    w = hw.watch(model, optimizer, **ALWAYS).attach()
    optimizer.step()
    with pytest.raises(NothingObservedError, match="parameter"):
        w.detach()


def test_the_optimizer_of_another_model_is_refused_or_pointed_out() -> None:
    model, other = mlp(), mlp(seed=1)
    optimizer = sgd(other)
    w = hw.watch(model, optimizer, **ALWAYS)
    with w:
        for i in range(2):
            loss_of(model, i).backward()
            loss_of(other, i).backward()
            optimizer.step()
    words = [(e.message, e.names) for e in w.events]
    assert any("optimizer" in m and "0.weight" in names for m, names in words), words


@pytest.mark.parametrize(
    "arguments",
    [
        {"every": 0}, {"every": -1}, {"start": -1}, {"max_overhead": -0.1}, {"activations": "sometimes"}, {"statistics": "some"},
        {"updates": "guess"}, {"stop": 0, "start": 5},
    ],
)  # fmt: skip
def test_an_argument_without_a_meaning_is_refused_by_name(arguments: dict[str, Any]) -> None:
    model = mlp()
    optimizer = sgd(model)
    with pytest.raises(hw.HeadwaterError, match=next(iter(arguments))):
        hw.watch(model, optimizer, **arguments).attach()


@pytest.mark.parametrize("thing", [None, 3, "model", [], {}])
def test_something_that_is_no_model_is_refused(thing: Any) -> None:
    model = mlp()
    optimizer = sgd(model)
    with pytest.raises((hw.HeadwaterError, TypeError)):
        hw.watch(thing, None if thing == {} else [] if thing == [] else optimizer).attach()


def test_a_model_without_its_optimizer_is_refused_with_advice() -> None:
    with pytest.raises((hw.HeadwaterError, TypeError), match="optimizer"):
        hw.watch(mlp()).attach()


HOSTILE = ["<script>alert(1)</script>", "naïve ☃ 層", "a'b\"c;--", "%s{0}", "x" * 300, " ", "line\nbreak", "0 OR 1=1"]


def test_hostile_and_unicode_layer_names_survive_the_file_and_are_text_in_the_page(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from headwater.cli import main

    model = nn.Sequential()
    for name in HOSTILE:
        model.add_module(name, nn.Linear(8, 8))
    optimizer = sgd(model)
    with hw.watch(model, optimizer, run=tmp_path / "a", activations="recorded", **ALWAYS):
        train(model, optimizer, 3)
    run = hw.open_run(tmp_path / "a")
    for name in HOSTILE:
        assert len(run.series(f"{name}.weight", "gradient.rms")) == 3
        assert len(run.series(name, "activation.rms")) == 3
    run.to_csv(tmp_path / "a.csv")
    page = tmp_path / "page.html"
    done = CliRunner().invoke(main, ["report", str(tmp_path / "a"), "--html", str(page)])
    assert done.exit_code in (0, 1), done.output
    text = page.read_text(encoding="utf-8")
    assert "<script>alert(1)</script>" not in text
    assert "alert(1)" in text


@pytest.mark.parametrize("name", ["with space", "ünï☃", "a.b.c", "deep/er/still", "-dash", "quote'"])
def test_a_run_can_be_called_nearly_anything(name: str, tmp_path: Path) -> None:
    model = mlp()
    optimizer = sgd(model)
    with hw.watch(model, optimizer, run=str(tmp_path / name), **ALWAYS):
        train(model, optimizer, 2)
    assert hw.open_run(tmp_path / name).steps == (0, 1)
    assert hw.open_run(tmp_path / name / "run.sqlite").steps == (0, 1)


def test_a_run_path_that_is_a_file_is_refused_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    model = mlp()
    optimizer = sgd(model)
    before = marks(model, optimizer)
    with pytest.raises(hw.HeadwaterError):
        hw.watch(model, optimizer, run=tmp_path / "a", **ALWAYS).attach()
    assert (tmp_path / "a").read_text() == "mine"
    assert marks(model, optimizer) == before


def test_a_relative_run_path_stays_where_it_was_when_the_program_changes_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    model = mlp()
    optimizer = sgd(model)
    with hw.watch(model, optimizer, run="runs/a", **ALWAYS):
        train(model, optimizer, 1)
        monkeypatch.chdir(tmp_path / "elsewhere")
        train(model, optimizer, [1, 2])
    assert hw.open_run(tmp_path / "runs" / "a").steps == (0, 1, 2)


def test_a_model_that_moves_to_another_dtype_while_attached_is_followed(tmp_path: Path) -> None:
    model = mlp()
    optimizer = sgd(model)
    with hw.watch(model, optimizer, run=tmp_path / "a", **ALWAYS):
        train(model, optimizer, 2)
        model.double()
        for i in range(2, 4):
            x, y = batch(i)
            optimizer.zero_grad()
            F.cross_entropy(model(x.double()), y).backward()
            optimizer.step()
    assert all(math.isfinite(v) for v in norms_at(hw.open_run(tmp_path / "a"), 3).values())
    assert hw.open_run(tmp_path / "a").steps == (0, 1, 2, 3)


def test_a_sink_or_callback_that_fails_does_not_end_the_training() -> None:
    class Broken:
        def write(self, scalars: Any, step: int) -> None:
            raise OSError("no network")

        def close(self) -> None:
            raise OSError("no network")

    model = mlp()
    optimizer = sgd(model)
    w = hw.watch(model, optimizer, sinks=[Broken()], **ALWAYS)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with w:
            train(model, optimizer, 5)
    assert w.step == 5
