"""One forward and one backward under observation, and what they showed."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from headwater.capture._torch_compat import (
    hooks_after_accumulation_silenced,
    is_recomputing_node,
    nested_backwards,
)
from headwater.capture.graph import AutogradGraph, walk
from headwater.capture.guard import untouched
from headwater.capture.names import ROOT, clean_names, make_filter
from headwater.capture.parameters import NamedParameter, list_parameters, parameter_rows, with_underflow
from headwater.capture.recorder import Call, Recorder, Row
from headwater.capture.recurrent import time_profiles
from headwater.capture.trunk import Trunk, find_trunk
from headwater.errors import LossError, NothingObservedError
from headwater.records import Coverage, LayerProfile, ParameterProfile, TimeProfile, TrunkPoint

__all__ = ["Observation", "observe"]


@dataclass(frozen=True)
class Observation:
    """What one forward and backward showed; the fields are those of :class:`headwater.records.Profile`."""

    layers: tuple[LayerProfile, ...]
    parameters: tuple[ParameterProfile, ...]
    trunk: tuple[TrunkPoint, ...]
    times: tuple[TimeProfile, ...]
    coverage: Coverage
    loss: float
    model_type: str
    warnings: tuple[str, ...]


def observe(
    model: nn.Module,
    run: Callable[[], Tensor],
    *,
    batch_size: int | None = None,
    include: object = None,
    exclude: object = None,
) -> Observation:
    """Run a forward and a backward and record what passes, leaving the model as it was.

    Args:
        model: the model whose modules and parameters are observed.
        run: computes the scalar loss by calling the model.
        batch_size: first dimension of the inputs, or None.
        include: see :func:`headwater.capture.names.make_filter`.
        exclude: likewise.

    Returns:
        The observation.
    """
    names = clean_names(model)
    keep = make_filter(include, exclude)
    recorder = Recorder(names, keep, batch_size)
    everything = include is None and exclude is None
    with untouched(model), _eager(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with recorder.attached():
            with recorder.functions() if everything else nullcontext():
                loss = _scalar(run())
            parameters = list_parameters(names)
            wanted = [p for p in parameters if keep(p.name, p.tensor, names[p.owner][0], p.owner)]
            graph = walk([loss.grad_fn])
            trainable = {id(p.tensor): p.tensor for p in parameters if p.tensor.requires_grad}
            trunk = find_trunk(graph, recorder.rows, recorder.calls, trainable)
            if everything:
                trunk.watch()
            recorder.phase = "backward"
            try:
                # Of all of them, also under a filter: a row before the wanted parameters needs its gradient too.
                with nested_backwards() as roots:
                    gradients = _gradients(loss, list(trainable.values()), graph)
            finally:
                trunk.release()
        trunk.absorb_recomputed(recorder.rows, trainable, roots)
        if not gradients:
            raise NothingObservedError(
                f"the loss does not depend on any of the {len(trainable)} trainable parameters: every gradient is "
                "None. Is the output detached, or does the loss use another model's output?"
            )
        if not wanted and not recorder.rows:
            raise NothingObservedError(
                f"include={include!r} and exclude={exclude!r} leave no module and no parameter to look at; names are "
                f"those of named_modules() and named_parameters(), such as {parameters[0].name!r}"
            )
        naming = _Naming(recorder, names)
        times = [
            profile
            for call in recorder.calls
            if call.recurrent is not None
            for profile in time_profiles(call.recurrent, naming.of_call[call])
        ]
        owners = _owners(wanted, recorder, naming, names)
        rows = parameter_rows(wanted, gradients, owners)
        layers = _layers(recorder.rows, trunk, naming, owners, wanted)
        rows = with_underflow(rows, layers)
        rows.sort(key=_by_first_use(rows, layers))
        times += _cell_times(recorder.rows, layers)
        times += trunk.loops(wanted)
    return Observation(
        layers=tuple(layers),
        parameters=tuple(rows),
        trunk=trunk.points(naming.of_call),
        times=tuple(times),
        coverage=_coverage(rows, parameters, recorder, trunk, names, owners, wanted),
        loss=float(loss.detach()),
        model_type=next(type(m).__name__ for m in reversed(list(names)) if "" in names[m]),
        warnings=tuple(dict.fromkeys(str(w.message) for w in caught)),
    )


@contextmanager
def _eager() -> Iterator[None]:
    """Run compiled (sub)models eagerly: hooks do not fire inside compiled code."""
    # Where nothing was compiled, torch._dynamo is not loaded yet, and loading it costs seconds.
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _scalar(loss: object) -> Tensor:
    if not isinstance(loss, Tensor):
        raise LossError(
            f"the loss should be a scalar tensor, got {type(loss).__name__}; return the tensor itself, not loss.item()"
        )
    if loss.numel() != 1:
        raise LossError(
            f"the loss should be a scalar, got shape {tuple(loss.shape)}; reduce it, for example with .mean() or "
            "reduction='mean'"
        )
    if loss.is_complex():
        raise LossError("the loss is complex; take its real part or its absolute value")
    if loss.grad_fn is None:
        raise NothingObservedError(
            "the loss does not depend on any parameter (it has no grad_fn). Is the output detached, or computed under "
            "torch.no_grad()?"
        )
    return loss.reshape(())


def _gradients(loss: Tensor, parameters: Sequence[Tensor], graph: AutogradGraph) -> dict[int, Tensor]:
    """∂L/∂parameter by ``id``, for the parameters that the loss depends on.

    ``torch.autograd.grad`` touches no ``.grad`` and fires no optimizer hook. Reentrant checkpointing refuses it; then
    ``backward`` runs with every leaf's ``.grad`` put aside.
    """
    if not any(is_recomputing_node(node) for node in graph.nodes):
        if not parameters:
            return {}
        found = torch.autograd.grad(loss, list(parameters), allow_unused=True)
        return {id(p): g for p, g in zip(parameters, found, strict=True) if g is not None}
    leaves = list({id(t): t for t in (*parameters, *graph.leaves.values())}.values())
    aside = [(t, t.grad) for t in leaves]
    with hooks_after_accumulation_silenced(leaves):
        try:
            for leaf in leaves:
                leaf.grad = None
            loss.backward()
            return {id(p): p.grad for p in parameters if p.grad is not None}
        finally:
            for leaf, gradient in aside:
                leaf.grad = gradient


class _Naming:
    """Names of calls and rows as people read them: ``fc1``, ``fc1#2`` for a reused module, ``lstm[1][0]``."""

    def __init__(self, recorder: Recorder, names: Mapping[nn.Module, tuple[str, ...]]) -> None:
        repeated = {call.module for call in recorder.calls if call.index > 0}
        self.of_call: dict[Call, str] = {
            call: (call.name or ROOT) + (f"#{call.index}" if call.module in repeated else "") for call in recorder.calls
        }

    def of_row(self, row: Row) -> str:
        return self.of_call.get(row.call, row.call.name or ROOT) + row.path


