"""What ``headwater.measure`` costs over a bare forward and backward, in time and in memory.

Time: one process runs the bare step and the measurement alternately, so that both see the same machine; the ratio is
the median of the ratios of neighbouring pairs, with the quartiles beside it. The first pairs are thrown away (imports,
allocator, caches). ``--cpu-time`` counts the processor time of the process instead of the clock: the same on an idle
machine with one thread, and less disturbed on a busy one.

Memory: the peak of *live tensor bytes*, not of the process's resident set, which the allocator's caches and threads
blur. torch.profiler reports every allocation and release of the CPU allocator; their running sum is the number of live
bytes at each moment, exact to the byte and equal from run to run. The extra memory of a measurement is the highest
running sum of ``measure`` minus that of the bare step. The bare step keeps no gradients in ``.grad`` either
(``torch.autograd.grad``), so both hold the same parameters, activations and gradients. Statistics are Python numbers
and are no tensor memory.

Run it as ``python benchmarks/measure_overhead.py`` (about a minute); ``--profile`` adds where the time goes.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import headwater as hw

TIME_GOAL = 2.5  # times the bare forward + backward
MEMORY_GOAL = 1.1  # times the largest activation


class ResidualBlock(nn.Module):
    """conv-BN-ReLU-conv-BN, += shortcut, ReLU, in place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x
        return self.relu(out)


class ResNet(nn.Module):
    """8 residual blocks of 32 channels at 32 × 32."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(inplace=True))
        self.blocks = nn.Sequential(*[ResidualBlock(32) for _ in range(8)])
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, 10)."""
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Transformer(nn.Module):
    """4 pre-LN layers of width 256 with 4 heads, on 64 tokens of a vocabulary of 1,000."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(1000, 256)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, batch_first=True, norm_first=True) for _ in range(4)
        )
        self.norm, self.head = nn.LayerNorm(256), nn.Linear(256, 1000)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) to (B · T, 1000)."""
        h = self.embed(tokens)
        for layer in self.layers:
            h = layer(h)
        return self.head(self.norm(h)).flatten(0, 1)


def mlp() -> nn.Module:
    """20 hidden layers of 256."""
    layers: list[nn.Module] = []
    for _ in range(20):
        layers += [nn.Linear(256, 256), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(256, 10))


Build = Callable[[], tuple[nn.Module, Tensor, Tensor]]
MODELS: dict[str, Build] = {
    "MLP 20 × 256, batch 64": lambda: (mlp(), torch.randn(64, 256), torch.randint(0, 10, (64,))),
    "transformer 4 × 256, 8 × 64 tokens": lambda: (
        Transformer(),
        torch.randint(0, 1000, (8, 64)),
        torch.randint(0, 1000, (512,)),
    ),
    "ResNet 8 blocks, 16 × 32 × 32 × 32": lambda: (ResNet(), torch.randn(16, 3, 32, 32), torch.randint(0, 10, (16,))),
}


@dataclass
class Result:
    """One model's figures.

    Attributes:
        model: its name.
        bare_ms: median of a bare forward and backward.
        measure_ms: median of a measurement.
        ratio: median over neighbouring pairs of measure / bare.
        ratio_quartiles: 25 % and 75 % of the same.
        largest_activation_mib: the largest output of any module.
        extra_mib: peak live tensor bytes of a measurement minus those of a bare step.
        memory_ratio: the two divided.
    """

    model: str
    bare_ms: float
    measure_ms: float
    ratio: float
    ratio_quartiles: tuple[float, float]
    largest_activation_mib: float
    extra_mib: float
    memory_ratio: float


