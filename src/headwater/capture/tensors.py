"""Tensors inside any structure a module may take or return."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence

__all__ = ["is_measurable", "tensors_in"]


def is_measurable(tensor: torch.Tensor) -> bool:
    """Whether a tensor can carry a gradient: floating point or complex."""
    return tensor.is_floating_point() or tensor.is_complex()


def tensors_in(value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in a structure with its path, such as ``['logits']`` or ``[1][0]``.

    Args:
        value: a tensor, or tuples, lists, mappings, dataclasses and named tuples of them, nested. Anything else is
            passed over.

    Yields:
        (path, tensor); the path of a bare tensor is empty.
    """
    if isinstance(value, torch.Tensor):
        yield "", value
    elif isinstance(value, PackedSequence):
        yield ".data", value.data
    elif isinstance(value, Mapping):
        for key, item in value.items():
            for path, tensor in tensors_in(item):
                yield f"[{key!r}]{path}", tensor
    elif isinstance(value, list | tuple):
        names = getattr(value, "_fields", None)
        for index, item in enumerate(value):
            step = f".{names[index]}" if names else f"[{index}]"
            for path, tensor in tensors_in(item):
                yield f"{step}{path}", tensor
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            for path, tensor in tensors_in(getattr(value, field.name, None)):
                yield f".{field.name}{path}", tensor
