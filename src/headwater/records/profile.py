"""What one forward and one backward showed: layers, parameters, trunk, time, coverage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from headwater.records.lookup import find_layer, find_row, no_such
from headwater.records.saved import Saved
from headwater.records.statistics import Spread, Statistics

__all__ = [
    "Coverage",
    "GradientState",
    "LayerKind",
    "LayerProfile",
    "LossSource",
    "ParameterProfile",
    "ParameterRole",
    "Profile",
    "SecondLook",
    "TimeProfile",
    "TrunkKind",
    "TrunkPoint",
    "UpdateProfile",
]


GradientState = Literal["frozen", "none", "exact_zero", "underflow", "finite", "nonfinite"]
"""Why a gradient is or is not there.

``frozen``: requires_grad is False. ``none``: the loss does not depend on it. ``exact_zero``: every element is 0.
``underflow``: what there is lies below the smallest normal number of its dtype. ``nonfinite``: it holds NaN or
infinity. ``finite``: anything else.
"""
ParameterRole = Literal["weight", "bias", "normalization", "embedding", "recurrent", "attention", "other"]
LayerKind = Literal[
    "linear", "convolution", "activation", "normalization", "attention", "recurrent", "embedding", "pooling",
    "dropout", "softmax", "container", "other",
]  # fmt: skip
LossSource = Literal["loss_fn", "loss", "model", "probe", "unrecorded"]
TrunkKind = Literal[
    "weights", "activation", "normalization", "residual", "attention", "recurrent", "embedding", "pooling", "dropout",
    "scale", "branches", "reshape", "loss", "other",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerProfile:
    """One tensor that one module call produced, and the gradient that came back to it.

    Attributes:
        name: the ``named_modules()`` name; ``#k`` is added when the module is called more than once, and a path
            such as ``[1][0]`` or ``['logits']`` for every further tensor of a structured output. The model itself
            is ``(model)``.
        type: the module's class name.
        kind: what sort of layer it is.
        order: position in execution order, by the completion of the call, from 0.
        call: which call of the module this is, from 0.
        aliases: other module names whose output is this very tensor (a Sequential and its last child) or under
            which the same module is registered.
        on_trunk: whether every path from the loss to the first parameters passes through this tensor.
        shape: of the output tensor.
        dtype: of the output tensor, such as ``float32``.
        activation: statistics of the output.
        gradient: statistics of ∂L/∂output; None when none came back (see ``gradient_missing``).
        gradient_missing: why ``gradient`` is None, else None.
        parameters: names of the parameters this module owns (an uncalled child's included, such as
            ``nn.MultiheadAttention``'s ``out_proj``).
        dead_fraction: for an activation: share of units with |φ'| < 1e-3·max for every sample; None otherwise.
        unit_count: for an activation: the number of units (features or channels) that ``dead_fraction`` is over.
        dead_units: indices of the dead units, at most 64.
        saturated_fraction: share of elements that sit on a flat, bounded part of the activation (or rows of a
            softmax that are one-hot); None for other layers.
        saturated_at_unit_normal: what ``saturated_fraction`` is for a standard normal input: 0 for a sigmoid, 0.5 for a
            ReLU6.
        slope_mean_square: for an activation: mean of φ'² over the elements that entered, the factor by which it
            multiplies the squared gradient when the two are independent.
        between_sample_fraction: variance across the samples of the batch over the second moment: the part of the
            signal that tells samples apart, 0 to 1; None for a batch of one.
        input_rms_log10: log10 rms of the first tensor that entered the module; None when it took none.
        position_cosine: for (B, T, D) outputs: mean cosine between two positions of one sample.
        spread: over ``draws``: log10 statistics by name, such as ``"gradient.rms"``.
    """

    name: str
    type: str
    kind: LayerKind
    order: int
    call: int = 0
    aliases: tuple[str, ...] = ()
    on_trunk: bool
    shape: tuple[int, ...]
    dtype: str
    activation: Statistics
    gradient: Statistics | None
    gradient_missing: str | None = None
    parameters: tuple[str, ...] = ()
    dead_fraction: float | None = None
    unit_count: int | None = None
    dead_units: tuple[int, ...] = ()
    saturated_fraction: float | None = None
    saturated_at_unit_normal: float | None = None
    slope_mean_square: float | None = None
    between_sample_fraction: float | None = None
    position_cosine: float | None = None
    input_rms_log10: float | None = None
    spread: Mapping[str, Spread] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterProfile:
    """One parameter and its gradient, counted once however many modules share it.

    Attributes:
        name: the first name in ``named_parameters()``, wrapper prefixes stripped.
        aliases: the other names of the same storage.
        shape: of the parameter.
        dtype: of the parameter, such as ``float32``.
        role: what sort of parameter it is; depth trends are computed within a role.
        layer: name of the layer row that owns it, or None when no module call owns it.
        state: see :data:`GradientState`.
        value: statistics of the values.
        gradient: statistics of ∂L/∂value; None when the state is ``frozen`` or ``none``.
        fan_in: inputs per output unit of a weight; None for other roles.
        fan_out: outputs per input unit of a weight; None for other roles.
        duplicate_units: number of output units (rows) of the weight that equal an earlier row bit for bit, with an
            equal gradient row; None where rows mean nothing.
        zero_rows: output units whose gradient row is exactly zero; None where rows mean nothing.
        zero_columns: input units whose gradient column is exactly zero; None where columns mean nothing.
        spread: over ``draws``: log10 statistics by name.
    """

    name: str
    aliases: tuple[str, ...] = ()
    shape: tuple[int, ...]
    dtype: str
    role: ParameterRole
    layer: str | None
    state: GradientState
    value: Statistics
    gradient: Statistics | None
    fan_in: int | None = None
    fan_out: int | None = None
    duplicate_units: int | None = None
    zero_rows: int | None = None
    zero_columns: int | None = None
    spread: Mapping[str, Spread] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrunkPoint:
    """One tensor on the trunk, from the first parameters' output (``order`` 0) towards the loss.

    Attributes:
        order: position along the trunk, from the input side.
        operation: the autograd node that made the tensor, such as ``AddmmBackward0``.
        kind: what the *next* operation towards the loss, the one that carries the gradient back to this tensor,
            does (the loss for the last point).
        layer: the innermost module call that made the tensor, or None for functional code outside any child.
        next_layer: the innermost module call of the operation between this tensor and the next one.
        gradient: statistics of ∂L/∂tensor; None when none came back.
    """

    order: int
    operation: str
    kind: TrunkKind
    layer: str | None
    next_layer: str | None
    gradient: Statistics | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeProfile:
    """The gradient over time inside one recurrent module.

    Attributes:
        layer: name of the recurrent layer's row.
        state: ``hidden`` (∂L/∂h_t), ``cell`` (∂L/∂c_t, LSTM) or ``input`` (∂L/∂x_t).
        stack: which of the stacked layers, from 0; 0 for ``input``.
        reverse: whether this is the backward direction of a bidirectional layer.
        steps: one Statistics per time step, t = 0 first; None where no sequence reaches that step.
        exact: whether the unrolled cells reproduced the module's own output; when False, ``note`` says why.
        note: what to know about these numbers, or an empty string.
    """

    layer: str
    state: Literal["hidden", "cell", "input"]
    stack: int
    reverse: bool
    steps: tuple[Statistics | None, ...]
    exact: bool
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """What was and was not seen.

    Attributes:
        observed: trainable parameters whose gradient was recorded.
        trainable: trainable parameters, shared ones counted once.
        missing: parameter name to reason, for every parameter without a recorded gradient (frozen ones included).
        modules_observed: module calls that gave a row.
        modules_unseen: module name to reason, for modules that own parameters and were never called, and for
            outputs that hold no floating-point tensor.
        functional: operations on the trunk outside any leaf module (``ReluBackward0``): their gradient is in the
            trunk, their activations are not observed.
    """

    observed: int
    trainable: int
    missing: Mapping[str, str] = field(default_factory=dict)
    modules_observed: int = 0
    modules_unseen: Mapping[str, str] = field(default_factory=dict)
    functional: tuple[str, ...] = ()

    def __str__(self) -> str:
        percent = 100 * self.observed / self.trainable if self.trainable else 0.0
        line = f"observed {self.observed} of {self.trainable} trainable parameters ({percent:.0f} %)"
        reasons: dict[str, list[str]] = {}
        for name, reason in self.missing.items():
            reasons.setdefault(reason, []).append(name)
        for reason, names in reasons.items():
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            line += f"; {reason}: {shown}"
        return line


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateProfile:
    """What one step of the user's optimizer does to one parameter.

    Attributes:
        name: of the parameter.
        optimizer: the optimizer's class name.
        learning_rate: of its group.
        epsilon: the optimizer's eps; None for one that has none.
        update_ratio: ‖Δw‖ / ‖w‖ of the first step, taken on a copy; None when w is all zero.
        gradient_rms: rms of the gradient that the step used.
    """

    name: str
    optimizer: str
    learning_rate: float
    epsilon: float | None
    update_ratio: float | None
    gradient_rms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondLook:
    """The same batch on a copy, a few optimizer steps later: tells what is transient from what stays.

    Attributes:
        steps: how many steps were taken.
        optimizer: class name of the optimizer, or how the step was made.
        layers: the rows after the last step.
        parameters: the rows after the last step.
        loss: after the last step; may be non-finite.
        influences: parameter name to whether the loss moves when the parameter is perturbed, for the parameters
            that received no gradient: a parameter that moves the loss and gets no gradient is cut off.
        updates: what one step of the user's optimizer does; empty when none was given.
        unassigned: trainable parameters that are in no group of the user's optimizer.
        frozen_in_optimizer: parameters in the optimizer that are frozen.
    """

    steps: int
    optimizer: str
    layers: tuple[LayerProfile, ...]
    parameters: tuple[ParameterProfile, ...]
    loss: float
    influences: Mapping[str, bool] = field(default_factory=dict)
    updates: tuple[UpdateProfile, ...] = ()
    unassigned: tuple[str, ...] = ()
    frozen_in_optimizer: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile(Saved):
    """The gradient profile of a model: one forward and one backward.

    Attributes:
        layers: one row per module call that produced a tensor of its own, in execution order.
        parameters: every parameter once, in the execution order of its first use.
        trunk: the tensors that every path from the loss to the first parameters passes through, input side first.
        times: the gradient over time of every recurrent module.
        coverage: what was seen, and reasons for what was not.
        loss: its value (of the first draw); NaN where it is ``unrecorded``.
        loss_source: ``loss_fn``, ``loss``, ``model`` (the output's own ``loss``), ``probe`` (no loss at all: a
            Gaussian cotangent of unit variance on the output; it shows the architecture, not a task) or
            ``unrecorded`` (a step of a training run whose loop did not give the loss).
        output_shape: shape of the model's first output tensor; None when ``loss`` hid it.
        target_shape: shape of the targets; None when they are no single tensor.
        target_dtype: dtype of the targets; None when they are no single tensor.
        batch_size: first dimension of the first input tensor; None when there is none.
        model_type: the model's class name.
        training: whether the model was in training mode.
        torch_version: of the measurement.
        headwater_version: of the measurement.
        device: of the first parameter.
        dtype: of the first floating-point parameter.
        seed: ``torch.initial_seed()`` at the measurement.
        draws: how many draws of the weights the statistics are over (1: the model as it was given).
        nonfinite_inputs: which input tensors hold NaN or infinity, and how many elements.
        second_look: the same batch a few steps later, where the diagnosis needed one; else None.
        warnings: warnings that the forward or the loss issued, once each.
    """

    SCHEMA: ClassVar[str] = "headwater.profile"

    layers: tuple[LayerProfile, ...]
    parameters: tuple[ParameterProfile, ...]
    trunk: tuple[TrunkPoint, ...]
    times: tuple[TimeProfile, ...]
    coverage: Coverage
    loss: float
    loss_source: LossSource
    output_shape: tuple[int, ...] | None
    target_shape: tuple[int, ...] | None
    target_dtype: str | None = None
    batch_size: int | None
    model_type: str
    training: bool
    torch_version: str
    headwater_version: str
    device: str
    dtype: str
    seed: int
    draws: int = 1
    warnings: tuple[str, ...] = ()
    nonfinite_inputs: Mapping[str, int] = field(default_factory=dict)
    second_look: SecondLook | None = None

    # ---------------------------------------------------------------- look-up

    def layer(self, name: str) -> LayerProfile:
        """The row of one layer.

        Args:
            name: its name or one of its aliases; the first call when a reused module is named without ``#k``.

        Returns:
            The row.

        Raises:
            KeyError: no layer has this name; the message suggests near ones.
        """
        return find_layer(self.layers, name)

    def parameter(self, name: str) -> ParameterProfile:
        """The row of one parameter.

        Args:
            name: its name or one of its aliases.

        Returns:
            The row.

        Raises:
            KeyError: no parameter has this name; the message suggests near ones.
        """
        return find_row(self.parameters, name, "parameter")

    def gradients(self, statistic: str = "mean_abs") -> dict[str, float]:
        """One statistic of every recorded parameter gradient.

        Args:
            statistic: ``mean``, ``mean_abs``, ``rms``, ``l2_norm``, ``std``, ``max_abs``, ``min_abs_nonzero``,
                ``zero_fraction``, ``kurtosis``, ``nan_count``, ``inf_count`` or ``count``.

        Returns:
            Parameter name to value; parameters without a gradient are not in it (see ``coverage.missing``).

        Raises:
            KeyError: the statistic is unknown.
        """
        known = (
            "mean", "mean_abs", "rms", "rms_log10", "l2_norm", "std", "variance", "max_abs", "min_abs_nonzero",
            "zero_fraction", "kurtosis", "nan_count", "inf_count", "count",
        )  # fmt: skip
        if statistic not in known:
            raise KeyError(no_such("statistic", statistic, list(known)))
        return {row.name: getattr(row.gradient, statistic) for row in self.parameters if row.gradient is not None}

    def through_time(
        self, layer: str, state: str = "hidden", *, stack: int | None = None, reverse: bool | None = None
    ) -> tuple[float, ...]:
        """Root mean square of the gradient at each time step of a recurrent layer.

        Args:
            layer: name of an ``nn.RNN``, ``nn.LSTM``, ``nn.GRU``, or of a cell that was called once per step.
            state: ``hidden`` (∂L/∂h_t), ``cell`` (∂L/∂c_t) or ``input`` (∂L/∂x_t).
            stack: which of the stacked layers; None pools all of them.
            reverse: which direction; None pools both.

        Returns:
            One rms per time step, t = 0 first; NaN for a step that no sequence of the batch reaches.

        Raises:
            KeyError: the layer is not recurrent, or has no such state.
        """
        of_layer = [t for t in self.times if t.layer == layer]
        if not of_layer:
            raise KeyError(no_such("recurrent layer", layer, sorted({t.layer for t in self.times})))
        wanted = [
            t
            for t in of_layer
            if t.state == state and stack in (None, t.stack) and (reverse is None or reverse == t.reverse)
        ]
        if not wanted:
            have = sorted({f"state={t.state!r}, stack={t.stack}, reverse={t.reverse}" for t in of_layer})
            raise KeyError(
                f"{layer} has no state={state!r}, stack={stack}, reverse={reverse}; it has {'; '.join(have)}"
            )
        length = max(len(t.steps) for t in wanted)
        return tuple(
            Statistics.merge(s for t in wanted if i < len(t.steps) and (s := t.steps[i]) is not None).rms
            for i in range(length)
        )

    @property
    def trunk_layers(self) -> tuple[LayerProfile, ...]:
        """The rows that lie on the trunk, in execution order."""
        return tuple(row for row in self.layers if row.on_trunk)

    # ---------------------------------------------------------------- data

    def replace(self, **changes: Any) -> Profile:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def rows(self) -> list[dict[str, Any]]:
        """One flat mapping per layer and per parameter: what CSV and pandas show."""
        from headwater.records.table import profile_rows

        return profile_rows(self)

    def to_csv(self, path: str | Path | None = None) -> str:
        """The rows as CSV, also written to ``path`` when one is given.

        Args:
            path: where to write; the file is replaced whole or not at all.

        Returns:
            The CSV text; an unobserved value is an empty cell, never 0.
        """
        from headwater.records.table import rows_to_csv

        return rows_to_csv(self.rows(), path)

    def to_pandas(self) -> Any:
        """The rows as a ``pandas.DataFrame`` (needs ``pip install headwater[pandas]``)."""
        from headwater.records.table import rows_to_pandas

        return rows_to_pandas(self.rows())
