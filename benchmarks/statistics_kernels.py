"""What the statistics of tensors in main memory cost: compiled, in plain torch, and by the usual calls.

Two sets of tensors: the 42 parameters of the 20 × 256 MLP of ``measure_overhead.py`` (1.3 million numbers, 5.3 MB), and
one flat tensor of 64 MB that no cache holds. Every way is run in turn, again and again, so that all see the same
machine; the figure is the median, with the best beside it. GB/s are bytes of the tensors over the median. The last
column is the median over the bare forward and backward of the MLP (batch 64), which runs in the same turns.

Run it as ``python benchmarks/statistics_kernels.py`` (half a minute).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headwater.stats import alive_units, kernels, moment_table, norm_table

FULL_GOAL, NORM_GOAL = 0.08, 0.03  # shares of the bare step


def mlp() -> nn.Module:
    """20 hidden layers of 256."""
    layers: list[nn.Module] = []
    for _ in range(20):
        layers += [nn.Linear(256, 256), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(256, 10))


def five_calls(tensors: Sequence[Tensor]) -> None:
    """What a training loop would write: norm, mean |x|, largest |x|, zeros, non-finite elements; results stay tensors."""
    for x in tensors:
        x.norm()
        x.abs().mean()
        x.abs().max()
        (x == 0).sum()
        (~torch.isfinite(x)).sum()


@contextmanager
def environment(value: str) -> Iterator[None]:
    """HEADWATER_KERNELS for a while."""
    before = os.environ.get("HEADWATER_KERNELS")
    os.environ["HEADWATER_KERNELS"] = value
    kernels.forget()
    try:
        yield
    finally:
        os.environ.pop("HEADWATER_KERNELS")
        if before is not None:
            os.environ["HEADWATER_KERNELS"] = before
        kernels.forget()


@dataclass
class Result:
    """One way of reading one set of tensors.

    Attributes:
        set: which tensors.
        way: which way.
        median_us: microseconds.
        best_us: microseconds.
        gb_per_second: bytes of the tensors over the median.
        share_of_step: the median over that of the bare step.
    """

    set: str
    way: str
    median_us: float
    best_us: float
    gb_per_second: float
    share_of_step: float


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def run(name: str, tensors: Sequence[Tensor], turns: int) -> list[Result]:
    """Time every way, in turns.

    Args:
        name: of the set.
        tensors: the set.
        turns: how often.

    Returns:
        One result per way.
    """
    model, x, y = mlp(), torch.randn(64, 256), torch.randint(0, 10, (64,))

    def step() -> None:
        torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))

    compiled = {f"moment_table, {target}": target for target in kernels.TARGETS}
    compiled |= {"norm_table, compiled": "1", "moment_table, plain torch": "0"}
    ways: dict[str, Callable[[], object]] = {
        "bare forward and backward": step,
        **{way: (lambda: moment_table(tensors)) for way in compiled},
        "norm_table, compiled": lambda: norm_table(tensors),
        "five torch calls per tensor": lambda: five_calls(tensors),
        "torch._foreach_norm, L2": lambda: torch._foreach_norm(list(tensors)),
    }
    times: dict[str, list[float]] = {}
    for turn in range(turns + 2):
        for way, function in ways.items():
            with environment(compiled.get(way, "1")):
                if way in compiled and compiled[way] in kernels.TARGETS and not kernels.status().in_use:
                    continue  # not on this processor
                kernels.load()
                seconds = _seconds(function)
            if turn >= 2:
                times.setdefault(way, []).append(seconds)
    size = sum(t.nbytes for t in tensors)
    bare = statistics.median(times["bare forward and backward"])
    return [
        Result(name, way, 1e6 * median, 1e6 * min(ts), size / median / 1e9, median / bare)
        for way, ts in times.items()
        for median in [statistics.median(ts)]
    ]


def alive(turns: int) -> list[str]:
    """Lines on alive_units: activations in which every unit is alive, and in which one is dead."""
    lines = []
    for shape in ((64, 256), (4096, 1024), (16, 64, 32, 32)):
        for dead in (False, True):
            x = torch.randn(shape)
            if dead:
                x[:, 3] = 0.0
            times = {}
            for way in ("1", "0"):
                with environment(way):
                    kernels.load()
                    mask = torch.zeros(shape[1], dtype=torch.uint8)
                    times[way] = statistics.median(
                        _seconds(lambda x=x, mask=mask: alive_units(x, 0.0, mask.zero_())) for _ in range(turns)
                    )
            what = "one unit dead" if dead else "all alive"
            lines.append(
                f"alive_units {shape!s:18} {what:14}{1e6 * times['1']:9.1f} us{1e6 * times['0']:12.1f} us plain"
            )
    return lines


def main() -> None:
    """Print one line per way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=41, help="how often every way is run (default 41)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    parameters = [p.detach() for p in mlp().parameters()]
    results = run("MLP, 42 tensors", parameters, arguments.turns)
    results += run("flat, 64 MB", [torch.randn(2**24)], max(5, arguments.turns // 4))
    if arguments.json:
        print(json.dumps([asdict(r) for r in results], indent=2))
        return
    print(f"torch {torch.__version__}, {arguments.threads} thread(s); {kernels.status()}")
    print(f"{'':18}{'':30}{'median':>12}{'best':>12}{'':>12}{'of a step':>12}")
    for r in results:
        print(
            f"{r.set:18}{r.way:30}{r.median_us:9.0f} us{r.best_us:9.0f} us{r.gb_per_second:7.1f} GB/s"
            f"{100 * r.share_of_step:10.1f} %"
        )
    print("\n".join(alive(arguments.turns)))
    print(f"goals for the 42 tensors: the whole set <= {FULL_GOAL:.0%} of a step, norms <= {NORM_GOAL:.0%}")


if __name__ == "__main__":
    main()
