"""What ``headwater.watch`` costs over bare training, beside what people run today.

Two identical models are trained alternately in one process, A bare and B watched, AdamW, the same batch; the order flips
every round, so that both see the same machine. The figure is the *mean* step of B over the mean step of A: a monitor that
looks at every hundredth step hides its cost from a median. The worst step of B over the mean of A is printed beside it.
``--cpu-time`` counts the processor time of the process (all threads, the recorder's too) instead of the clock.

Tiers: ``default`` (every=10, layers now and then, run file and alerts), and at every=1 ``norms``, ``all`` (all gradient
statistics), ``layers`` (the same with activations and output gradients of every layer). At every=1 updates and the run file
are off: what is measured is the statistics. Peers: a loop of ``.norm().item()``, five torch calls per gradient,
``wandb.watch`` (offline) and Lightning's ``grad_norm``, where they are installed.

Memory is what the watch holds between steps over the bytes of the parameters.

Run it as ``python benchmarks/watch_overhead.py`` (about five minutes); ``--profile`` adds where the time of a tier goes.
"""

from __future__ import annotations

import argparse
import cProfile
import importlib.util
import json
import os
import pstats
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from measure_overhead import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

import headwater as hw

GOALS = {"default": 0.01, "norms": 0.03, "all": 0.08, "layers": 0.15}  # share of the mean bare step
WORST_GOAL = 2.0  # bare steps, for the default tier

Monitor = Callable[[], None]
"""Called after the backward, before the optimizer's step."""


def _nothing() -> None:
    return None


