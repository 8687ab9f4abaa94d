"""Starts processes that train together over gloo, and brings back what each of them saw."""

from __future__ import annotations

import importlib
import os
import pickle
import tempfile
import traceback
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

PATIENCE_SECONDS = 150.0


def run(world: int, scenarios: Sequence[str], module: str = "tests.distributed.scenarios") -> dict[str, list[Any]]:
    """Run functions one after the other in ``world`` processes.

    Args:
        world: how many processes.
        scenarios: names of functions of (rank, world).
        module: where they are.

    Returns:
        Name to what each rank returned.
    """
    context = get_context("forkserver")  # torch is loaded once; nothing of pytest's own process is forked
    context.set_forkserver_preload(
        ["torch", "torch.distributed.tensor.parallel", "torch.distributed.fsdp", "headwater"]
    )
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=_work, args=(rank, world, folder, module, tuple(scenarios)), daemon=True)
            for rank in range(world)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(PATIENCE_SECONDS)
        late = [p for p in processes if p.is_alive()]
        for process in late:
            process.kill()
        results: dict[str, list[Any]] = {name: [] for name in scenarios}
        for rank in range(world):
            for name in scenarios:
                path = Path(folder) / f"{rank}-{name}"
                if not path.exists():
                    raise AssertionError(f"rank {rank} did not finish {name!r}{' in time' if late else ''}")
                found, error = pickle.loads(path.read_bytes())
                if error:
                    raise AssertionError(f"rank {rank}, {name}:\n{error}")
                results[name].append(found)
    return results


def _work(rank: int, world: int, folder: str, module: str, scenarios: Sequence[str]) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = torch.distributed.FileStore(str(Path(folder) / "store"), world)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)
    functions = importlib.import_module(module)
    for name in scenarios:
        error = ""
        found: Any = None
        try:
            found = getattr(functions, name)(rank, world)
        except BaseException:
            error = traceback.format_exc()
        partial = Path(folder) / f".{rank}-{name}"
        partial.write_bytes(pickle.dumps((found, error)))
        partial.rename(Path(folder) / f"{rank}-{name}")
        if error:
            break
    torch.distributed.destroy_process_group()
