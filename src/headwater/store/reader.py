"""A recorded run, read from its file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from headwater.records.display import Displayed
from headwater.records.finding import Finding
from headwater.records.histogram import Histogram
from headwater.records.json_codec import decode
from headwater.records.lookup import find_row, no_such
from headwater.records.profile import Profile
from headwater.records.run import RecordedStep, StatisticMatrix
from headwater.records.statistics import Statistics
from headwater.records.step import GradientPhase, Quantity, RunEvent, StepRecord, WatchedTensor, histogram_of_row
from headwater.records.step_profile import RunContext, profile_of_step
from headwater.store import logbook
from headwater.store.contributions import shares
from headwater.store.database import Database
from headwater.store.derived import Readings, known_statistics, parse_statistic, statistics_of
from headwater.store.history import History, StoredBlock, StoredStep
from headwater.store.logbook import Session
from headwater.store.matrix import statistic_matrix
from headwater.store.nonfinite import nonfinite_elements
from headwater.store.summary import summary_of

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Run", "open_run"]

_LAYER_QUANTITIES = ("activation", "output_gradient", "units")


def open_run(path: str | Path) -> Run:
    """Read a run that ``headwater.watch`` recorded, also while it is being written.

    Args:
        path: the folder that was given as ``run=``, or the ``run.sqlite`` in it.

    Returns:
        The run.

    Raises:
        RecordError: there is no run, or its file is damaged, of another program, or of a newer headwater.
    """
    return Run(path)


class Run(Displayed):
    """A recorded run. Nothing is loaded until it is asked for, and what another process adds is seen at once.

    Of a resumed run the later session counts: rows of an earlier one at and after the step where the later one began
    stay in the file and are not read.

    Args:
        path: the run's folder, or its file.

    Raises:
        RecordError: there is no run, or its file is damaged, of another program, or of a newer headwater.
    """

    def __init__(self, path: str | Path) -> None:
        self._database = Database(path)
        self._history = History(self._database)

    # ---------------------------------------------------------------- the run as a whole

    @property
    def path(self) -> Path:
        """The run's file."""
        return self._database.file

    @property
    def name(self) -> str:
        """What the run is called: the last part of its path."""
        return self.path.resolve().parent.name

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Versions, model class, options, schedule, host, when it began, the cost so far (``overhead``)."""
        return logbook.metadata(self._history)

    @property
    def sessions(self) -> tuple[Session, ...]:
        """Every attach, in order."""
        return logbook.sessions(self._database)

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the model/optimizer pairs; ``("",)`` when there is only one."""
        names = dict.fromkeys(each.row.group for each in self._history.steps())
        return tuple(names) or tuple(dict.fromkeys(tensor.group for tensor in self.tensors)) or ("",)

    @property
    def tensors(self) -> tuple[WatchedTensor, ...]:
        """Everything that was watched, layers and parameters, in execution order."""
        return tuple(self._history.tensors().values())

    @property
    def steps(self) -> tuple[int, ...]:
        """The recorded optimizer steps, ascending, each once."""
        return tuple(dict.fromkeys(each.row.step for each in self._history.whole_steps()))

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the alerts found, in the order of the steps; ``finding.step`` says when it began."""
        return logbook.findings(self._history)

    @property
    def events(self) -> tuple[RunEvent, ...]:
        """What happened, in order; of every session."""
        return logbook.events(self._database)

    def recorded_steps(self, group: str | None = None) -> tuple[RecordedStep, ...]:
        """The rows of the recorded steps, without micro-batches.

        Args:
            group: of one model/optimizer pair; None for all of them.

        Returns:
            In the order of the steps.

        Raises:
            KeyError: there is no such group.
        """
        if group is not None and group not in self.groups:
            raise KeyError(no_such("group", group, self.groups))
        return tuple(each.row for each in self._history.whole_steps() if group is None or each.row.group == group)

    # ---------------------------------------------------------------- one step

    def record(self, step: int, group: str = "", micro: int | None = None) -> StepRecord:
        """One recorded step with everything in it.

        Args:
            step: the optimizer step.
            group: the model/optimizer pair.
            micro: which micro-batch or closure call; None for the step as a whole.

        Returns:
            The record as it was written; a tensor that was not observed is in no block.

        Raises:
            KeyError: the step was not recorded; the message names the nearest ones.
        """
        return self._record(self._stored(step, group, micro))

    def records(self) -> Iterator[StepRecord]:
        """Every recorded step and micro-batch, in order, one at a time."""
        for stored in self._history.steps():
            yield self._record(stored)

    def profile(self, step: int, group: str = "") -> Profile:
        """The gradient profile of one recorded step.

        Values of parameters are the latest ones recorded at or before it.

        Args:
            step: the optimizer step.
            group: the model/optimizer pair.

        Returns:
            The same record that ``headwater.measure`` gives.

        Raises:
            KeyError: the step was not recorded; the message names the nearest ones.
        """
        stored = self._stored(step, group, None)
        return profile_of_step(self._record(stored), self._context(group), self._values_until(step, group))

    def top_contributors(self, step: int, group: str = "") -> tuple[tuple[str, float], ...]:
        """(parameter, share of the squared norm of the whole gradient) at a recorded step.

        The gradient is the one the optimizer used. Where it has NaN or infinite elements, the share is that of these
        elements instead.

        Args:
            step: the optimizer step.
            group: the model/optimizer pair.

        Returns:
            Largest share first; the shares sum to 1. Empty when no gradient was recorded, or all of it is zero.

        Raises:
            KeyError: the step was not recorded; the message names the nearest ones.
        """
        stored = self._stored(step, group, None)
        block = self._record(stored, "gradient").block("gradient")
        return () if block is None else shares(block)

    def pooled(
        self,
        tensors: Sequence[str],
        quantity: Quantity,
        step: int,
        *,
        phase: GradientPhase | None = None,
        group: str = "",
    ) -> Statistics:
        """Statistics of several tensors taken together: exactly those of their concatenation.

        Args:
            tensors: names.
            quantity: ``value``, ``gradient``, ``activation`` or ``output_gradient``.
            step: the optimizer step.
            phase: of a gradient; None for the one the optimizer used.
            group: the model/optimizer pair.

        Returns:
            The merged statistics.

        Raises:
            KeyError: a tensor, or the step, is unknown or was not observed.
        """
        stored = self._stored(step, group, None)
        block = self._record(stored, quantity).block(quantity, phase)
        if block is None or "count" not in block.columns:
            raise KeyError(f"no whole statistics of {quantity!r} were recorded at step {step}")
        found = {tensor.name: statistics for tensor, statistics in block.statistics()}
        names = [self._tensor(name, quantity)[1].name for name in tensors]
        for name in names:
            if name not in found:
                raise KeyError(f"{name!r} was not observed at step {step}")
        return Statistics.merge([found[name] for name in dict.fromkeys(names)])

    # ---------------------------------------------------------------- over time

    def series(
        self, tensor: str, statistic: str, *, phase: GradientPhase | None = None
    ) -> tuple[tuple[int, float], ...]:
        """(step, value) of one statistic of one tensor over the run.

        Args:
            tensor: name, or alias.
            statistic: quantity and name, such as ``gradient.rms``, ``activation.zero_fraction``,
                ``update.update_ratio`` or ``units.dead_fraction``; ``_log10`` may be added.
            phase: of a gradient; None for the one the optimizer used.

        Returns:
            Where it was observed, in the order of the steps; NaN where it was and is undefined.

        Raises:
            KeyError: there is no such tensor or statistic; the message suggests near names.
        """
        quantity, name = parse_statistic(statistic)
        number, watched = self._tensor(tensor, quantity)
        blocks = self._history.preferred(quantity, phase)
        readings = self._readings(quantity, name)
        alike: dict[tuple[str, tuple[str, ...]], list[StoredBlock]] = {}
        for block in blocks:
            alike.setdefault((block.form, block.columns), []).append(block)
        found: dict[int, float] = {}
        for (form, columns), some in alike.items():
            reading = readings(form, columns)
            if reading is not None:
                for block_id, row in self._history.cell_by_block(some, reading.columns, number).items():
                    found[block_id] = reading.value(row, watched.shape)
        return tuple((block.at.row.step, found[block.id]) for block in blocks if block.id in found)

    def matrix(
        self,
        quantity: Quantity,
        statistic: str,
        *,
        kind: str | None = None,
        tensors: Sequence[str] | None = None,
        max_columns: int = 600,
        phase: GradientPhase | None = None,
    ) -> StatisticMatrix:
        """One statistic of many tensors over all recorded steps, downsampled to at most ``max_columns`` columns.

        A column is the median over its steps; of a run too long to be read in seconds (a million rows), over evenly
        spaced ones of them.

        Args:
            quantity: see ``records.Quantity``.
            statistic: its name, such as ``rms_log10``.
            kind: a layer's kind or a parameter's role, such as ``weight``; None for all.
            tensors: names; None for all that the quantity is about.
            max_columns: how many columns there may be.
            phase: of a gradient; None for the one the optimizer used.

        Returns:
            The matrix, tensors in execution order: None where one was not observed, NaN where it was and the statistic
            is undefined.

        Raises:
            KeyError: there is no such tensor or statistic; the message suggests near names.
        """
        quantity, name = parse_statistic(f"{quantity}.{statistic}")
        readings = self._readings(quantity, name)
        wanted = None if tensors is None else {self._tensor(each, quantity)[0] for each in tensors}
        chosen = {
            number: tensor
            for number, tensor in self._history.tensors().items()
            if tensor.kind == _kind_of(quantity)
            and (wanted is None or number in wanted)
            and (kind is None or kind in (tensor.role, tensor.layer_kind))
        }
        return statistic_matrix(self._history, readings, self._history.preferred(quantity, phase), chosen, max_columns)

    def nonfinite(
        self, quantity: Quantity, *, phase: GradientPhase | None = None
    ) -> dict[str, tuple[tuple[int, int, int], ...]]:
        """Where elements were NaN or infinite; statistics are over the finite ones.

        Args:
            quantity: ``value``, ``gradient``, ``activation`` or ``output_gradient``.
            phase: of a gradient; None for the one the optimizer used.

        Returns:
            By tensor, (step, NaN elements, infinite elements) in the order of the steps; nothing for a tensor whose
            elements were all finite.
        """
        return nonfinite_elements(self._history, self._history.preferred(quantity, phase))

    def histogram(self, parameter: str, step: int) -> Histogram:
        """How the elements of one gradient were distributed over the powers of two; histograms add up exactly.

        Args:
            parameter: its name or one of its aliases.
            step: a recorded step at which ``watch(..., histograms=True)`` looked.

        Returns:
            The histogram of the gradient as the optimizer found it in ``.grad``.

        Raises:
            KeyError: there is no such parameter or step, or no histogram of it was recorded then.
        """
        _, watched = self._tensor(parameter, "histogram")
        block = self._record(self._stored(step, watched.group, None), "histogram").block("histogram")
        names = [] if block is None else [tensor.name for tensor in block.tensors]
        if block is None or watched.name not in names:
            raise KeyError(
                f"no histogram of {watched.name} was recorded at step {step}: see watch(..., histograms=True)"
            )
        return histogram_of_row(block.columns, block.rows[names.index(watched.name)])

    # ---------------------------------------------------------------- look-ups

    def _stored(self, step: int, group: str, micro: int | None) -> StoredStep:
        known = self._history.remembered(
            "by_step", lambda: {(s.row.step, s.row.group, s.row.micro): s for s in self._history.steps()}
        )
        if (step, group, micro) in known:
            return known[step, group, micro]
        if group not in self.groups:
            raise KeyError(no_such("group", group, self.groups))
        near = sorted((s for s, g, m in known if g == group and m == micro), key=lambda other: abs(other - step))[:3]
        what = f"step {step}" if micro is None else f"micro-batch {micro} of step {step}"
        listing = f"; the nearest are {', '.join(map(str, near))}" if near else "; there are none"
        raise KeyError(f"{what} was not recorded{listing}")

    def _record(self, stored: StoredStep, quantity: Quantity | None = None) -> StepRecord:
        row = stored.row
        blocks = [
            self._history.block(block)
            for block in self._history.blocks_of(stored)
            if quantity is None or block.quantity == quantity
        ]
        ((missing,),) = self._database.rows("SELECT missing FROM steps WHERE id = ?", (stored.id,))
        shared = {f.name: getattr(row, f.name) for f in fields(RecordedStep) if f.name != "gradient_norm_log10"}
        return StepRecord(
            **shared, blocks=tuple(blocks), missing={} if missing is None else dict(self._database.json(missing))
        )

    def _values_until(self, step: int, group: str) -> dict[str, Statistics]:
        found: dict[str, Statistics] = {}
        tensors = self._history.tensors()
        earlier = [b for b in self._history.blocks("value") if b.at.row.step <= step and b.at.row.group == group]
        for block in earlier[-1:]:
            if block.form == "statistics":
                found.update((tensors[number].name, statistics_of(row)) for number, row in self._history.rows_of(block))
        return found

    def _context(self, group: str) -> RunContext:
        data = self.metadata.get("context", self.metadata)
        if group and isinstance(data, Mapping) and isinstance(data.get(group), Mapping):
            data = data[group]
        known = {f.name for f in fields(RunContext)}
        return decode(RunContext, {key: value for key, value in data.items() if key in known})

    def _tensor(self, name: str, quantity: Quantity) -> tuple[int, WatchedTensor]:
        kind = _kind_of(quantity)
        by_name = self._history.remembered(f"{kind}s by name", lambda: self._by_name(kind))
        if name not in by_name:
            find_row([tensor for _, tensor in by_name.values()], name, kind)  # raises, and suggests near names
        return by_name[name]

    def _by_name(self, kind: str) -> dict[str, tuple[int, WatchedTensor]]:
        """Tensors of a kind by name and alias; a name goes before another tensor's alias."""
        of_kind = [(number, tensor) for number, tensor in self._history.tensors().items() if tensor.kind == kind]
        found: dict[str, tuple[int, WatchedTensor]] = {tensor.name: (number, tensor) for number, tensor in of_kind}
        for number, tensor in of_kind:
            for alias in tensor.aliases:
                found.setdefault(alias, (number, tensor))
        return found

    def _readings(self, quantity: Quantity, name: str) -> Readings:
        readings = Readings(name)
        forms = {(block.form, block.columns) for block in self._history.blocks(quantity)}
        known = known_statistics(quantity, [column for _, columns in forms for column in columns])
        if name not in known and name.removesuffix("_log10") not in known:
            raise KeyError(no_such(f"statistic of {quantity!r}", name, known))
        return readings

    # ---------------------------------------------------------------- out

    def to_pandas(self) -> pd.DataFrame:
        """The tidy table: one row per step, tensor, quantity and phase (see docs/run-file.md).

        Returns:
            A DataFrame.

        Raises:
            HeadwaterError: pandas is not installed.
        """
        from headwater.store.export import table

        return table(self)

    def to_csv(self, path: str | Path) -> None:
        """The table of :meth:`to_pandas` as a text file, without pandas and without holding it in memory.

        Args:
            path: where; replaced whole or not at all.
        """
        from headwater.store.export import write_csv

        write_csv(self, Path(path))

    def to_parquet(self, path: str | Path) -> None:
        """The table of :meth:`to_pandas` as a Parquet file.

        Args:
            path: where; replaced whole or not at all.

        Raises:
            HeadwaterError: neither pandas with pyarrow nor duckdb is installed.
        """
        from headwater.store.export import write_parquet

        write_parquet(self, Path(path))

    def to_json(self, path: str | Path) -> None:
        """The whole run, every number as it was recorded, as strict JSON (no bare NaN).

        Args:
            path: where; replaced whole or not at all.
        """
        from headwater.store.export import write_json

        write_json(self, Path(path))

    def summary(self) -> str:
        """One paragraph: what was recorded, how it ended, what was found."""
        return summary_of(self)

    def close(self) -> None:
        """Close the file; nothing happens the second time."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"open_run({str(self.path)!r})"

    def __str__(self) -> str:
        return self.summary()


def _kind_of(quantity: Quantity) -> str:
    return "layer" if quantity in _LAYER_QUANTITIES else "parameter"
