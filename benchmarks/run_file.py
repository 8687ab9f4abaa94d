"""What the run file costs: microseconds and bytes per row, and whether either grows with the length of the run.

Four parts, each against a goal:

- *small*: 42 tensors, a flush every second, every step recorded (whole statistics of gradients): the writer's processor
  time per step, in percent of a training step of 10 ms.
- *long*: the same until a million rows are in the file; time per row in the second half over that in the first.
- *wide*: 10,000 tensors; time per row, and the memory that the writer holds.
- *read*: a run of 100,000 steps and 1,000 layers at the default schedule, ``every=10``, that looks at the layers each
  time (10,000 records, ten million rows: ten times what the default looks at): the time of a heatmap, of one tensor's
  series, of the steps, and of one profile; and a million rows as a table.

Everything is timed by the processor time of the thread, which counts the Python and SQLite work but not the waiting for
a disk; the wall clock is printed beside it. On a machine that others use, processor time grows as well (they take the
caches): the best tenth of a run is the least disturbed one. Run it as ``python benchmarks/run_file.py`` (about five minutes, two
gigabytes of disk in a temporary folder); ``--quick`` reads a run of a tenth of the length.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import sqlite3
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headwater.records import STATISTICS_COLUMNS, Block, Quantity, Statistics, StepRecord, WatchedTensor
from headwater.store import RunWriter, open_run

STEP_SECONDS = 0.010  # of the training step that the goal is about
GOAL_PERCENT = 1.0


def tensors(count: int, kind: str = "parameter") -> tuple[WatchedTensor, ...]:
    """``count`` weights, or layers."""
    return tuple(
        WatchedTensor(
            kind=kind,  # type: ignore[arg-type]
            name=f"blocks.{n}.fc" + (".weight" if kind == "parameter" else ""),
            order=n,
            shape=(64, 40),
            role="weight" if kind == "parameter" else None,
            layer_kind="linear" if kind == "layer" else None,
        )
        for n in range(count)
    )


def rows(count: int, dice: random.Random) -> list[list[float]]:
    """``count`` rows of statistics of four Gaussian elements each, as good as any for the file."""
    made = [Statistics.of([dice.gauss(0.0, 1e-3) for _ in range(4)]) for _ in range(min(count, 500))]
    table = [[float(getattr(each, name)) for name in STATISTICS_COLUMNS] for each in made]
    return [table[n % len(table)] for n in range(count)]


def record(step: int, watched: tuple[WatchedTensor, ...], table: list[list[float]], quantity: Quantity) -> StepRecord:
    """A step with one block."""
    block = Block(
        quantity=quantity,
        phase="pre_clip" if quantity == "gradient" else None,
        tensors=watched,
        columns=STATISTICS_COLUMNS,
        rows=table,
    )
    return StepRecord(step=step, time=1e9 + step, elapsed_seconds=step * STEP_SECONDS, loss=1.0, blocks=(block,))


def write(place: Path, records: int, count: int, quantity: Quantity, per_flush: int) -> dict[str, float]:
    """Records a run and says what each tenth of it cost per row, in microseconds."""
    dice = random.Random(0)
    watched = tensors(count, "parameter" if quantity == "gradient" else "layer")
    tables = [rows(count, dice) for _ in range(4)]
    cpu: list[float] = []
    wall: list[float] = []
    with RunWriter(place) as writer:
        writer._last_flush = float("inf")  # flushed by number rather than by the clock: the same work on any machine
        for tenth in range(10):
            before, began = time.thread_time(), time.perf_counter()
            for step in range(tenth * records // 10, (tenth + 1) * records // 10):
                writer.write(record(step, watched, tables[step % 4], quantity))
                if step % per_flush == per_flush - 1:
                    writer.flush()
                    writer._last_flush = float("inf")
            writer.flush()
            writer._last_flush = float("inf")
            in_tenth = records // 10 * count
            cpu.append((time.thread_time() - before) / in_tenth * 1e6)
            wall.append((time.perf_counter() - began) / in_tenth * 1e6)
    size = (place / "run.sqlite").stat().st_size
    return {
        "microseconds per row": sum(cpu) / 10,
        "microseconds per row, best tenth": min(cpu),
        "microseconds per row, wall": sum(wall) / 10,
        "second half / first half, best tenths": min(cpu[5:]) / min(cpu[:5]),
        "bytes per row": size / (records * count),
        "megabytes": size / 1e6,
        "rows": records * count,
    }


def timed(what: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of processor time, seconds on the clock."""
    before, began = time.thread_time(), time.perf_counter()
    what()
    return time.thread_time() - before, time.perf_counter() - began


def read(place: Path) -> dict[str, float]:
    """Seconds that the questions of a report take, each on a freshly opened run: processor time, and on the clock."""
    found: dict[str, float] = {}
    questions: dict[str, Callable[[Any], Any]] = {
        "open and list the steps": lambda run: run.steps,
        "heatmap of rms_log10": lambda run: run.matrix("activation", "rms_log10"),
        "heatmap of rms": lambda run: run.matrix("activation", "rms"),
        "series of one layer": lambda run: run.series("blocks.7.fc", "activation.rms"),
        "profile of the last step": lambda run: run.profile(run.steps[-1]),
    }
    for name, question in questions.items():
        with open_run(place) as run:
            found[name], found[f"{name}, wall"] = timed(lambda question=question, run=run: question(run))  # type: ignore[misc]
    return found


def memory(place: Path) -> float:
    """Megabytes that the writer holds at most, beside the records themselves, at 10,000 tensors."""
    watched, table = tensors(10_000), rows(10_000, random.Random(0))
    records = [record(step, watched, table, "gradient") for step in range(6)]
    tracemalloc.start()
    with RunWriter(place) as writer:
        for each in records:
            writer.write(each)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="read a run of a tenth of the length")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    figures: dict[str, Any] = {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
    with tempfile.TemporaryDirectory(prefix="headwater-benchmark-") as folder:
        base = Path(folder)
        small = write(base / "small", 5_000, 42, "gradient", 100)
        per_step = small["microseconds per row"] * 42
        percent = per_step / STEP_SECONDS / 1e6 * 100.0
        best = small["microseconds per row, best tenth"] * 42 / STEP_SECONDS / 1e6 * 100.0
        figures["small"] = {**small, "microseconds per step": per_step, "percent of a 10 ms step": percent}
        figures["long"] = write(base / "long", 24_000, 42, "gradient", 100)
        figures["wide"] = {**write(base / "wide", 100, 10_000, "gradient", 1), "megabytes held": memory(base / "held")}
        records = 1_000 if options.quick else 10_000
        figures["read"] = {**write(base / "read", records, 1_000, "activation", 10), **read(base / "read")}
        with open_run(base / "long") as run:
            figures["table"] = {
                "a million rows as csv": timed(lambda: run.to_csv(base / "table.csv"))[0],
                "a million rows in pandas": timed(run.to_pandas)[0],
            }
    for part, values in figures.items():
        if isinstance(values, dict):
            print(f"\n{part}")
            for name, value in values.items():
                print(f"  {name:<40} {value:,.3g}" if value < 1e6 else f"  {name:<40} {value:,.0f}")
        else:
            print(f"{part} {values}")
    print(f"\ngoal: 42 rows at every step within {GOAL_PERCENT} % of a 10 ms step: {best:.2f} % (mean {percent:.2f} %)")
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