@contextmanager
def bare(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> Iterator[Monitor]:
    """No monitor: the noise of the measurement."""
    yield _nothing


def watched(**options: Any) -> Any:
    """``headwater.watch`` with these options."""

    @contextmanager
    def monitor(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> Iterator[Monitor]:
        run = folder / f"run{time.monotonic_ns()}" if options.get("every", 10) > 1 else None
        with hw.watch(model, optimizer, run=run, **options) as watch:
            LAST.append(watch)
            yield _nothing

    return monitor


LAST: list[Any] = []
AT_ONCE: dict[str, Any] = {"every": 1, "max_overhead": None, "updates": None, "alerts": ()}


@contextmanager
def norm_item(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> Iterator[Monitor]:
    """The loop everybody writes first."""
    parameters = list(model.parameters())

    def look() -> None:
        for p in parameters:
            if p.grad is not None:
                p.grad.norm().item()

    yield look


@contextmanager
def five_calls(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> Iterator[Monitor]:
    """L2 norm, mean |g|, largest |g|, zeros and non-finite elements, each by a call of its own, one copy at the end."""
    parameters = list(model.parameters())

    def look() -> None:
        found = []
        for p in parameters:
            if p.grad is not None:
                g = p.grad
                found += [g.norm(), g.abs().mean(), g.abs().max(), (g == 0).sum(), (~g.isfinite()).sum()]
        torch.stack([x.float() for x in found]).tolist()

    yield look


@contextmanager
def wandb_watch(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> Iterator[Monitor]:
    """``wandb.watch(model, log_freq=10)``, offline, one ``wandb.log`` per step."""
    import wandb

    os.environ["WANDB_SILENT"] = "true"
    run = wandb.init(project="overhead", mode="offline", dir=str(folder))
    wandb.watch(model, log_freq=10)
    try:
        yield lambda: run.log({"step": 1.0})
    finally:
        wandb.unwatch(model)
        run.finish()


@contextmanager
def lightning_norm(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> Iterator[Monitor]:
    """``lightning.pytorch.utilities.grad_norm`` on every step."""
    from lightning.pytorch.utilities import grad_norm

    yield lambda: [float(v) for v in grad_norm(model, 2).values()] and None


MONITORS: dict[str, tuple[Any, str | None]] = {
    "bare": (bare, None),
    "default": (watched(), None),
    "norms": (watched(statistics="norms", activations=None, **AT_ONCE), None),
    "all": (watched(activations=None, **AT_ONCE), None),
    "layers": (watched(activations="recorded", **AT_ONCE), None),
    ".norm().item()": (norm_item, None),
    "five calls": (five_calls, None),
    "wandb.watch": (wandb_watch, "wandb"),
    "Lightning grad_norm": (lightning_norm, "lightning"),
}


@dataclass
class Result:
    """Figures of one monitor on one model.

    Attributes:
        model: its name.
        monitor: its name.
        bare_ms: mean bare step.
        share: mean step with the monitor / mean bare step - 1.
        spread: standard error of the share over blocks of rounds.
        worst: the slowest of the monitor's steps / mean bare step.
        bare_worst: the slowest bare step / mean bare step.
        memory: bytes held between steps / bytes of the parameters; None for a peer.
    """

    model: str
    monitor: str
    bare_ms: float
    share: float
    spread: float
    worst: float
    bare_worst: float
    memory: float | None


def one_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, look: Monitor) -> None:
    """One step of training."""
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    look()
    optimizer.step()


def run(model_name: str, monitor: str, rounds: int, clock: Callable[[], float], warm_up: int = 10) -> Result:
    """Train two copies alternately.

    Args:
        model_name: a key of MODELS.
        monitor: a key of MONITORS.
        rounds: timed steps of each.
        clock: seconds.
        warm_up: steps before; they include the early steps 0, 1, 2, 4 and 8, which every run pays once.

    Returns:
        The figures.
    """
    torch.manual_seed(0)
    a, x, y = MODELS[model_name]()
    torch.manual_seed(0)
    b, _, _ = MODELS[model_name]()
    first, second = (torch.optim.AdamW(m.parameters()) for m in (a, b))
    LAST.clear()
    times: tuple[list[float], list[float]] = ([], [])
    with tempfile.TemporaryDirectory() as folder, MONITORS[monitor][0](b, second, Path(folder)) as look:
        for i in range(warm_up + rounds):
            both = [(0, a, first, _nothing), (1, b, second, look)]
            for which, model, optimizer, monitor_look in both[:: 1 if i % 2 else -1]:
                start = clock()
                one_step(model, optimizer, x, y, monitor_look)
                if i >= warm_up:
                    times[which].append(clock() - start)
        memory = None
        if LAST:
            size = sum(p.nbytes for p in b.parameters())
            memory = LAST[-1].overhead.bytes / size
    mean = statistics.fmean(times[0])
    blocks = max(2, min(10, rounds // 10))
    shares = [statistics.fmean(times[1][k::blocks]) / statistics.fmean(times[0][k::blocks]) - 1 for k in range(blocks)]
    return Result(
        model_name,
        monitor,
        1e3 * mean,
        statistics.fmean(times[1]) / mean - 1,
        statistics.stdev(shares) / len(shares) ** 0.5,
        max(times[1]) / mean,
        max(times[0]) / mean,
        memory,
    )


def profiled(model_name: str, monitor: str, steps: int = 200) -> None:
    """Print where the time of watched steps goes."""
    model, x, y = MODELS[model_name]()
    optimizer = torch.optim.AdamW(model.parameters())
    with tempfile.TemporaryDirectory() as folder, MONITORS[monitor][0](model, optimizer, Path(folder)) as look:
        for _ in range(10):
            one_step(model, optimizer, x, y, look)
        profiler = cProfile.Profile()
        profiler.enable()
        for _ in range(steps):
            one_step(model, optimizer, x, y, look)
        profiler.disable()
    print(f"\n{model_name}, {monitor}: {steps} steps, by own time")
    pstats.Stats(profiler, stream=sys.stdout).sort_stats("tottime").print_stats(30)


def main() -> None:
    """Print one line per model and monitor."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200, help="timed steps of each model (default 200)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default 2)")
    parser.add_argument("--only", default="", help="models whose name contains this")
    parser.add_argument("--monitors", default="", help="names, with commas (default: all that are installed)")
    parser.add_argument("--cpu-time", action="store_true", help="count processor time, not the clock")
    parser.add_argument("--profile", action="store_true", help="print where the time goes instead")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    names = [name for name in MODELS if arguments.only.lower() in name.lower()]
    wanted = arguments.monitors.split(",") if arguments.monitors else list(MONITORS)
    monitors = [m for m in wanted if (need := MONITORS[m][1]) is None or importlib.util.find_spec(need) is not None]
    if arguments.profile:
        for name in names:
            for monitor in monitors:
                profiled(name, monitor)
        return
    results = []
    if not arguments.json:
        print(f"torch {torch.__version__}, {arguments.threads} thread(s), {arguments.rounds} rounds")
        print(f"{'':38}{'monitor':22}{'bare':>9}{'mean step':>18}{'worst / bare':>20}{'memory':>9}")
    for name in names:
        for monitor in monitors:
            r = run(name, monitor, arguments.rounds, clock)
            results.append(r)
            if not arguments.json:
                goal = f" (goal {100 * GOALS[monitor]:.0f} %)" if monitor in GOALS else ""
                memory = "" if r.memory is None else f"{100 * r.memory:6.2f} %"
                print(
                    f"{r.model:38}{r.monitor:22}{r.bare_ms:6.1f} ms{100 * r.share:+8.1f} ±{100 * r.spread:4.1f} %"
                    f"{r.worst:12.1f} ({r.bare_worst:.1f}){memory:>9}{goal}",
                    flush=True,
                )
    if arguments.json:
        print(json.dumps([asdict(r) for r in results], indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
