"""One training, five front ends: the same rows; each framework's own way to stop, to resume and to be left alone."""

from __future__ import annotations

import importlib
import math
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.integration import front_ends
from torch import nn

import headwater as hw
from headwater.records import Evidence, Finding, Severity, Verdict

with warnings.catch_warnings():
    # Both libraries import parts of torch (torch.jit, the optimizers of torch.distributed) that torch calls old.
    warnings.simplefilter("ignore", DeprecationWarning)
    importlib.import_module("ignite.engine")
    importlib.import_module("lightning.pytorch")
    accelerate, ignite, lightning, transformers = (
        importlib.import_module(f"headwater.integrations.{name}")
        for name in ("accelerate", "ignite", "lightning", "transformers")
    )

pytestmark = [
    pytest.mark.integration,
    # Lightning's pytree helper asks torch's for a class that torch renames.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    # Lightning advises on the number of processes that load data and on logging every 50 steps.
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*"),
]

Train = Callable[..., nn.Module]


def by_hand(run: Path | None, folder: Path, every: int = 1, **options: Any) -> nn.Module:
    kind = {k: options.pop(k) for k in ("accumulate", "clip") if k in options}
    return front_ends.raw(lambda m, o: hw.watch(m, o, run, every=every, **options), **kind)


def by_transformers(run: Path | None, folder: Path, every: int = 1, **options: Any) -> nn.Module:
    kind = {k: options.pop(k) for k in ("accumulate", "clip") if k in options}
    monitor = transformers.GradientMonitor(run, every=every, **options)
    model: nn.Module = front_ends.with_transformers([monitor], folder, **kind).model
    return model


def by_accelerate(run: Path | None, folder: Path, every: int = 1, **options: Any) -> nn.Module:
    kind = {k: options.pop(k) for k in ("accumulate", "clip") if k in options}
    return front_ends.with_accelerate(lambda *args: accelerate.watch(*args, run, every=every, **options), **kind)


def by_lightning(run: Path | None, folder: Path, every: int = 1, **options: Any) -> nn.Module:
    kind = {k: options.pop(k) for k in ("accumulate", "clip") if k in options}
    model: nn.Module = front_ends.with_lightning(
        [lightning.GradientMonitor(run, every=every, **options)], folder, **kind
    )
    return model


def by_ignite(run: Path | None, folder: Path, every: int = 1, **options: Any) -> nn.Module:
    kind = {k: options.pop(k) for k in ("accumulate", "clip") if k in options}
    return front_ends.with_ignite(lambda *args: ignite.attach(*args, run, every=every, **options), **kind)


FRONT_ENDS: dict[str, Train] = {
    "transformers": by_transformers,
    "accelerate": by_accelerate,
    "lightning": by_lightning,
    "ignite": by_ignite,
}
every_front_end = pytest.mark.parametrize("front_end", FRONT_ENDS)


# ---------------------------------------------------------------- the same rows


def numbers(run: Path) -> dict[tuple[Any, ...], float | None]:
    """Everything a run holds that does not come from a clock: (step, what, of what) to number.

    Two things are left out because the trainings differ in them. The model as a whole returns a loss as well under
    transformers, and is not called under Lightning. Where nothing is to be clipped, the Trainer still multiplies every
    gradient by 1, so its gradients after "clipping" are rows of their own.
    """
    source = hw.open_run(run)
    found: dict[tuple[Any, ...], float | None] = {}
    for row in source.recorded_steps():
        for name in ("skipped", "loss", "learning_rate", "loss_scale", "clip_coefficient", "activations"):
            found[row.step, name] = getattr(row, name)
    statistics = {
        "parameter": [
            ("gradient.rms", "pre_clip"), ("gradient.rms", "post_clip"), ("gradient.zero_fraction", None),
            ("value.rms", None), ("update.update_ratio", None),
        ],
        "layer": [("activation.rms", None), ("output_gradient.rms", None)],
    }  # fmt: skip
    clipped = {row.step for row in source.recorded_steps() if row.clip_coefficient != 1.0}
    for tensor in source.tensors:
        if tensor.name == "(model)":
            continue
        for statistic, phase in statistics[tensor.kind]:
            for step, value in source.series(tensor.name, statistic, phase=phase):  # type: ignore[arg-type]
                if phase != "post_clip" or step in clipped:
                    found[step, statistic, phase, tensor.kind, tensor.name] = value
    return found


