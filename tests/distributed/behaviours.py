"""What the ranks do in the tests of how they get on with each other: two processes, models of a few numbers."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import torch
from tests.distributed.scenarios import net, share, train
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.utils._python_dispatch import TorchDispatchMode

import headwater as hw
from headwater.capture.training import ranks, schedule
from headwater.detectors.over_time.moment import Moment
from headwater.detectors.over_time.protocol import Memory
from headwater.errors import HeadwaterError, InputError
from headwater.records import Finding, Severity
from headwater.records.step import StepRecord


@dataclass
class AtStep:
    """An alert that fires at one step, whatever happens; only rank 0 is asked."""

    step: int
    action: Any
    code: ClassVar[str] = "HW999"
    patience: int = 1

    def __call__(self, moment: Moment, memory: Memory) -> Iterable[Finding]:
        if moment.record.step == self.step:
            yield Finding(
                code=self.code, defect="made up", severity=Severity.CRITICAL, cause="It is time.", advice="None.",
                step=moment.record.step,
            )  # fmt: skip


@dataclass
class AfterStep(AtStep):
    """The same, of what a step did: it is asked when the step has been taken."""

    needs_update: ClassVar[bool] = True


def little(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def steps(model: nn.Module, number: int, before: Any = None, **options: Any) -> tuple[list[StepRecord], Any, int]:
    """Train without any communication of the model's own: records, watch, steps taken."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen: list[StepRecord] = []
    done = 0
    watch = hw.watch(
        model, optimizer, **{"every": 1, "max_overhead": None, "alerts": (), "on_record": seen.append, **options}
    )
    with watch:
        for step in range(number):
            optimizer.zero_grad()
            loss = model(torch.ones(2, 3)).square().mean()
            if before is not None:
                loss = before(step, loss)
            loss.backward()
            optimizer.step()
            done += 1
    return seen, watch, done


def said(watch: Any, kind: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(e.message, e.names) for e in watch.events if e.kind == kind]


# -------------------------------------------------------------------- attaching


def one_rank_only(rank: int, world: int) -> Any:
    outcome: Any = None
    if rank == 0:
        ranks.HANDSHAKE_SECONDS = 1.0
        model = little()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        start = time.monotonic()
        try:
            hw.watch(model, optimizer).attach()
        except InputError as error:
            outcome = str(error), time.monotonic() - start, [len(m._forward_hooks) for m in model.modules()]
        ranks.HANDSHAKE_SECONDS = 60.0
    distributed.barrier()
    return outcome


def alone_on_purpose(rank: int, world: int) -> Any:
    found = None
    if rank == 0:
        found = [r.step for r in steps(little(), 3, distributed=False)[0]]
    sharded = little()
    fully_shard(sharded)
    try:
        steps(sharded, 1, distributed=False)
    except InputError as error:
        return found, str(error)
    return found, None


def rank_0_cannot_write(rank: int, world: int) -> Any:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a file"
        path.write_text("not a folder")
        try:
            steps(little(), 1, run=path)
        except HeadwaterError as error:
            return type(error).__name__, str(error)
    return None


def copies_that_differ(rank: int, world: int) -> Any:
    model = little()
    if rank == 1:
        with torch.no_grad():
            model[2].weight[0, 1] += 1e-3
    _, watch, _ = steps(model, 1)
    return said(watch, "ranks_differ")


def equal_layers_and_shards(rank: int, world: int) -> Any:
    torch.manual_seed(0)
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].load_state_dict(layer.state_dict())
    with torch.no_grad():  # the two halves of the rows: one shard each
        model[2].weight[2:] = model[2].weight[:2]
    fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with hw.watch(model, optimizer, alerts=()) as watch:
        model(torch.ones(2, 4)).square().mean().backward()
        optimizer.step()
    return said(watch, "equal_weights")


# -------------------------------------------------------------------- recording


def gradient_on_one_rank_only(rank: int, world: int) -> Any:
    """Copies without DDP: rank 0 does not use the last bias."""
    model = little()

    def detached(step: int, loss: Tensor) -> Tensor:
        return loss if rank == 1 else nn.functional.linear(
            model[:2](torch.ones(2, 3)), model[2].weight, model[2].bias.detach()
        ).square().mean()  # fmt: skip

    seen, watch, _ = steps(model, 2, before=detached)
    block = seen[0].block("gradient")
    assert block is not None
    rows = {t.name: s for t, s in block.statistics()}
    with torch.no_grad():
        expected = float(model[2].bias.grad) if model[2].bias.grad is not None else None
    return sorted(rows), dict(seen[0].missing), said(watch, "notice"), expected, [r.step for r in seen]


def different_models(rank: int, world: int) -> Any:
    """Stages of a pipeline: no parameter is on both ranks."""
    stage = nn.Sequential()
    stage.add_module("ab"[rank], nn.Linear(3, 1))
    seen, watch, _ = steps(stage, 2)
    block = seen[0].block("gradient")
    assert block is not None
    return [t.name for t in block.tensors], dict(seen[0].missing), said(watch, "gap"), len(seen)