def _owners(
    parameters: Sequence[NamedParameter],
    recorder: Recorder,
    naming: _Naming,
    names: Mapping[nn.Module, tuple[str, ...]],
) -> dict[int, str]:
    """``id(parameter)`` to the row it belongs to: its owner's, or that of the nearest ancestor that was called."""
    first_row: dict[str, str] = {}
    for row in recorder.rows:
        if not row.path.startswith(":"):
            first_row.setdefault(row.call.name, naming.of_row(row))
    owners: dict[int, str] = {}
    for parameter in parameters:
        path = names[parameter.owner][0]
        # weight_norm and its kin keep the weight two levels below the layer it is for.
        path = path.split(".parametrizations.")[0] if ".parametrizations." in path else path
        path = "" if path.startswith("parametrizations.") else path
        while path not in first_row and path:
            path = path.rpartition(".")[0]
        if path in first_row:
            owners[id(parameter.tensor)] = first_row[path]
    return owners


def _layers(
    rows: Sequence[Row],
    trunk: Trunk,
    naming: _Naming,
    owners: Mapping[int, str],
    parameters: Sequence[NamedParameter],
) -> list[LayerProfile]:
    owned: dict[str, list[str]] = {}
    for parameter in parameters:
        if id(parameter.tensor) in owners:
            owned.setdefault(owners[id(parameter.tensor)], []).append(parameter.name)
    layers = []
    for order, row in enumerate(rows):
        name = naming.of_row(row)
        missing = None
        if row.gradient is None:
            missing = (
                "the loss does not depend on it"
                if row.requires_grad
                else "no trainable parameter comes before it, or autograd was off there"
            )
        slope = row.slope
        layers.append(
            LayerProfile(
                name=name,
                type=row.type,
                kind=row.kind,
                order=order,
                call=row.call.index,
                aliases=tuple(dict.fromkeys(a or ROOT for a in row.aliases)),
                on_trunk=trunk.on_trunk(row),
                shape=row.shape,
                dtype=str(row.dtype).removeprefix("torch."),
                activation=row.activation,
                gradient=row.gradient,
                gradient_missing=missing,
                parameters=tuple(owned.get(name, ())),
                dead_fraction=slope.dead_fraction if slope else None,
                unit_count=slope.unit_count if slope else None,
                dead_units=slope.dead_units if slope else (),
                saturated_fraction=slope.saturated_fraction if slope else row.saturated_fraction,
                saturated_at_unit_normal=slope.saturated_at_unit_normal if slope else None,
                slope_mean_square=slope.slope_mean_square if slope else None,
                between_sample_fraction=row.between_sample_fraction,
                position_cosine=row.position_cosine,
                input_rms_log10=row.input_rms_log10,
            )
        )
    return layers


