"""Every private torch name headwater uses, in one place, each with the reason and what happens without it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode as OperationMode
from torch.utils._python_dispatch import _disable_current_modes

__all__ = [
    "OperationMode",
    "current_sequence_number",
    "functions_unseen",
    "hooks_after_accumulation_silenced",
    "is_recomputing_node",
    "nested_backwards",
    "operations_unseen",
    "sequence_number",
    "truncated_normal_on_meta",
]


def sequence_number(node: Any) -> int:
    """When an autograd node was created: numbers grow with the order of the forward.

    Args:
        node: a ``torch.autograd.graph.Node``.

    Returns:
        Its sequence number; that of an ``AccumulateGrad`` is the largest there is.
    """
    return int(node._sequence_nr())


def current_sequence_number() -> int:
    """The number that the next autograd node of this thread will get."""
    probe = getattr(torch.autograd, "_get_sequence_nr", None)
    if probe is not None:
        return int(probe())
    # Before torch had it: the number of a node made now, plus one.
    return sequence_number(torch.ones((), requires_grad=True).clone().grad_fn) + 1


def is_recomputing_node(node: Any) -> bool:
    """Whether a node is reentrant activation checkpointing, which refuses ``torch.autograd.grad``.

    Args:
        node: a ``torch.autograd.graph.Node``.

    Returns:
        True for ``torch.utils.checkpoint.checkpoint(..., use_reentrant=True)``.
    """
    return str(node.name()).startswith("CheckpointFunction")


@contextmanager
def nested_backwards() -> Iterator[list[list[Any]]]:
    """Notice the backwards inside a backward: reentrant checkpointing sends one through what it has just recomputed.

    No hook tells where that graph ends, so the public ``torch.autograd.backward`` is replaced inside the block.

    Yields:
        A list that grows by the ``grad_fn`` of every tensor that a backward starts from, one list per backward.
    """
    roots: list[list[Any]] = []
    original = torch.autograd.backward

    def noticed(tensors: Any, *args: Any, **kwargs: Any) -> None:
        roots.append([t.grad_fn for t in ([tensors] if isinstance(tensors, torch.Tensor) else tensors)])
        original(tensors, *args, **kwargs)

    torch.autograd.backward = noticed
    try:
        yield roots
    finally:
        torch.autograd.backward = original


def operations_unseen() -> Any:
    """A context in which no dispatch mode sees what is computed: headwater's own arithmetic is not the model's.

    Returns:
        A context manager.
    """
    return _disable_current_modes()


def functions_unseen() -> Any:
    """A context in which no ``TorchFunctionMode`` sees what is called: headwater's own arithmetic is not the model's.

    Returns:
        A context manager.
    """
    return torch._C.DisableTorchFunction()


@contextmanager
def truncated_normal_on_meta(record: Callable[[torch.Tensor, float, float, float, float], object]) -> Iterator[None]:
    """Hear of ``nn.init.trunc_normal_`` on the meta device, where torch ≥ 2.13 returns before any operation.

    Without the private function (another torch version), its own operations are seen instead.

    Args:
        record: called with (tensor, mean, std, a, b) in place of it, for meta tensors.

    Yields:
        Nothing.
    """
    original = getattr(torch.nn.init, "_no_grad_trunc_normal_", None)
    if original is None:
        yield
        return

    def replacement(tensor: torch.Tensor, mean: float, std: float, a: float, b: float, *rest: Any, **kw: Any) -> Any:
        if not tensor.is_meta:
            return original(tensor, mean, std, a, b, *rest, **kw)
        record(tensor, mean, std, a, b)
        return tensor

    torch.nn.init._no_grad_trunc_normal_ = replacement
    try:
        yield
    finally:
        torch.nn.init._no_grad_trunc_normal_ = original


def memory_key(tensor: torch.Tensor) -> tuple[int, tuple[int, tuple[int, ...], tuple[int, ...]]]:
    """Identity of a tensor's memory, and of its layout in it.

    A tensor that autograd saved comes back as another Python object over the same memory, also on the meta device,
    where there is no address.

    Args:
        tensor: dense.

    Returns:
        The memory (unique while something refers to it) and the layout.
    """
    layout = (int(tensor.storage_offset()), tuple(tensor.shape), tuple(tensor.stride()))
    return int(tensor.untyped_storage()._cdata), layout


@contextmanager
def hooks_after_accumulation_silenced(tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """Take away ``register_post_accumulate_grad_hook`` hooks and give them back.

    An optimizer that steps inside the backward lives in such a hook; a measurement must not train the model.

    Args:
        tensors: leaf tensors.

    Yields:
        Nothing; the hooks are silent inside the block.
    """
    # Emptied in place: setting the attribute to None leaves the C++ side with the dictionary it had, and it fires.
    registries = [hooks for t in tensors if (hooks := getattr(t, "_post_accumulate_grad_hooks", None))]
    kept = [(hooks, dict(hooks)) for hooks in registries]
    try:
        for hooks in registries:
            hooks.clear()
        yield
    finally:
        for hooks, content in kept:
            hooks.update(content)


def backward_number() -> int:
    """Number of the backward that this thread is inside of, one for each; -1 outside of any."""
    return int(torch._C._current_graph_task_id())


def in_backward() -> bool:
    """Whether this thread is inside a backward: checkpoints recompute there, some optimizers step there."""
    return backward_number() != -1


class _Requeued:
    """Runs a function after every callback that was queued before it ran first: after DDP's and FSDP's own."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function

    def __call__(self) -> None:
        torch.autograd.Variable._execution_engine.queue_callback(self.function)


