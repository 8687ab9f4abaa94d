"""Synthetic profiles: records built by hand, with numbers a reader can check, for tests of what reads records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from headwater.records import (
    Coverage,
    LayerProfile,
    ParameterProfile,
    Profile,
    Spread,
    Statistics,
    TimeProfile,
    TrunkPoint,
)

_OPERATIONS = {"Linear": ("AddmmBackward0", "weights"), "Sigmoid": ("SigmoidBackward0", "activation")}


def statistics(rms: float, count: int = 4) -> Statistics:
    """Statistics of ``count`` elements ±rms, so that rms, mean_abs and max_abs all equal ``rms``."""
    return Statistics.of([rms, -rms] * (count // 2))


def tiny_statistics(rms_log10: float, count: int = 4) -> Statistics:
    """Statistics whose rms may lie outside the range of a double."""
    exponent = math.floor(rms_log10 / math.log10(2.0))
    return (
        statistics(10.0 ** (rms_log10 - exponent * math.log10(2.0)), count)
        .rescaled(0)
        .__class__(*_shifted(statistics(10.0 ** (rms_log10 - exponent * math.log10(2.0)), count), exponent))
    )


def _shifted(s: Statistics, exponent: int) -> tuple[Any, ...]:
    stored = s.to_dict()
    stored["scale_log2"] += exponent
    return tuple(stored.values())


def layer(
    name: str, type: str, order: int, activation: float, gradient: float | Statistics | None, **more: Any
) -> LayerProfile:
    """A layer row with constant-magnitude tensors."""
    kinds = {
        "Linear": "linear",
        "Sigmoid": "activation",
        "ReLU": "activation",
        "LSTM": "recurrent",
        "LayerNorm": "normalization",
    }
    if isinstance(gradient, float):
        gradient = statistics(gradient)
    defaults: dict[str, Any] = {
        "kind": kinds.get(type, "other"), "on_trunk": True, "shape": (1, 100), "dtype": "float32",
        "gradient_missing": None if gradient is not None else "the loss does not depend on it",
    }  # fmt: skip
    return LayerProfile(
        name=name, type=type, order=order, activation=statistics(activation), gradient=gradient, **{**defaults, **more}
    )


def parameter(name: str, gradient: float | Statistics | None, role: str = "weight", **more: Any) -> ParameterProfile:
    """A parameter row owned by the layer its name begins with."""
    if isinstance(gradient, float):
        gradient = statistics(gradient)
    defaults: dict[str, Any] = {
        "shape": (100, 100) if role == "weight" else (100,), "dtype": "float32", "layer": name.rpartition(".")[0],
        "state": "finite" if gradient is not None else "none", "value": statistics(0.0577),
    }  # fmt: skip
    return ParameterProfile(name=name, role=role, gradient=gradient, **{**defaults, **more})


def trunk_of(layers: Sequence[LayerProfile]) -> tuple[TrunkPoint, ...]:
    """Trunk points for the rows on the trunk, each carried back by the next row."""
    rows = [row for row in layers if row.on_trunk]
    points = []
    for order, row in enumerate(rows):
        after = rows[order + 1] if order + 1 < len(rows) else None
        kind = "loss" if after is None else _OPERATIONS.get(after.type, ("", "other"))[1]
        operation = _OPERATIONS.get(row.type, (f"{row.type}Backward0", ""))[0]
        points.append(
            TrunkPoint(
                order=order, operation=operation, kind=kind, layer=row.name,
                next_layer=after.name if after else None, gradient=row.gradient,
            )
        )  # fmt: skip
    return tuple(points)


def profile(layers: Sequence[LayerProfile], parameters: Sequence[ParameterProfile] = (), **more: Any) -> Profile:
    """A profile around layers and parameters."""
    seen = sum(p.gradient is not None for p in parameters)
    trainable = sum(p.state != "frozen" for p in parameters)
    missing = {p.name: p.state for p in parameters if p.gradient is None}
    defaults: dict[str, Any] = {
        "trunk": trunk_of(layers), "times": (), "loss": 0.25, "loss_source": "loss_fn", "output_shape": (1, 1),
        "target_shape": (1, 1), "batch_size": 1, "model_type": "Sequential", "training": True,
        "torch_version": "2.13.0", "headwater_version": "0.1.0", "device": "cpu", "dtype": "float32", "seed": 0,
        "coverage": Coverage(observed=seen, trainable=trainable, missing=missing, modules_observed=len(layers)),
    }  # fmt: skip
    return Profile(layers=tuple(layers), parameters=tuple(parameters), **{**defaults, **more})


def deep_sigmoid(depth: int = 20, decades_per_layer: float = -0.845, **more: Any) -> Profile:
    """(Linear, Sigmoid) × depth and a Linear: the gradient falls by a fixed number of decades per Linear.

    At the output of Linear number k (0 is the first) the gradient's rms is 10**(decades_per_layer * (depth - k));
    its Sigmoid's output has 10**0.6 times as much.
    """
    layers, parameters = [], []
    for k in range(depth):
        level = 10.0 ** (decades_per_layer * (depth - k))
        linear, sigmoid = str(2 * k), str(2 * k + 1)
        layers.append(layer(linear, "Linear", 2 * k, 0.32, level, parameters=(f"{linear}.weight", f"{linear}.bias")))
        layers.append(
            layer(
                sigmoid,
                "Sigmoid",
                2 * k + 1,
                0.52,
                level * 10**0.6,
                dead_fraction=0.0,
                unit_count=100,
                saturated_fraction=0.0,
            )
        )
        parameters += [parameter(f"{linear}.weight", level * 0.5), parameter(f"{linear}.bias", level, "bias")]
    last = str(2 * depth)
    layers.append(
        layer(last, "Linear", 2 * depth, 0.2, 1.0, shape=(1, 1), parameters=(f"{last}.weight", f"{last}.bias"))
    )
    parameters += [parameter(f"{last}.weight", 0.5, shape=(1, 100)), parameter(f"{last}.bias", 1.0, "bias", shape=(1,))]
    return profile(layers, parameters, **{"model_type": "DeepSigmoid", **more})


def transformer(blocks: int = 4) -> Profile:
    """A pre-LN residual stream: blocks on the trunk, attention and MLP on branches, tied embedding and head."""
    layers: list[LayerProfile] = []
    parameters: list[ParameterProfile] = [
        parameter(
            "wte.weight", 2e-4, "embedding", aliases=("lm_head.weight",), layer="transformer.wte", shape=(128, 64)
        )
    ]

    def add(name: str, type: str, activation: float, gradient: float, on_trunk: bool = False, **more: Any) -> None:
        layers.append(
            layer(name, type, len(layers), activation, gradient, on_trunk=on_trunk, shape=(8, 16, 64), **more)
        )

    add("transformer.wte", "Embedding", 0.02, 3e-4, True)
    for b in range(blocks):
        g = 2.4e-4 * 0.97**b
        for child, type, a in (
            ("ln_1", "LayerNorm", 1.0), ("attn.c_attn", "Conv1D", 0.16), ("attn.c_proj", "Conv1D", 0.02),
            ("ln_2", "LayerNorm", 1.0), ("mlp.c_fc", "Conv1D", 0.17), ("mlp.act", "GELU", 0.1),
            ("mlp.c_proj", "Conv1D", 0.02),
        ):  # fmt: skip
            name = f"transformer.h.{b}.{child}"
            add(name, type, a, g * (0.4 if "ln" in child else 0.9))
            if type in ("LayerNorm", "Conv1D"):
                role = "normalization" if type == "LayerNorm" else "weight"
                parameters.append(parameter(f"{name}.weight", g * 3, role, shape=(64, 64)))
                parameters.append(parameter(f"{name}.bias", g * 2, "bias" if role == "weight" else role, shape=(64,)))
        add(f"transformer.h.{b}", "Block", 0.05 + 0.02 * b, g, True)
    add("transformer.ln_f", "LayerNorm", 1.0, 1.1e-4, True)
    add("lm_head", "Linear", 0.16, 9e-4, True)
    return profile(
        layers, parameters, model_type="GPT2LMHeadModel", loss=4.852, loss_source="model", batch_size=8,
        output_shape=(8, 16, 128), target_shape=None,
    )  # fmt: skip


def recurrent(steps: int = 30) -> Profile:
    """An LSTM classifier whose hidden gradient falls by 0.2 decades per step back from 1e-2 at the last one."""
    times = tuple(
        TimeProfile(
            layer="lstm", state=state, stack=0, reverse=False, exact=True,
            steps=tuple(statistics(10.0 ** (-2 - rate * (steps - 1 - t))) for t in range(steps)),
        )
        for state, rate in (("hidden", 0.2), ("cell", 0.05))
    )  # fmt: skip
    layers = [
        layer("embedding", "Embedding", 0, 1.0, 4e-6, shape=(4, steps, 16)),
        layer("lstm", "LSTM", 1, 0.1, 2e-3, shape=(4, steps, 32)),
        layer("head", "Linear", 2, 0.3, 0.12, shape=(4, 2)),
    ]
    parameters = [
        parameter("embedding.weight", 1e-6, "embedding"),
        parameter("lstm.weight_ih_l0", 3e-4, "recurrent"),
        parameter("lstm.weight_hh_l0", 1e-4, "recurrent"),
        parameter("lstm.bias_ih_l0", 5e-4, "bias"),
        parameter("head.weight", 0.01),
        parameter("head.bias", 0.1, "bias"),
    ]
    return profile(layers, parameters, times=times, model_type="Classifier", batch_size=4)


def troubled() -> Profile:
    """Everything that can be wrong at once: NaN, infinity, exact zeros, nothing at all, underflow, frozen."""
    layers = [
        layer("stem", "Linear", 0, 1.0, statistics(0.0)),
        layer("relu", "ReLU", 1, 0.4, statistics(0.0), dead_fraction=1.0, unit_count=100, dead_units=tuple(range(64))),
        layer("mid", "Linear", 2, 0.3, Statistics.of([math.nan, 1e-3, math.inf, -1e-3])),
        layer("gone", "Linear", 3, 0.3, Statistics.of([math.nan, math.nan])),
        layer("aside", "Linear", 4, 0.3, None, on_trunk=False),
        layer("squash", "Sigmoid", 5, 0.5, tiny_statistics(-320.5), saturated_fraction=0.98),
        layer("head", "Linear", 6, 0.2, 0.5, shape=(8, 1)),
    ]
    parameters = [
        parameter("stem.weight", statistics(0.0), state="exact_zero"),
        parameter("stem.bias", statistics(0.0), "bias", state="exact_zero"),
        parameter("mid.weight", Statistics.of([math.nan, 1e-3]), state="nonfinite"),
        parameter("aside.weight", None),
        parameter("squash_scale", tiny_statistics(-42.0), "other", state="underflow", layer="squash"),
        parameter("head.weight", None, state="frozen"),
    ]
    return profile(
        layers, parameters, model_type="Troubled", loss=math.nan, batch_size=8,
        warnings=("Using a target size (torch.Size([8])) that is different to the input size (torch.Size([8, 1])).",),
        coverage=Coverage(
            observed=4, trainable=5,
            missing={"aside.weight": "the loss does not depend on it", "head.weight": "frozen"},
            modules_observed=7, modules_unseen={"spare": "never called"}, functional=("ReluBackward0",),
        ),
    )  # fmt: skip


def hostile() -> Profile:
    """Names that would run as a script, break a line or draw a colour if they were not escaped."""
    names = [
        "<script>alert(1)</script>",
        "a&b<b>bold</b>",
        "quote\"'><img src=x onerror=alert(2)>",
        "new\nline\x1b[31m",
        "</script><script>alert(3)</script>",
    ]
    layers = [layer(name, "<i>Linear</i>", i, 1.0, 10.0 ** (i - 5)) for i, name in enumerate(names)]
    parameters = [parameter(f"{name}.weight", 10.0 ** (i - 5)) for i, name in enumerate(names)]
    return profile(layers, parameters, model_type="<script>alert(4)</script>", warnings=("<script>alert(5)</script>",))


def with_draws(draws: int = 10) -> Profile:
    """A sigmoid network measured over several draws, 0.3 decades of spread everywhere."""
    base = deep_sigmoid(3)
    layers = tuple(
        LayerProfile(**{**{f: getattr(row, f) for f in row.__dataclass_fields__},
                        "spread": {"gradient.rms": Spread(row.gradient.rms_log10, 0.3, draws)}})
        for row in base.layers if row.gradient is not None
    )  # fmt: skip
    return base.replace(layers=layers, draws=draws)