@pytest.mark.parametrize("kind", [{}, {"accumulate": 2, "clip": 0.1}], ids=["plain", "accumulated-and-clipped"])
@every_front_end
def test_every_front_end_gives_the_rows_of_a_loop_by_hand(front_end: str, kind: dict[str, Any], tmp_path: Path) -> None:
    mine, theirs = tmp_path / "by_hand", tmp_path / front_end
    expected = by_hand(mine, tmp_path, **kind).state_dict()
    trained = FRONT_ENDS[front_end](theirs, tmp_path, **kind).state_dict()
    assert all(torch.equal(expected[name], trained[name]) for name in expected)  # the same steps were made
    wanted, found = numbers(mine), numbers(theirs)
    assert found.keys() == wanted.keys()
    assert {key: found[key] for key in found} == {
        key: pytest.approx(value, rel=1e-6) if isinstance(value, float) else value for key, value in wanted.items()
    }
    steps = 12 // kind.get("accumulate", 1)
    assert [key[0] for key in wanted if key[1] == "loss"] == list(range(steps))
    assert all(value is not None for key, value in wanted.items() if key[1] == "loss")
    clipped = [value for key, value in wanted.items() if key[1] == "clip_coefficient"]
    assert all(value is not None and (value < 1.0) == ("clip" in kind) for value in clipped)


@every_front_end
def test_recording_every_fifth_step_tells_each_its_own_loss(front_end: str, tmp_path: Path) -> None:
    by_hand(tmp_path / "all", tmp_path)
    FRONT_ENDS[front_end](tmp_path / "some", tmp_path, every=5)
    wanted, found = (
        {row.step: row.loss for row in hw.open_run(tmp_path / name).recorded_steps()} for name in ("all", "some")
    )
    assert set(found) >= {0, 1, 2, 4, 5, 8, 10}
    assert found == {step: pytest.approx(wanted[step], rel=1e-6) for step in found}


# ---------------------------------------------------------------- switched off, stopped, options, residue


@every_front_end
def test_headwater_disable_turns_a_front_end_off(
    front_end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADWATER_DISABLE", "1")
    model = FRONT_ENDS[front_end](tmp_path / "run", tmp_path)
    assert not (tmp_path / "run").exists()
    assert not residue(model)


def residue(model: nn.Module) -> list[str]:
    """What watching could have left on a model."""
    return [
        f"{name} {kind}"
        for name, module in model.named_modules()
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
        if getattr(module, kind)
    ] + [name for name, p in model.named_parameters() if p._backward_hooks or p._post_accumulate_grad_hooks]


@every_front_end
def test_nothing_is_left_on_the_model(front_end: str, tmp_path: Path) -> None:
    assert residue(FRONT_ENDS[front_end](tmp_path / "run", tmp_path)) == []


class AtStepThree:
    """An alert that asks to stop at step 3."""

    code = "HW999"
    action = "stop"
    patience = 1

    def __call__(self, moment: Any, memory: dict[str, Any]) -> Iterable[Finding]:
        if moment.record.step >= 3:
            yield Finding(
                code=self.code, defect="test", verdict=Verdict.VANISHING, severity=Severity.CRITICAL,
                where=("first.weight",), evidence=(Evidence("step", float(moment.record.step)),), cause="asked to",
                advice="none", step=moment.record.step,
            )  # fmt: skip


@every_front_end
def test_an_alert_that_stops_ends_the_training_without_an_error(front_end: str, tmp_path: Path) -> None:
    FRONT_ENDS[front_end](tmp_path / "run", tmp_path, alerts=[AtStepThree()])
    run = hw.open_run(tmp_path / "run")
    assert max(run.steps) in (3, 4)
    assert [finding.code for finding in run.findings][:1] == ["HW999"]


@every_front_end
def test_options_of_watch_are_passed_through(front_end: str, tmp_path: Path) -> None:
    FRONT_ENDS[front_end](tmp_path / "run", tmp_path, include="last*", activations=None)
    parameters = {t.name for t in hw.open_run(tmp_path / "run").tensors if t.kind == "parameter"}
    assert parameters == {"last.weight", "last.bias"}


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="evry"):
        front_ends.with_lightning([lightning.GradientMonitor(None, evry=3)], Path("unused"))