def _by_first_use(
    rows: Sequence[ParameterProfile], layers: Sequence[LayerProfile]
) -> Callable[[ParameterProfile], tuple[int, int]]:
    order = {layer.name: layer.order for layer in layers}
    position = {row.name: i for i, row in enumerate(rows)}
    last = len(order)
    return lambda row: (order.get(row.layer or "", last), position[row.name])


def _cell_times(rows: Sequence[Row], layers: Sequence[LayerProfile]) -> list[TimeProfile]:
    """Cells that a Python loop calls once per step: each call is a time step."""
    series: dict[tuple[str, str], list[LayerProfile]] = {}
    for row, layer in zip(rows, layers, strict=True):
        if isinstance(row.call.module, nn.RNNCellBase):
            series.setdefault((row.call.name or ROOT, "cell" if row.path == "[1]" else "hidden"), []).append(layer)
    return [
        TimeProfile(
            layer=name,
            state="cell" if state == "cell" else "hidden",
            stack=0,
            reverse=False,
            steps=tuple(step.gradient for step in steps),
            exact=True,
            note="one call of the cell is one step",
        )
        for (name, state), steps in series.items()
        if len(steps) > 1
    ]


def _coverage(
    rows: Sequence[ParameterProfile],
    parameters: Sequence[NamedParameter],
    recorder: Recorder,
    trunk: Trunk,
    names: Mapping[nn.Module, tuple[str, ...]],
    owners: Mapping[int, str],
    wanted: Sequence[NamedParameter],
) -> Coverage:
    looked_at = {p.name for p in wanted}
    missing = {p.name: "excluded" for p in parameters if p.name not in looked_at}
    missing |= {row.name: row.state for row in rows if row.gradient is None}
    called = {call.module for call in recorder.calls}
    unseen = dict(recorder.without_tensor)
    for module, module_names in names.items():
        name = module_names[0] or ROOT
        if module in called or not any(p is not None for p in module._parameters.values()):
            continue
        if isinstance(module, torch.jit.ScriptModule):
            unseen[name] = "TorchScript: takes no hook"
        elif any(id(p) in owners for p in module._parameters.values() if p is not None):
            unseen[name] = "never called as a module; its parameters are listed with the module that uses them"
        else:
            unseen[name] = "never called"
    return Coverage(
        observed=sum(row.gradient is not None for row in rows),
        trainable=sum(p.tensor.requires_grad for p in parameters),
        missing=missing,
        modules_observed=len(recorder.rows),
        modules_unseen=unseen,
        functional=trunk.functional_operations(),
    )
