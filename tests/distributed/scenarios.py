"""What the ranks do in the tests of distributed training: the same few steps under every way to split a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module

import headwater as hw
from headwater.errors import NothingObservedError
from headwater.records.step import StepRecord

STEPS = 3


class Net(nn.Module):
    """Odd sizes: no way to split them comes out even. ``unused`` never has a gradient."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.first = nn.Linear(5, 7)
        self.norm = nn.LayerNorm(7)
        self.second = nn.Linear(7, width)
        self.head = nn.Linear(width, 3)
        self.unused = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.norm(self.first(x)).tanh()).relu())


def net(width: int = 6) -> Net:
    torch.manual_seed(0)
    return Net(width).double()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(8, 4, 5, generator=generator, dtype=torch.float64),
        torch.randn(8, 4, 3, generator=generator, dtype=torch.float64),
    )


def plain(record: StepRecord) -> dict[str, Any]:
    """What a record says, as plain values that can be compared."""
    return {
        "step": record.step,
        "loss": record.loss,
        "clip_coefficient": record.clip_coefficient,
        "missing": dict(record.missing),
        "blocks": {
            (b.quantity, b.phase): {t.name: list(row) for t, row in zip(b.tensors, b.rows, strict=True)}
            for b in record.blocks
        },
        "shapes": {t.name: t.shape for b in record.blocks for t in b.tensors if t.kind == "parameter"},
        "columns": {(b.quantity, b.phase): b.columns for b in record.blocks},
    }


def train(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    clip: bool = True,
    before: Callable[[], object] | None = None,
    **options: Any,
) -> tuple[list[dict[str, Any]], Any]:
    """A few steps of Adam under a watch: its records, and the watch."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    seen: list[StepRecord] = []
    options = {"every": 1, "max_overhead": None, "updates": "exact", "alerts": (), "on_record": seen.append, **options}
    watch = hw.watch(model, optimizer, **options)
    with watch:
        for _ in range(STEPS):
            optimizer.zero_grad()
            if before is not None:
                before()
            loss = (model(x) - y).square().mean()
            loss.backward()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), 0.05)
            watch.record(loss=float(loss.detach()))
            optimizer.step()
    return [plain(r) for r in seen], watch


def share(rank: int, world: int) -> tuple[Tensor, Tensor]:
    """The part of the batch that a data-parallel rank works on."""
    x, y = batch()
    return x.chunk(world)[rank], y.chunk(world)[rank]


def alone(width: int = 6, **options: Any) -> list[dict[str, Any]]:
    """The same training in one process."""
    return train(net(width), *batch(), **options)[0]


# -------------------------------------------------------------------- ways to split a model


def ddp(rank: int, world: int) -> Any:
    model = nn.parallel.DistributedDataParallel(net(), find_unused_parameters=True)
    return train(model, *share(rank, world))[0]


def fsdp2(rank: int, world: int) -> Any:
    model = net()
    for module in (model.first, model.second):
        fully_shard(module)
    fully_shard(model)
    return train(model, *share(rank, world))[0]


def fsdp2_norms(rank: int, world: int) -> Any:
    model = net()
    fully_shard(model)
    return train(model, *share(rank, world), statistics="norms")[0]


def hybrid(rank: int, world: int) -> Any:
    mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("replicate", "shard"))
    model = net()
    fully_shard(model, mesh=mesh)
    return train(model, *share(rank, world))[0]


def fsdp1(rank: int, world: int) -> Any:
    model = FullyShardedDataParallel(net(), use_orig_params=True, device_id=torch.device("cpu"))
    records, _ = train(model, *share(rank, world), clip=False)
    return records


def fsdp1_flat(rank: int, world: int) -> Any:
    model = FullyShardedDataParallel(
        net(), use_orig_params=False, device_id=torch.device("cpu"), sharding_strategy=ShardingStrategy.FULL_SHARD
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = share(rank, world)
    try:
        with hw.watch(model, optimizer, alerts=()) as watch:
            (model(x) - y).square().mean().backward()
            optimizer.step()
    except NothingObservedError as error:
        return str(error), [(e.kind, e.message, e.names) for e in watch.events]
    return "nothing was raised"


def _tensor_parallel(model: nn.Module, mesh: Any) -> nn.Module:
    return parallelize_module(
        model,
        mesh,
        {
            "first": ColwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
            "norm": SequenceParallel(),
            "second": ColwiseParallel(input_layouts=Shard(1)),
            "head": RowwiseParallel(),
        },
    )


def tensor_parallel(rank: int, world: int) -> Any:
    # torch splits the input of a RowwiseParallel layer evenly or not at all: 8 units for 1, 2 and 4 ranks.
    return train(_tensor_parallel(net(8), init_device_mesh("cpu", (world,))), *batch(), clip=False)[0]


def tensor_parallel_micro(rank: int, world: int) -> Any:
    model = _tensor_parallel(net(8), init_device_mesh("cpu", (world,)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = batch()
    seen: list[StepRecord] = []
    with hw.watch(model, optimizer, every=1, alerts=(), micro=True, on_record=seen.append):
        for half in (0, 1):
            (model(x.chunk(2)[half]) - y.chunk(2)[half]).square().mean().backward()
        optimizer.step()
    return [(r.micro, sorted(plain(r)["blocks"]["gradient", "pre_clip"])) for r in seen]


def two_dimensional(rank: int, world: int) -> Any:
    mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("data", "tensor"))
    model = _tensor_parallel(net(), mesh["tensor"])
    fully_shard(model, mesh=mesh["data"])
    x, y = batch()
    row = rank // (world // 2)
    return train(model, x.chunk(2)[row], y.chunk(2)[row], clip=False)[0]