def at_end_of_backward(function: Callable[[], None]) -> None:
    """Run a function once the backward now in progress is over, wrappers' own reductions included.

    Only to be called from a hook during a backward. The function runs on the streams of the backward's caller.

    Args:
        function: without arguments; what it raises comes out of ``backward()``.
    """
    torch.autograd.Variable._execution_engine.queue_callback(_Requeued(function))


def scale_tensor(scaler: Any) -> torch.Tensor | None:
    """The loss scale of a GradScaler without a host synchronisation (``get_scale()`` makes one).

    Args:
        scaler: a ``torch.amp.GradScaler``.

    Returns:
        A tensor that the scaler changes in place; None before its first use, or for a scaler without one.
    """
    found = getattr(scaler, "_scale", None)
    return found if isinstance(found, torch.Tensor) else None


def is_compiled(module: torch.nn.Module) -> bool:
    """Whether a module is the result of ``torch.compile``, or had its ``compile()`` called: hooks do not fire in it.

    Args:
        module: any module; its children are not looked at.

    Returns:
        True for a compiled one.
    """
    if getattr(module, "_compiled_call_impl", None) is not None:
        return True
    # Where nothing was compiled, torch._dynamo is not loaded, and loading it costs seconds.
    frames = sys.modules.get("torch._dynamo.eval_frame")
    return frames is not None and isinstance(module, frames.OptimizedModule)


def default_store() -> Any:
    """The key-value store that the processes of ``torch.distributed`` met at.

    No collective says "after this many seconds, and who is missing" on every backend; the store does.
    """
    from torch.distributed import distributed_c10d

    return distributed_c10d._get_default_store()


def is_flat_parameter(tensor: Any) -> bool:
    """Whether a parameter is FSDP1's: several parameters of a model in one, flat and split over the ranks."""
    return bool(getattr(tensor, "_is_flat_param", False))


def flat_parameter_pieces(module: Any) -> list[tuple[torch.Tensor, tuple[int, ...], int]]:
    """The parameters that an FSDP1 module (``use_orig_params=True``) keeps as views of its flat one.

    Args:
        module: any module.

    Returns:
        (parameter, its whole shape, rank within its sharding group) of each; nothing for other modules.
    """
    handle: Any = getattr(module, "_handle", None)
    flat = getattr(handle, "flat_param", None)
    if handle is None or flat is None or not is_flat_parameter(flat) or getattr(flat, "_params", None) is None:
        return []
    sharded = bool(getattr(handle, "uses_sharded_strategy", True))
    rank = int(handle.process_group.rank()) if sharded else -1
    return [(p, tuple(shape), rank) for p, shape in zip(flat._params, flat._shapes, strict=True)]
