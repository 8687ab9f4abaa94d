"""A batch of random numbers of the right shape, for a TARGET that gives a model alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headwater.errors import TargetError

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["ExampleBatch", "example_batch"]

# Chosen by us: small enough to be quick, large enough that statistics over the batch mean something.
BATCH = 8
SEQUENCE = 16
IMAGE = 64  # pixels; for an image model of transformers whose configuration names no size. A multiple of 32.

# transformers' own class names: these heads compute a loss when they are given labels.
_TOKEN_LABELS = ("ForCausalLM", "LMHeadModel", "ForMaskedLM")
_CLASS_LABELS = ("ForSequenceClassification", "ForImageClassification")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleBatch:
    """Random inputs.

    Attributes:
        inputs: a tuple of positional arguments or a mapping of keyword arguments.
        description: one line that says what was assumed.
    """

    inputs: Any
    description: str


def example_batch(
    model: nn.Module,
    *,
    shapes: Sequence[tuple[int, ...]] = (),
    dtypes: Sequence[str] = (),
    batch: int | None = None,
    vocabulary: int | None = None,
    seed: int = 0,
) -> ExampleBatch:
    """Make inputs for a model: standard normal numbers, or tokens drawn uniformly from a vocabulary.

    Args:
        model: whose first layer, or whose transformers configuration, tells the shape when none is given.
        shapes: one per positional argument, the batch dimension included.
        dtypes: names such as ``float32`` or ``long``, one per shape; fewer leave the rest to be inferred.
        batch: the batch size (number of samples) of an inferred shape; 8 when None.
        vocabulary: number of tokens; makes the inputs token numbers.
        seed: of the generator, apart from torch's global one.

    Returns:
        The inputs, with a line that says what was assumed.

    Raises:
        TargetError: the shape cannot be told, or an option fits nothing.
    """
    import torch

    maker = _Maker(torch.Generator().manual_seed(seed), *_floating_type_and_device(model))
    size = BATCH if batch is None else batch
    name = getattr(model, "main_input_name", None)
    from_transformers = isinstance(name, str) and hasattr(model, "config")
    if shapes:
        vocabulary = vocabulary or _vocabulary(model)
        tensors = tuple(
            maker.tensor(shape, dtypes[i] if i < len(dtypes) else None, vocabulary if i == 0 else None)
            for i, shape in enumerate(shapes)
        )
        inputs: Any = {name: tensors[0]} if from_transformers and len(tensors) == 1 else tensors
        return ExampleBatch(inputs=inputs, description=_described(inputs, "from the options"))
    dtype = dtypes[0] if dtypes else None
    if from_transformers:
        inputs = _for_transformers(model, str(name), size, vocabulary, dtype, maker)
        return ExampleBatch(inputs=inputs, description=_described(inputs, f"from {type(model.config).__name__}"))
    return _for_first_layer(model, size, vocabulary, dtype, maker)


@dataclass(frozen=True, slots=True)
class _Maker:
    generator: torch.Generator
    floating: torch.dtype
    device: torch.device

    def tensor(self, shape: tuple[int, ...], dtype: str | None, vocabulary: int | None) -> torch.Tensor:
        import torch

        wanted = _dtype(dtype) if dtype is not None else (torch.int64 if vocabulary else self.floating)
        if wanted == torch.bool or not (wanted.is_floating_point or wanted.is_complex):
            if vocabulary is None and wanted != torch.bool:
                raise TargetError(
                    f"inputs of type {dtype} need their range: give --vocab N for numbers from 0 to N - 1"
                )
            top = 2 if wanted == torch.bool else vocabulary or 2
            return torch.randint(top, shape, generator=self.generator).to(device=self.device, dtype=wanted)
        real = torch.complex64 if wanted.is_complex else torch.float32
        return torch.randn(shape, generator=self.generator, dtype=real).to(device=self.device, dtype=wanted)


def _dtype(name: str) -> torch.dtype:
    import torch

    found = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise TargetError(f"--input-dtype {name}: torch has no such type; use float32, bfloat16, float16, int64 …")
    return found


def _floating_type_and_device(model: nn.Module) -> tuple[torch.dtype, torch.device]:
    import torch

    for parameter in model.parameters():
        if parameter.is_floating_point():
            return parameter.dtype, parameter.device
    return torch.float32, torch.device("cpu")


def _first_layer(model: nn.Module) -> tuple[str, nn.Module] | None:
    """The first module, in registration order, that owns parameters itself."""
    for name, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            return name or "the model", module
    return None


def _vocabulary(model: nn.Module) -> int | None:
    from torch import nn

    first = _first_layer(model)
    if first is not None and isinstance(first[1], nn.Embedding | nn.EmbeddingBag):
        return first[1].num_embeddings
    return None


def _for_first_layer(
    model: nn.Module, batch: int, vocabulary: int | None, dtype: str | None, maker: _Maker
) -> ExampleBatch:
    from torch import nn

    first = _first_layer(model)
    if first is None:
        raise TargetError("the model has no parameters, so there is no gradient to look for; check what TARGET returns")
    name, layer = first
    kind = type(layer).__name__
    shape: tuple[int, ...]
    if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
        shape, vocabulary = (batch, SEQUENCE), vocabulary or layer.num_embeddings
    elif isinstance(layer, nn.RNNBase):
        shape = _sequence(batch, layer.input_size, layer.batch_first)
    elif isinstance(layer, nn.MultiheadAttention):
        shape = _sequence(batch, layer.embed_dim, layer.batch_first)
    elif isinstance(layer, nn.Linear) and layer.in_features > 0:
        shape = (batch, layer.in_features)
    else:
        raise TargetError(f"the shape of the inputs cannot be told from {name} ({kind}): {_ask(layer, batch)}")
    inputs = (maker.tensor(shape, dtype, vocabulary),)
    return ExampleBatch(inputs=inputs, description=_described(inputs, f"from {name}, a {kind}"))


def _sequence(batch: int, features: int, batch_first: bool) -> tuple[int, ...]:
    return (batch, SEQUENCE, features) if batch_first else (SEQUENCE, batch, features)


def _ask(layer: nn.Module, batch: int) -> str:
    channels = getattr(layer, "in_channels", None)
    spatial = len(getattr(layer, "kernel_size", ()) or ()) if channels else 0
    example = ",".join(map(str, (batch, channels, *[32] * spatial))) if channels else f"{batch},3,32,32"
    return f"give --input-shape {example} (whatever fits), or let TARGET return (model, inputs)"


def _for_transformers(
    model: Any, name: str, batch: int, vocabulary: int | None, dtype: str | None, maker: _Maker
) -> dict[str, torch.Tensor]:
    import torch

    config = model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    inputs: dict[str, torch.Tensor]
    if name == "input_ids":
        tokens = vocabulary or getattr(text, "vocab_size", None)
        if not isinstance(tokens, int):
            raise TargetError(f"{type(config).__name__} names no vocabulary: give --vocab N")
        longest = getattr(text, "max_position_embeddings", None)
        length = min(SEQUENCE, longest) if isinstance(longest, int) and longest > 0 else SEQUENCE
        inputs = {name: maker.tensor((batch, length), dtype, tokens)}
        if getattr(config, "is_encoder_decoder", False):
            inputs["decoder_input_ids"] = maker.tensor((batch, length), dtype, tokens)
    elif name == "pixel_values":
        side = getattr(config, "image_size", None) or IMAGE
        height, width = (side, side) if isinstance(side, int) else tuple(side)[-2:]
        inputs = {name: maker.tensor((batch, getattr(config, "num_channels", 3), height, width), dtype, None)}
    else:
        raise TargetError(
            f"the shape of {name} cannot be told from {type(config).__name__}: give --input-shape, "
            "or let TARGET return (model, inputs)"
        )
    kind = type(model).__name__
    if kind.endswith(_TOKEN_LABELS):
        inputs["labels"] = inputs[name].clone()
    elif kind.endswith(_CLASS_LABELS) and getattr(config, "num_labels", 0) > 1:
        inputs["labels"] = torch.randint(config.num_labels, (batch,), generator=maker.generator).to(maker.device)
    return inputs


def _described(inputs: Any, source: str) -> str:
    pairs = inputs.items() if isinstance(inputs, Mapping) else (("", tensor) for tensor in inputs)
    parts = [f"{key}{' ' if key else ''}{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for key, t in pairs]
    return f"random inputs, {source}: {'; '.join(parts)}"
