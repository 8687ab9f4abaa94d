"""Hypothesis strategies: profiles made of anything, and real profiles with anything replaced."""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from typing import Any

from hypothesis import strategies as st
from tests.profiles import troubled
from tests.unit.detectors.planted import FAULTS, HEALTHY

from headwater.records import (
    Coverage,
    LayerProfile,
    ParameterProfile,
    Profile,
    SecondLook,
    Statistics,
    TimeProfile,
    TrunkPoint,
    UpdateProfile,
)

_values = st.one_of(
    st.floats(), st.sampled_from([0.0, -0.0, 1.0, -1.0, math.nan, math.inf, -math.inf, 5e-324, 1e-300, 1e300])
)


@st.composite
def statistics(draw: st.DrawFn) -> Statistics:
    """Of no element, of zeros, of NaN, of any numbers, and of numbers far outside the range of a double."""
    found = Statistics.of(draw(st.lists(_values, max_size=5)))
    return dataclasses.replace(found, scale_log2=found.scale_log2 + draw(st.sampled_from([0, 0, -3000, 3000])))


_maybe_statistics = st.one_of(st.none(), statistics())
_fraction = st.one_of(st.none(), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.floats(0, 1))
_count = st.one_of(st.none(), st.integers(0, 300))
_name = st.sampled_from(["a", "b", "0", "1.fc", "1.fc#2", "(model)", "(model):relu#1", "Ω weird\nname"])
_shape = st.lists(st.integers(0, 40), max_size=4).map(tuple)
_dtype = st.sampled_from(["float32", "float64", "float16", "bfloat16", "complex64", "float8_e4m3fn"])
_log10 = st.one_of(st.none(), st.floats(-400, 400), st.sampled_from([math.inf, -math.inf, math.nan]))
_loss = st.one_of(st.floats(), st.just(0.25))


def _literal(cls: type, field: str) -> st.SearchStrategy[Any]:
    import typing

    return st.sampled_from(typing.get_args(typing.get_type_hints(cls)[field]))


def layers() -> st.SearchStrategy[LayerProfile]:
    return st.builds(
        LayerProfile, name=_name, type=st.sampled_from(["Linear", "ReLU", "Softmax", "LSTM"]),
        kind=_literal(LayerProfile, "kind"), order=st.integers(0, 9), on_trunk=st.booleans(), shape=_shape, dtype=_dtype,
        activation=statistics(), gradient=_maybe_statistics, parameters=st.lists(_name, max_size=2).map(tuple),
        dead_fraction=_fraction, unit_count=_count, saturated_fraction=_fraction, slope_mean_square=_fraction,
        between_sample_fraction=_fraction, position_cosine=st.one_of(st.none(), st.floats(-1, 1)),
        input_rms_log10=_log10,
    )  # fmt: skip


def parameters() -> st.SearchStrategy[ParameterProfile]:
    return st.builds(
        ParameterProfile, name=_name, shape=_shape, dtype=_dtype, role=_literal(ParameterProfile, "role"),
        layer=st.one_of(st.none(), _name), state=_literal(ParameterProfile, "state"), value=statistics(),
        gradient=_maybe_statistics, fan_in=_count, fan_out=_count, duplicate_units=_count, zero_rows=_count,
        zero_columns=_count,
    )  # fmt: skip


def points() -> st.SearchStrategy[TrunkPoint]:
    return st.builds(
        TrunkPoint, order=st.integers(0, 9),
        operation=st.sampled_from(["AddmmBackward0", "NllLossBackward0", "LogSoftmaxBackward0", ""]),
        kind=_literal(TrunkPoint, "kind"), layer=st.one_of(st.none(), _name), next_layer=st.one_of(st.none(), _name),
        gradient=_maybe_statistics,
    )  # fmt: skip


