"""The verb that runs a study: wiring only."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import torch

from headwater._studies.answers import compose
from headwater._studies.charts import charts_of
from headwater._studies.evidence import Evidence
from headwater._studies.findings import find
from headwater._studies.observations import observe
from headwater._studies.prescription import BUDGET_SECONDS, prescribe_for
from headwater._studies.raw_matrices import ZeroCensus, matrix_views, one_run, zero_census
from headwater._studies.run import Progress, StudyRun, run_variants
from headwater._studies.tables import gain_comparison, grid_table, rules_table, shortcut_gain_table
from headwater._studies.underflow import underflow_table
from headwater.records.study import MatrixView, Observation, StudyResult, StudyTable
from headwater.studies import Study, study
from headwater.studies.activations import Activation, activation_name

__all__ = ["Progress", "demo", "run_study"]


def demo(
    name: str,
    *,
    seed: int | None = None,
    draws: int | None = None,
    depth: int | None = None,
    width: int | None = None,
    activation: Activation | None = None,
    init: str | None = None,
    progress: Progress | None = None,
) -> StudyResult:
    """Run one of the classic studies, as published or varied, and close it with a prescription.

    Args:
        name: ``deep-sigmoid``, ``shortcut``, ``activation-and-init``, ``raw-weights`` or ``init-strategies``.
        seed: of the measured run; None takes the study's own, or 0.
        draws: networks in each ensemble; None takes the study's, 1,000.
        depth: how many times the activation is applied.
        width: units of a hidden layer.
        activation: a name, or any elementwise function.
        init: name of an initialisation, or ``normal:STD``.
        progress: called with (what, done, total) as the work goes on.

    Returns:
        The result; ``str()`` prints it, ``plot()`` draws it, ``to_json()`` saves it.

    Raises:
        StudyError: the study, or one of its options, is unknown or makes no sense.
    """
    described = study(name).varied(depth=depth, width=width, activation=activation, init=init)
    options = {
        "depth": depth, "width": width, "activation": activation and activation_name(activation), "init": init,
    }  # fmt: skip
    varied = {key: str(value) for key, value in options.items() if value is not None}
    return run_study(
        described, seed=seed, draws=draws, varied=varied, prescription_seconds=BUDGET_SECONDS, progress=progress
    )


def run_study(
    described: Study,
    *,
    seed: int | None = None,
    draws: int | None = None,
    varied: dict[str, str] | None = None,
    prescription_seconds: float | None = None,
    progress: Progress | None = None,
) -> StudyResult:
    """Run any study.

    Args:
        described: what to run.
        seed: of the measured run; None takes the study's own, or 0.
        draws: networks in each ensemble; None takes the study's.
        varied: what differs from the published study, for the record.
        prescription_seconds: what the search for a repair of the first unhealthy network may take; None: no search.
        progress: called with (what, done, total) as the work goes on.

    Returns:
        The result.
    """
    started = time.perf_counter()
    if seed is None:
        seed = described.published_seed if described.published_seed is not None else 0
    with _one_thread():
        run = run_variants(described, seed=seed, draws=described.draws if draws is None else draws, progress=progress)
        observations = _observations(run)
        matrices = _matrices(run)
        tables = _tables(run)
        prescription = (
            prescribe_for(run, budget_seconds=prescription_seconds, progress=progress)
            if prescription_seconds is not None
            else None
        )
    evidence = Evidence(run, tables, observations, matrices)
    return StudyResult(
        name=described.name,
        title=described.title,
        question=described.question,
        source=described.source,
        statistic=described.statistic,
        seed=seed,
        draws=run.draws,
        varied=varied or {},
        variants=tuple(one.result for one in run),
        answers=compose(evidence),
        findings=find(run),
        observations=observations,
        tables=tuple(tables.values()),
        charts=charts_of(run),
        matrices=matrices,
        notes=described.notes,
        torch_version=str(torch.__version__),
        seconds=time.perf_counter() - started,
        prescription=prescription,
    )


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Compute in one thread: these matrices are small, and on a busy machine a second thread waits more than it works."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _observations(run: StudyRun) -> tuple[Observation, ...]:
    if "observations" not in run.study.extras:
        return ()
    censuses: dict[str, ZeroCensus] = {
        one.variant.name: zero_census(one.variant, loss=run.study.loss, draws=run.draws, seed=run.seed)
        for one in run
        if one.result.zero_fraction > 0.0
    }
    return observe(run, censuses)


def _matrices(run: StudyRun) -> tuple[MatrixView, ...]:
    if "matrices" not in run.study.extras:
        return ()
    return tuple(
        view
        for one in run
        for view in matrix_views(
            one.variant, one_run(one.variant.network, one.model, one.inputs, one.targets, run.study.loss)
        )
    )


def _tables(run: StudyRun) -> dict[str, StudyTable]:
    first = next(iter(run))
    makers: dict[str, Callable[[], StudyTable | None]] = {
        "underflow": lambda: underflow_table(first, run.study.loss, run.study.statistic, run.seed),
        "shortcut_gain": lambda: shortcut_gain_table(run),
        "grid": lambda: grid_table(run),
        "rules": lambda: rules_table(run),
        "gains": lambda: gain_comparison(run),
    }
    wanted = (*run.study.extras, "grid")
    tables = {name: make() for name, make in makers.items() if name in wanted}
    return {name: table for name, table in tables.items() if table is not None}