# ---------------------------------------------------------------- Lightning


def test_lightning_manual_optimization_gives_a_group_per_optimizer(tmp_path: Path) -> None:
    import lightning.pytorch as pl

    class Adversaries(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.generator = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
            self.discriminator = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))

        def training_step(self, batch: Any, _index: int) -> None:
            x, _ = batch
            for_generator, for_discriminator = self.optimizers()
            with for_generator.toggle_model():
                loss = F.softplus(-self.discriminator(self.generator(x))).mean()
                for_generator.zero_grad()
                self.manual_backward(loss)
                for_generator.step()
            with for_discriminator.toggle_model():
                fake = self.discriminator(self.generator(x).detach())
                for_discriminator.zero_grad()
                self.manual_backward(10.0 + F.softplus(fake).mean())
                for_discriminator.step()

        def configure_optimizers(self) -> list[torch.optim.Optimizer]:
            return [
                torch.optim.Adam(self.generator.parameters()),
                torch.optim.SGD(self.discriminator.parameters(), 0.1),
            ]

    trainer = front_ends.lightning_trainer([lightning.GradientMonitor(tmp_path / "run", every=1)], tmp_path)
    trainer.fit(Adversaries(), front_ends.loader())
    run = hw.open_run(tmp_path / "run")
    assert set(run.groups) == {"generator", "discriminator"}
    for group, is_its_loss in (("generator", lambda x: x < 10.0), ("discriminator", lambda x: x > 10.0)):
        rows = run.recorded_steps(group)
        assert [row.step for row in rows] == list(range(12))
        assert all(row.loss is not None and is_its_loss(row.loss) for row in rows)


def test_lightning_checkpoints_carry_the_state(tmp_path: Path) -> None:
    module = front_ends.lightning_module()
    trainer = front_ends.lightning_trainer(
        [lightning.GradientMonitor(tmp_path / "run", every=1)], tmp_path, max_epochs=1
    )
    trainer.fit(module, front_ends.loader())
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed = front_ends.lightning_trainer([lightning.GradientMonitor(tmp_path / "run", every=1)], tmp_path)
    resumed.fit(front_ends.lightning_module(), front_ends.loader(), ckpt_path=tmp_path / "half.ckpt")
    by_hand(tmp_path / "whole", tmp_path)
    assert hw.open_run(tmp_path / "run").steps == tuple(range(12))
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "whole"), rel=1e-6)


def losses(run: Path) -> list[float]:
    return [math.nan if row.loss is None else row.loss for row in hw.open_run(run).recorded_steps()]


def test_lightning_gives_the_loss_without_its_scalers_factor(tmp_path: Path) -> None:
    from lightning.pytorch.plugins import MixedPrecision

    plugin = MixedPrecision("16-mixed", device="cpu", scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))
    front_ends.with_lightning([lightning.GradientMonitor(tmp_path / "run", every=1)], tmp_path, plugins=[plugin])
    rows = hw.open_run(tmp_path / "run").recorded_steps()
    assert [row.loss_scale for row in rows] == [1024.0] * 12
    by_hand(tmp_path / "by_hand", tmp_path)
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "by_hand"), rel=0.05)  # half precision