def times() -> st.SearchStrategy[TimeProfile]:
    return st.builds(
        TimeProfile, layer=_name, state=_literal(TimeProfile, "state"), stack=st.integers(0, 2), reverse=st.booleans(),
        steps=st.lists(_maybe_statistics, max_size=6).map(tuple), exact=st.booleans(),
    )  # fmt: skip


def updates() -> st.SearchStrategy[UpdateProfile]:
    positive = st.one_of(st.floats(0), st.just(math.nan))
    return st.builds(
        UpdateProfile, name=_name, optimizer=st.just("Adam"), learning_rate=positive,
        epsilon=st.one_of(st.none(), positive), update_ratio=st.one_of(st.none(), positive), gradient_rms=positive,
    )  # fmt: skip


def _few(of: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(of, max_size=5).map(tuple)


def looks() -> st.SearchStrategy[SecondLook]:
    return st.builds(
        SecondLook, steps=st.integers(0, 3), optimizer=st.just("SGD"), layers=_few(layers()),
        parameters=_few(parameters()), loss=_loss, influences=st.dictionaries(_name, st.booleans(), max_size=3),
        updates=_few(updates()), unassigned=_few(_name), frozen_in_optimizer=_few(_name),
    )  # fmt: skip


def any_profile() -> st.SearchStrategy[Profile]:
    """A profile whose parts need not fit together."""
    return st.builds(
        Profile, layers=_few(layers()), parameters=_few(parameters()), trunk=_few(points()), times=_few(times()),
        coverage=st.builds(Coverage, observed=st.integers(0, 5), trainable=st.integers(0, 5)),
        loss=_loss, loss_source=_literal(Profile, "loss_source"), output_shape=st.one_of(st.none(), _shape),
        target_shape=st.one_of(st.none(), _shape), target_dtype=st.one_of(st.none(), _dtype), batch_size=_count,
        model_type=st.just("Net"), training=st.booleans(), torch_version=st.just("2"), headwater_version=st.just("0"),
        device=st.just("cpu"), dtype=_dtype, seed=st.just(0), second_look=st.one_of(st.none(), looks()),
    )  # fmt: skip


@cache
def _real_profiles() -> tuple[Profile, ...]:
    return (*(case.make().diagnose().profile for case in (*FAULTS, *HEALTHY)), troubled())


def _replaced(draw: st.DrawFn, rows: tuple[Any, ...], **fields: st.SearchStrategy[Any]) -> tuple[Any, ...]:
    """The rows, some left out, some with one field replaced."""
    kept = []
    for row in rows:
        fate = draw(st.integers(0, 9))
        if fate == 0:
            continue
        if fate <= 3:
            name = draw(st.sampled_from(sorted(fields)))
            row = dataclasses.replace(row, **{name: draw(fields[name])})
        kept.append(row)
    return tuple(kept)


@st.composite
def damaged_profile(draw: st.DrawFn) -> Profile:
    """A real profile in which some numbers became NaN, infinite, zero or missing, and some rows are gone."""
    found = draw(st.sampled_from(_real_profiles()))
    return found.replace(
        layers=_replaced(
            draw, found.layers, activation=statistics(), gradient=_maybe_statistics, on_trunk=st.booleans(),
            dead_fraction=_fraction, unit_count=_count, saturated_fraction=_fraction, slope_mean_square=_fraction,
            between_sample_fraction=_fraction, shape=_shape, input_rms_log10=_log10,
        ),
        parameters=_replaced(
            draw, found.parameters, gradient=_maybe_statistics, value=statistics(),
            state=_literal(ParameterProfile, "state"), duplicate_units=_count, layer=st.one_of(st.none(), _name),
        ),
        trunk=_replaced(draw, found.trunk, gradient=_maybe_statistics, kind=_literal(TrunkPoint, "kind")),
        times=_replaced(draw, found.times, steps=st.lists(_maybe_statistics, max_size=4).map(tuple)),
        second_look=draw(st.sampled_from([found.second_look, None])),
        loss=draw(_loss), output_shape=draw(st.one_of(st.none(), _shape)),
    )  # fmt: skip