def bare_step(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Forward and backward as training does them, without touching .grad."""
    torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))


def measured_step(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """The same with everything measured."""
    hw.measure(model, x, y, F.cross_entropy)


Step = Callable[[nn.Module, Tensor, Tensor], None]


def _seconds(step: Step, model: nn.Module, x: Tensor, y: Tensor, clock: Callable[[], float]) -> float:
    start = clock()
    step(model, x, y)
    return clock() - start


def peak_live_bytes(step: Step, model: nn.Module, x: Tensor, y: Tensor) -> int:
    """Highest number of bytes in live CPU tensors that the step allocated.

    Args:
        step: what to run.
        model: its model.
        x: its inputs.
        y: its targets.

    Returns:
        Bytes; memory that was live before the step does not count.
    """
    activity = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activity, profile_memory=True) as profiler:
        step(model, x, y)
    live = peak = 0
    records = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(records, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def largest_activation(model: nn.Module, x: Tensor) -> int:
    """Bytes of the largest output of any module."""
    sizes: list[int] = []
    handles = [
        m.register_forward_hook(
            lambda m, a, out: sizes.append(out.nbytes) if isinstance(out, Tensor) else None  # type: ignore[func-returns-value]
        )
        for m in model.modules()
    ]
    model(x)
    for handle in handles:
        handle.remove()
    return max(sizes)


def run(name: str, pairs: int, *, clock: Callable[[], float] = time.perf_counter, profile: bool = False) -> Result:
    """Figures of one model.

    Args:
        name: a key of MODELS.
        pairs: how many pairs of bare step and measurement to time.
        clock: seconds, ``time.perf_counter`` or ``time.process_time``.
        profile: also print where the time of a measurement goes.

    Returns:
        The figures.
    """
    torch.manual_seed(0)
    model, x, y = MODELS[name]()
    for _ in range(3):
        bare_step(model, x, y)
        measured_step(model, x, y)
    bare, measured = [], []
    for i in range(pairs):
        for step, times in [(bare_step, bare), (measured_step, measured)][:: 1 if i % 2 else -1]:
            times.append(_seconds(step, model, x, y, clock))
    ratios = [m / b for m, b in zip(measured, bare, strict=True)]
    quartiles = statistics.quantiles(ratios, n=4)
    activation = largest_activation(model, x)
    extra = peak_live_bytes(measured_step, model, x, y) - peak_live_bytes(bare_step, model, x, y)
    if profile:
        profiler = cProfile.Profile()
        profiler.enable()
        for _ in range(5):
            measured_step(model, x, y)
        profiler.disable()
        print(f"\n{name}: five measurements, by own time")
        pstats.Stats(profiler, stream=sys.stdout).sort_stats("tottime").print_stats(22)
    mib = 2**20
    return Result(
        model=name,
        bare_ms=1e3 * statistics.median(bare),
        measure_ms=1e3 * statistics.median(measured),
        ratio=statistics.median(ratios),
        ratio_quartiles=(quartiles[0], quartiles[2]),
        largest_activation_mib=activation / mib,
        extra_mib=extra / mib,
        memory_ratio=extra / activation,
    )


def main() -> None:
    """Print one line per model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=31, help="pairs of bare step and measurement (default 31)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--only", default="", help="models whose name contains this")
    parser.add_argument("--cpu-time", action="store_true", help="count processor time, not the clock")
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    names = [name for name in MODELS if arguments.only.lower() in name.lower()]
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    results = [run(name, arguments.pairs, clock=clock, profile=arguments.profile) for name in names]
    if arguments.json:
        print(json.dumps([asdict(r) for r in results], indent=2, ensure_ascii=False))
        return
    print(f"torch {torch.__version__}, {arguments.threads} thread(s), {arguments.pairs} pairs")
    print(f"{'':38}{'bare':>9}{'measure':>10}{'ratio':>8}{'quartiles':>14}{'largest':>11}{'extra':>9}{'ratio':>8}")
    for r in results:
        low, high = r.ratio_quartiles
        print(
            f"{r.model:38}{r.bare_ms:6.1f} ms{r.measure_ms:7.1f} ms{r.ratio:8.2f}{low:7.2f}-{high:.2f}"
            f"{r.largest_activation_mib:7.2f} MiB{r.extra_mib:5.2f} MiB{r.memory_ratio:8.2f}"
        )
    print(f"goals: time <= {TIME_GOAL}, extra memory < {MEMORY_GOAL} of the largest activation")


if __name__ == "__main__":
    main()