def test_a_training_that_raises_lets_the_lightning_module_go(tmp_path: Path) -> None:
    module = front_ends.lightning_module()
    module.on_train_batch_end = lambda *_: 1 / 0
    trainer = front_ends.lightning_trainer([lightning.GradientMonitor(tmp_path / "run")], tmp_path)
    with pytest.raises(ZeroDivisionError):
        trainer.fit(module, front_ends.loader())
    assert residue(module) == []


# ---------------------------------------------------------------- transformers


def test_a_transformers_checkpoint_carries_the_state(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    by_hand(whole, tmp_path)
    first = front_ends.transformers_trainer(
        [transformers.GradientMonitor(tmp_path / "run", every=1)], tmp_path / "out", save_strategy="steps", save_steps=6,
        max_steps=6,
    )  # fmt: skip
    first.train()
    assert (tmp_path / "out" / "checkpoint-6" / transformers.STATE_FILE).is_file()
    second = front_ends.transformers_trainer(
        [transformers.GradientMonitor(tmp_path / "run", every=1)], tmp_path / "out", save_strategy="no"
    )
    second.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-6"))
    assert hw.open_run(tmp_path / "run").steps == tuple(range(12))
    assert losses(tmp_path / "run") == pytest.approx(losses(whole), rel=1e-6)


# ---------------------------------------------------------------- accelerate, ignite


def test_accelerate_is_left_as_it_was(tmp_path: Path) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = front_ends.Net()
    optimizer = front_ends.make_optimizer(model)
    before = dict(vars(accelerator))
    with accelerate.watch(accelerator, *accelerator.prepare(model, optimizer), tmp_path / "run"):
        assert "backward" in vars(accelerator)
    assert "backward" not in vars(accelerator)
    assert vars(accelerator).keys() == before.keys()


def test_an_ignite_engine_that_raises_still_raises(tmp_path: Path) -> None:
    from ignite.engine import Engine

    def fail(engine: Engine, batch: Any) -> None:
        raise ZeroDivisionError

    engine, model = Engine(fail), front_ends.Net()
    with (
        pytest.raises(ZeroDivisionError),
        ignite.attach(engine, model, front_ends.make_optimizer(model), tmp_path / "run"),
    ):
        engine.run(front_ends.loader())
    assert residue(model) == []


def test_the_loss_can_be_picked_out_of_an_ignite_engines_output(tmp_path: Path) -> None:
    from ignite.engine import Engine

    model = front_ends.Net()
    optimizer = front_ends.make_optimizer(model)

    def update(engine: Engine, batch: Any) -> dict[str, float]:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        return {"loss": loss.item(), "other": 1.0}

    engine = Engine(update)
    with ignite.attach(engine, model, optimizer, tmp_path / "run", every=1, loss=lambda output: output["loss"]):
        engine.run(front_ends.loader(), max_epochs=front_ends.EPOCHS)
    by_hand(tmp_path / "by_hand", tmp_path)
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "by_hand"), rel=1e-6)


# ---------------------------------------------------------------- missing libraries


@pytest.mark.parametrize(
    ("library", "statement", "package"),
    [
        ("transformers", "import headwater.integrations.transformers", "transformers"),
        ("lightning", "import headwater.integrations.lightning", "lightning"),
        ("ignite", "from headwater.integrations.ignite import attach; attach(None, None, None)", "pytorch-ignite"),
    ],
)
def test_a_missing_framework_is_named_with_the_command_that_installs_it(
    library: str, statement: str, package: str
) -> None:
    program = (
        f"import sys; sys.modules[{library!r}] = sys.modules['pytorch_lightning'] = None\n"
        f"from headwater.errors import HeadwaterError\n"
        f"try:\n    {statement}\nexcept HeadwaterError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert f"pip install {package}" in done.stdout
