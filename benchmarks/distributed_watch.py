"""What watching costs when several processes train together over gloo.

Two processes train the same model with DistributedDataParallel, in alternating rounds with and without a watch; printed
are ratios of mean step times of one run, the collectives of the recorders per recorded step, and what the training thread
spends inside headwater.

    python benchmarks/distributed_watch.py --rounds 6 --steps 60
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor, distributed, nn

import headwater as hw

WORLD = 2


def model() -> nn.Module:
    """Ten layers of 256 units, He's initialisation: nothing for the alerts to say."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(10):
        layers += [nn.Linear(256, 256), nn.ReLU()]
    for layer in layers[::2]:
        nn.init.kaiming_normal_(layer.weight)
    return nn.Sequential(*layers, nn.Linear(256, 10))


def some_steps(network: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, number: int) -> float:
    """Seconds per step."""
    start = time.perf_counter()
    for _ in range(number):
        optimizer.zero_grad()
        network(x).square().mean().backward()
        optimizer.step()
    return (time.perf_counter() - start) / number


def work(rank: int, store: str, rounds: int, steps: int, every: int) -> None:
    """One process."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", store=distributed.FileStore(store, WORLD), rank=rank, world_size=WORLD)
    network = nn.parallel.DistributedDataParallel(model())
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(rank))
    some_steps(network, optimizer, x, steps)
    ratios, shares, collectives, records = [], [], 0, 0
    for _ in range(rounds):
        bare = some_steps(network, optimizer, x, steps)
        seen: list[object] = []
        with hw.watch(network, optimizer, every=every, max_overhead=None, on_record=seen.append) as watch:
            watched = some_steps(network, optimizer, x, steps)
        bare = (bare + some_steps(network, optimizer, x, steps)) / 2
        ratios.append(watched / bare)
        shares.append(watch.overhead.share)
        collectives += watch._joint.ranks.collectives if watch._joint is not None else 0
        records += len(seen)
    if rank == 0:
        print(
            f"every={every}: mean step with a watch / without, median of {rounds} rounds of {steps} steps: "
            f"{statistics.median(ratios):.3f} (from {min(ratios):.3f} to {max(ratios):.3f}); inside headwater "
            f"{100 * statistics.median(shares):.2f} % of the training thread; {collectives / max(1, records):.1f} collectives "
            "of the recorders per row"
        )
    distributed.barrier()
    distributed.destroy_process_group()


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args()
    context = get_context("spawn")
    for every in (10, 1):
        with tempfile.TemporaryDirectory() as folder:
            store = str(Path(folder) / "store")
            processes = [
                context.Process(target=work, args=(rank, store, arguments.rounds, arguments.steps, every))
                for rank in range(WORLD)
            ]
            for process in processes:
                process.start()
            for process in processes:
                process.join()


if __name__ == "__main__":
    main()
