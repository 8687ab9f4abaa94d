"""One engine for every study: build, diagnose, draw the ensemble, fit the rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from headwater._studies.ensemble import Ensemble, draw_ensemble
from headwater._studies.shortcut_grid import GridCell, run_grid
from headwater._studies.trends import WideTheory, curve, split, trends, wide_theory
from headwater._studies.verdicts import FURTHER, Diagnosed, diagnose_all, further_verdicts
from headwater.errors import StudyError
from headwater.records import Profile
from headwater.records.study import PrintedFigure, VariantResult
from headwater.studies import LOSSES, Study, Variant
from headwater.studies.activations import activation_name

__all__ = ["Progress", "StudyRun", "VariantRun", "run_variants"]

# A seeded figure is reproduced when it agrees to this relative error (the acceptance of the studies).
REPRODUCED = 1e-5
# The central 99.9 % of fewer draws than this says nothing (the acceptance of the studies).
ENOUGH = 1000
# Single precision loses gradients below 1e-45; deeper networks than this are drawn in double. Chosen by us: at 30
# sigmoid layers 26 decades are gone.
_DEEP = 30

Progress = Callable[[str, int, int], None]
"""``progress(what, done, total)``: called as the work goes on."""


@dataclass(frozen=True, slots=True)
class VariantRun:
    """One network of a study: the objects behind its :class:`VariantResult`.

    Attributes:
        variant: its description.
        result: the record.
        ensemble: the draws.
        theory: the wide-network prediction, or None.
        model: the module of the measured run.
        inputs: its samples.
        targets: its targets.
    """

    variant: Variant
    result: VariantResult
    ensemble: Ensemble
    theory: WideTheory | None
    model: nn.Module
    inputs: Tensor
    targets: Tensor


@dataclass(frozen=True, slots=True)
class StudyRun:
    """One study, run: what its tables, charts and answers are composed from.

    Attributes:
        study: its description.
        seed: of the measured run.
        draws: networks per ensemble.
        variants: name to run, in the study's order.
        grid: the cells of its shortcut grid; empty without one.
    """

    study: Study
    seed: int
    draws: int
    variants: Mapping[str, VariantRun]
    grid: tuple[GridCell, ...] = field(default=())

    def __iter__(self) -> Iterator[VariantRun]:
        return iter(self.variants.values())

    def get(self, name: str) -> VariantRun | None:
        """One network, or None when the study was varied and lost it."""
        return self.variants.get(name)


def run_variants(study: Study, *, seed: int, draws: int, progress: Progress | None = None) -> StudyRun:
    """Diagnose every network of a study once, and some further ones; draw its ensemble.

    Args:
        study: what to run.
        seed: set once, before the first network is built; torch's own random state is left as it was.
        draws: networks in each ensemble, two or more.
        progress: told how far the work is.

    Returns:
        The run.

    Raises:
        StudyError: fewer than two draws.
    """
    if draws < 2:
        raise StudyError(f"an interval needs 2 draws or more, got {draws}")
    grid_steps = len(study.grid.widths) * len(study.grid.initializations) * study.grid.draws if study.grid else 0
    further = min(draws, FURTHER)
    meter = _Meter(progress, study.name, len(study.variants) * (draws + further) + grid_steps)
    measured = diagnose_all(study, seed)
    runs: dict[str, VariantRun] = {}
    for variant in study:
        found = measured[variant.name]
        network = variant.network
        ensemble = draw_ensemble(
            network,
            variant.data,
            loss=study.loss,
            statistic=study.statistic,
            printed=study.printed_parameters(network),
            draws=draws,
            seed=seed,
            dtype=torch.float64 if network.depth > _DEEP else torch.float32,
            advance=meter.advance,
        )
        theory = wide_theory(network, variant.data)
        # another seed than the measured run's, so that "further" networks are none of those measured
        verdicts = further_verdicts(study, variant, seed=seed + 1, count=further, advance=meter.advance)
        result = _result(study, variant, found, ensemble, theory, seed, verdicts)
        runs[variant.name] = VariantRun(variant, result, ensemble, theory, found.model, found.inputs, found.targets)
    cells = tuple(run_grid(study.grid, seed, meter.advance)) if study.grid else ()
    return StudyRun(study, seed, draws, runs, cells)


class _Meter:
    def __init__(self, progress: Progress | None, what: str, total: int) -> None:
        self.progress, self.what, self.total, self.done = progress, what, total, 0

    def advance(self, count: int) -> None:
        self.done += count
        if self.progress is not None:
            self.progress(self.what, self.done, self.total)


def _result(
    study: Study, variant: Variant, found: Diagnosed, ensemble: Ensemble, theory: WideTheory | None, seed: int,
    further: Mapping[str, int],
) -> VariantResult:  # fmt: skip
    network, diagnosis = variant.network, found.diagnosis
    names = network.layer_names
    parts = split(network, ensemble)
    return VariantResult(
        name=variant.name,
        title=variant.title,
        description=f"{network.describe()}. {variant.data.describe()}; loss: {LOSSES[study.loss][1]}."
        + (f" {variant.note}" if variant.note else ""),
        activation=activation_name(network.activation),
        initialization=network.initialization,
        sizes=network.sizes,
        figures=_figures(study, variant, diagnosis.profile, ensemble, seed),
        profile=diagnosis.profile,
        trends=trends(network, ensemble, theory),
        curves=(
            curve("∂L/∂h", names, ensemble.preactivation_gradient),
            curve("∂L/∂W", names, ensemble.weight_gradient),
            curve("activation", names, ensemble.layer_input),
        ),
        slope_decades=parts[0] if parts else None,
        weight_decades=parts[1] if parts else None,
        zero_fraction=float(ensemble.zero_fraction.mean()),
        verdict=diagnosis.verdict,
        findings=diagnosis.findings,
        undecided=diagnosis.undecided,
        further_verdicts=further,
    )


def _figures(
    study: Study, variant: Variant, profile: Profile, ensemble: Ensemble, seed: int
) -> tuple[PrintedFigure, ...]:
    values = profile.gradients(study.statistic)
    names = study.printed_parameters(variant.network)
    published = variant.published or (None,) * len(names)
    return tuple(
        _figure(study, variant, name, values[name], figure, ensemble.statistic[:, i], seed)
        for i, (name, figure) in enumerate(zip(names, published, strict=True))
    )


def _figure(
    study: Study, variant: Variant, name: str, value: float, published: float | None, draws: Tensor, seed: int
) -> PrintedFigure:
    levels = torch.tensor([0.0005, 0.5, 0.9995], dtype=draws.dtype)
    low, median, high = torch.quantile(draws, levels, interpolation="nearest").tolist()
    if published is None:
        return PrintedFigure(parameter=name, value=value, low_log10=low, median_log10=median, high_log10=high)
    smallest, largest = variant.interval(published)
    error: float | None = None
    agrees: bool | None = None
    if study.published_seed == seed:
        error = abs(value - published) / abs(published)
        agrees = error <= REPRODUCED
    elif len(draws) >= ENOUGH:
        # what was printed stands for every value that rounds to it
        agrees = math.log10(largest) >= low and (smallest <= 0.0 or math.log10(smallest) <= high)
    decimals = variant.published_decimals
    return PrintedFigure(
        parameter=name,
        value=value,
        low_log10=low,
        median_log10=median,
        high_log10=high,
        published=published,
        published_text=f"{published:.5e}" if decimals is None else f"{published:.{decimals}f}",
        percentile=float((draws < math.log10(published)).double().mean()) if published > 0.0 else None,
        relative_error=error,
        agrees=agrees,
    )