def not_finite_on_one_rank(rank: int, world: int) -> Any:
    """Stages again: the gradients of rank 1 become NaN in the second step."""
    stage = nn.Sequential()
    stage.add_module("ab"[rank], nn.Linear(3, 1))
    _, watch, _ = steps(stage, 2, before=lambda step, loss: loss * float("nan") if rank and step else loss)
    return said(watch, "notice")


def collectives(rank: int, world: int) -> Any:
    counts = []
    for depth in (1, 30):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 3), *(nn.Linear(3, 3) for _ in range(depth)), nn.Linear(3, 1))
        seen, watch, _ = steps(model, 3)
        counts.append((watch._joint.ranks.collectives, len(seen)))
    return counts


class Communication(TorchDispatchMode):
    """Counts what this thread sends."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "c10d" in func.namespace:
            self.counts[func.name()] = self.counts.get(func.name(), 0) + 1
        return func(*args, **(kwargs or {}))


def communication_of_training(rank: int, world: int) -> Any:
    """What the training thread itself sends, with a watch and without."""
    counts = []
    for watched in (True, False):
        model = net()
        fully_shard(model)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        x, y = share(rank, world)
        watch = hw.watch(model, optimizer, every=1, alerts=(), max_overhead=None, enabled=watched)
        with watch:
            with Communication() as mode:
                for _ in range(3):
                    optimizer.zero_grad()
                    (model(x) - y).square().mean().backward()
                    nn.utils.clip_grad_norm_(model.parameters(), 0.05)
                    optimizer.step()
            counts.append(mode.counts)
    return counts


def bare(model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        optimizer.step()
    return [p.full_tensor() for p in model.parameters()]  # type: ignore[attr-defined]


def same_weights(rank: int, world: int) -> Any:
    watched, other = net(), net()
    fully_shard(watched)
    fully_shard(other)
    train(watched, *share(rank, world))
    expected = bare(other, *share(rank, world))
    return [bool(torch.equal(p.full_tensor(), q)) for p, q in zip(watched.parameters(), expected, strict=True)]


def accumulation(rank: int, world: int) -> Any:
    model = net()
    fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen: list[StepRecord] = []
    x, y = share(rank, world)
    with hw.watch(model, optimizer, every=1, alerts=(), max_overhead=None, on_record=seen.append) as watch:
        for _ in range(3):
            optimizer.zero_grad()
            for half in (0, 1):
                ((model(x.chunk(2)[half]) - y.chunk(2)[half]).square().mean() / 2).backward()
            optimizer.step()
    blocks = [r.block("gradient") for r in seen]
    norms = [{t.name: s.l2_norm for t, s in b.statistics()} for b in blocks if b is not None]
    return norms, [r.clip_coefficient for r in seen], said(watch, "notice")


# -------------------------------------------------------------------- deciding


def stop_together(rank: int, world: int) -> Any:
    model = little()
    taken = []
    for alert in (AtStep(3, "stop"), AtStep(3, "warn"), AfterStep(3, "stop")):
        _, watch, done = steps(model, 6, alerts=(alert,))
        taken.append((done, [f.code for f in watch.findings], watch.should_stop))
    return taken


def throttle_together(rank: int, world: int) -> Any:
    """Only rank 0 finds recording too dear; both stretch the interval, at the same steps."""
    schedule.GRACE_SECONDS = 0.0
    try:
        seen, watch, _ = steps(little(), 70, max_overhead=1e-9 if rank == 0 else 1e9)
    finally:
        schedule.GRACE_SECONDS = 1.0
    return [r.step for r in seen], said(watch, "throttled"), said(watch, "gap")


def only_rank_0_writes(rank: int, world: int) -> Any:
    folders: list[Any] = [None]
    holder = TemporaryDirectory() if rank == 0 else None
    if holder is not None:
        folders = [holder.name]
    distributed.broadcast_object_list(folders)
    path = Path(folders[0]) / "run"
    sent: list[int] = []

    class Sink:
        def write(self, scalars: Mapping[str, float], step: int) -> None:
            sent.append(step)

        def close(self) -> None:
            return None

    seen, _, _ = steps(little(), 3, run=path, sinks=(Sink(),))
    distributed.barrier()
    if holder is not None:
        run = hw.open_run(path)
        written = list(run.steps)
        holder.cleanup()
        return written, sent, len(seen)
    return None, sent, len(seen)


def one_rank_ends_early(rank: int, world: int) -> Any:
    """Copies without DDP: rank 1 raises in the fourth step, rank 0 trains on."""
    start = time.monotonic()

    def fails(step: int, loss: Tensor) -> Tensor:
        if rank == 1 and step == 3:
            raise ZeroDivisionError
        return loss

    try:
        seen, watch, done = steps(little(), 8, before=fails)
    except ZeroDivisionError:
        return "raised", time.monotonic() - start
    return [r.step for r in seen], said(watch, "gap"), done, time.monotonic() - start
