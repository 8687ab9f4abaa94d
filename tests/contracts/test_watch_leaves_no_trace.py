"""A watched run trains as an unwatched one, bit for bit, and nothing of the watch is left when it ends."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import models
from torch import Tensor, nn
from torch.nn import functional as F

import headwater as hw
from headwater.errors import TrainingStopped
from headwater.records import Finding, Severity
from headwater.records.step import StepRecord

Optimizers = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-3),
}
Models: dict[str, Callable[[], tuple[nn.Module, Callable[[int], Tensor], Callable[[int], Tensor]]]] = {
    "MLP": lambda: (models.mlp(8, 16, 16, 3), lambda i: torch.randn(4, 8), lambda i: torch.randint(0, 3, (4,))),
    "ResNet": lambda: (
        models.ResNet(4, 1), lambda i: torch.randn(4, 3, 6, 6), lambda i: torch.randint(0, 5, (4,)),
    ),
    "transformer": lambda: (
        models.Transformer(1, 8), lambda i: torch.randint(0, 20, (2, 5)), lambda i: torch.randint(0, 20, (10,)),
    ),
}  # fmt: skip


def bits(model: nn.Module) -> list[bytes]:
    return [t.detach().contiguous().view(torch.uint8).numpy().tobytes() for t in model.state_dict().values() if t.dim()]


def trained(
    model_name: str, optimizer_name: str, amp: bool, watched: bool, tmp_path: Path
) -> tuple[list[bytes], Tensor]:
    torch.manual_seed(0)
    model, inputs, targets = Models[model_name]()
    optimizer = Optimizers[optimizer_name](model.parameters())
    options: dict[str, Any] = {"every": 3, "activations": "recorded", "max_overhead": None, "micro": True}
    with hw.watch(model, optimizer, run=tmp_path / "run", enabled=watched, **options) as watch:
        for i in range(200):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
                loss = F.cross_entropy(model(inputs(i)).flatten(0, -2), targets(i))
            loss.backward()
            if i % 2:
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            watch.record(loss=loss)
    return bits(model), torch.get_rng_state()


@pytest.mark.parametrize("amp", [False, True], ids=["float32", "bfloat16 autocast"])
@pytest.mark.parametrize("optimizer", Optimizers)
@pytest.mark.parametrize("model", Models)
def test_weights_and_random_state_are_bit_identical_after_200_steps(
    model: str, optimizer: str, amp: bool, tmp_path: Path
) -> None:
    bare, watched = (trained(model, optimizer, amp, on, tmp_path) for on in (False, True))
    assert watched[0] == bare[0]
    assert torch.equal(watched[1], bare[1])


# -------------------------------------------------------------------- what is left


def traces(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    found: dict[str, Any] = {
        "scaler": torch.amp.GradScaler.step,
        "optimizer": (
            sorted(vars(optimizer)),
            len(optimizer._optimizer_step_pre_hooks),
            len(optimizer._optimizer_step_post_hooks),
        ),
    }
    for name, module in model.named_modules():
        hooks = {k: len(v) for k, v in vars(module).items() if "hook" in k and v is not None}
        found[name] = (hooks, sorted(vars(module)))
    for name, parameter in model.named_parameters():
        found["parameter " + name] = {
            k: len(getattr(parameter, k) or ()) for k in ("_backward_hooks", "_post_accumulate_grad_hooks")
        }
    return found


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(4, 8)).square().mean().backward()
    optimizer.step()


class Boom(RuntimeError):
    pass


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("where", ["nowhere", "between", "forward", "backward", "step"])
def test_nothing_is_left_however_the_block_ends(where: str, steps: int) -> None:
    model = models.mlp(8, 16, 3)
    optimizer = torch.optim.Adam(model.parameters())
    before = traces(model, optimizer)

    def run() -> None:
        with hw.watch(model, optimizer, every=2, activations="recorded", micro=True, alerts=()):
            for _ in range(steps):
                step(model, optimizer)
            handle = None
            if where == "between":
                raise Boom
            if where == "forward":
                handle = model[1].register_forward_hook(lambda *a: _raise())
            if where == "backward":
                handle = model[2].register_forward_hook(lambda m, a, out: _Explodes.apply(out))
            if where == "step":
                handle = optimizer.register_step_pre_hook(lambda *a: _raise())
            try:
                step(model, optimizer)
            finally:
                if handle is not None:
                    handle.remove()

    if where == "nowhere":
        run()
    else:
        with pytest.raises(Boom):
            run()
    assert traces(model, optimizer) == before


def _raise() -> None:
    raise Boom


class _Explodes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise Boom


def test_attaching_twice_is_a_notice_and_no_second_row(caplog: pytest.LogCaptureFixture) -> None:
    model = models.mlp(8, 16, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    records: list[StepRecord] = []
    watch = hw.watch(model, optimizer, alerts=(), on_record=records.append).attach()
    watch.attach()
    with watch:
        step(model, optimizer)
    watch.detach()
    assert "attached already" in caplog.text
    assert [r.step for r in records] == [0]


def test_a_watch_that_is_switched_off_does_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = models.mlp(8, 16, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = traces(model, optimizer)
    monkeypatch.setenv("HEADWATER_DISABLE", "1")
    with hw.watch(model, optimizer, run=tmp_path / "run") as watch:
        assert traces(model, optimizer) == before
        step(model, optimizer)
    assert watch.findings == ()
    assert not (tmp_path / "run").exists()


# -------------------------------------------------------------------- copies made while attached


def _in_child(model: nn.Module, answers: Any) -> None:
    model(torch.ones(2, 8)).sum().backward()
    answers.put(len(model[0]._forward_hooks))


@pytest.fixture
def attached() -> Any:
    model = models.mlp(8, 16, 3)
    optimizer = torch.optim.Adam(model.parameters())
    records: list[StepRecord] = []
    options: dict[str, Any] = {"every": 1, "activations": "recorded", "micro": True, "alerts": ()}
    with hw.watch(model, optimizer, on_record=records.append, **options) as watch:
        step(model, optimizer)
        yield model, optimizer, records, watch


def test_a_copy_made_while_attached_is_not_watched(attached: Any) -> None:
    model, optimizer, records, watch = attached
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        step(copied, torch.optim.Adam(copied.parameters()))
    copy.deepcopy(optimizer)
    step(model, optimizer)
    watch.detach()
    assert [r.step for r in records if r.micro is None] == [0, 1]
    assert [(r.step, r.micro) for r in records if r.micro is not None] == [(0, 0), (1, 0)]


def test_torch_save_works_while_attached(attached: Any) -> None:
    model, optimizer, _, _ = attached
    buffer = io.BytesIO()
    torch.save({"model": model, "optimizer": optimizer, "state": model.state_dict()}, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)["model"]
    assert bits(loaded) == bits(model)
    loaded(torch.ones(2, 8)).sum().backward()


@pytest.mark.slow
def test_the_model_can_be_sent_to_a_spawned_process_while_attached(attached: Any) -> None:
    model = attached[0]
    context = torch.multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    process = context.Process(target=_in_child, args=(model, answers))
    process.start()
    process.join(60)
    assert process.exitcode == 0


def test_the_model_dies_when_it_is_deleted_while_attached() -> None:
    model = models.mlp(8, 16, 3)
    optimizer = torch.optim.Adam(model.parameters())
    watch = hw.watch(model, optimizer, every=1, activations="recorded", alerts=()).attach()
    step(model, optimizer)
    weak, storage = weakref.ref(model), weakref.ref(model[0].weight)
    del model, optimizer
    gc.collect()
    assert weak() is None
    assert storage() is None
    watch.detach()


# -------------------------------------------------------------------- stopping


class AtStep:
    """An alert that fires at one step."""

    code = "HW999"
    patience = 1

    def __init__(self, at: int, action: Any) -> None:
        self.at, self.action = at, action

    def __call__(self, moment: Any, memory: Any) -> list[Finding]:
        if moment.record.step != self.at:
            return []
        return [
            Finding(code="HW999", defect="planted", severity=Severity.CRITICAL, cause="It is time.", advice="None.")
        ]


def test_stop_ends_the_block_quietly_before_the_optimizer_applies_the_step() -> None:
    model = models.mlp(8, 16, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = traces(model, optimizer)
    states = []
    with hw.watch(model, optimizer, every=1, alerts=[AtStep(2, "stop")]) as watch:
        for _ in range(5):
            states.append(bits(model))
            step(model, optimizer)
    assert len(states) == 3
    assert bits(model) == states[2]
    assert watch.should_stop
    assert [(f.code, f.step) for f in watch.findings] == [("HW999", 2)]
    assert traces(model, optimizer) == before


def test_raise_comes_out_of_the_optimizer_step_with_the_finding() -> None:
    model = models.mlp(8, 16, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def run() -> None:
        with hw.watch(model, optimizer, every=1, alerts=[AtStep(1, "raise")]):
            for _ in range(5):
                step(model, optimizer)

    with pytest.raises(hw.HeadwaterError, match="planted") as caught:
        run()
    assert not isinstance(caught.value, TrainingStopped)
    assert [f.code for f in caught.value.findings] == ["HW999"]  # type: ignore[attr-defined]


def test_a_callback_gets_the_finding_once() -> None:
    model = models.mlp(8, 16, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen: list[Finding] = []
    with hw.watch(model, optimizer, every=1, alerts=[AtStep(1, seen.append)]):
        for _ in range(5):
            step(model, optimizer)
    assert [f.step for f in seen] == [1]


def test_a_fault_of_the_watch_does_not_end_the_training(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = models.mlp(8, 16, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = traces(model, optimizer)

    def broken(*args: Any) -> Tensor:
        raise RuntimeError("a planted fault")

    monkeypatch.setattr("headwater.capture.training.pair_row.read_table", broken)
    with hw.watch(model, optimizer, every=1, alerts=()):
        for _ in range(3):
            step(model, optimizer)
        assert traces(model, optimizer) == before
    assert "stopped watching after a fault of its own" in caplog.text
    assert "a planted fault" in caplog.text
