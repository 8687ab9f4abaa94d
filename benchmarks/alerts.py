"""What the alerts of a watched run say of healthy and of faulty trainings, in one table.

    python benchmarks/alerts.py [--seeds 3] [--steps 200 1000] [--every 1 10] [--scales 1 1e-6 1e6] [--cost] [NAME …]

Small networks (dense, convolutional, transformer, LSTM; SGD and Adam; with and without schedules) are trained on
scikit-learn's digits, healthy ones and ones with a fault planted at a known step, and every recorded step is shown to
the default alerts. A hit is an alarm with the code of the planted fault, at its place where it has one, not before the
fault; steps late = recorded steps from the fault to the alarm. A false alarm is any alarm of severity warning or
critical in a healthy training, and any before its fault in a faulty one. The loss is also multiplied by 1e-6 and 1e6
(with eps of Adam scaled alike, as eps is a size of gradients), which should change nothing.

``--cost`` times the alerts on records of 42, 1,000 and 10,000 tensors instead.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import tracemalloc
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.unit.detectors.over_time.synthetic import record
from tests.unit.detectors.over_time.trainings import FAULTS, HEALTHY, Case

from headwater.detectors.over_time import DEFAULT_ALERTS, AlertDesk
from headwater.records import Finding, Severity, StepRecord


def alarms_of(case: Case, seed: int, steps: int, every: int, scale: float) -> list[tuple[int, Finding]]:
    """Recorded step and finding of every new alarm of one training."""
    run = case.make(seed, steps)
    run.every, run.layers, run.loss_factor = every, (3 if every == 1 else 1), scale
    for group in run.optimizer.param_groups:
        if "eps" in group:
            group["eps"] *= scale
        elif scale != 1.0:
            group["lr"] /= scale  # SGD's step is proportional to the gradient
            for key in ("weight_decay",):
                group[key] *= scale
    if run.scheduler is not None and scale != 1.0 and "eps" not in run.optimizer.param_groups[0]:
        run.scheduler.base_lrs = [rate / scale for rate in run.scheduler.base_lrs]
    if run.clip is not None:
        run.clip *= scale
    desk = AlertDesk(DEFAULT_ALERTS)
    return [(r.step, d.finding) for r, p in run.records(steps) for d in desk.consider(r, p) if d.is_new]


def is_hit(case: Case, step: int, finding: Finding) -> bool:
    """Whether an alarm is the one that the planted fault asks for."""
    place = not case.where or case.where in finding.where[: 2 if case.code == "HW604" else 1]
    return finding.code == (case.found_as or case.code) and step >= case.from_step and place


def verdicts(cases: list[Case], seeds: int, steps: list[int], every: list[int], scales: list[float]) -> Table:
    """One row per case and length: hits, delay, false alarms."""
    table = Table("training", "steps", "every", "scale", "runs", "hits", "steps late", "false alarms", "which")
    total = {"healthy runs": 0, "with a false alarm": 0, "faulty runs": 0, "found": 0}
    for case in cases:
        for length in steps if not case.code else steps[:1]:
            for interval in every:
                for scale in scales:
                    hits, late, wrong = 0, [], []
                    for seed in range(seeds):
                        said = alarms_of(case, seed, length, interval, scale)
                        first = next((s for s, f in said if is_hit(case, s, f)), None)
                        if case.code and first is not None:
                            hits += 1
                            late.append(first - case.from_step)
                        until = case.from_step if case.code else length
                        wrong += [f for s, f in said if s < until and f.severity is not Severity.INFO]
                        total["faulty runs" if case.code else "healthy runs"] += 1
                        total["found" if case.code else "with a false alarm"] += (
                            first is not None if case.code else any(f.severity is not Severity.INFO for _, f in said)
                        )
                    which = ", ".join(sorted({f"{f.code} {f.defect} at {f.step}" for f in wrong}))
                    delay = f"{statistics.median(late):g}" if late else ""
                    found = f"{hits}" if case.code else ""
                    table.add_row(
                        str(case),
                        str(length),
                        str(interval),
                        f"{scale:g}",
                        str(seeds),
                        found,
                        delay,
                        str(len(wrong)),
                        which,
                    )
    table.caption = "; ".join(f"{count} {name}" for name, count in total.items())
    return table


def made_up(step: int, tensors: int) -> StepRecord:
    """A record of weights with sizes that vary a little; half as many layers."""
    draw = torch.Generator().manual_seed(step)
    sizes = (10 ** (0.05 * torch.randn(tensors, generator=draw))).tolist()
    names = [f"{k}.weight" for k in range(tensors)]
    by_name = dict(zip(names, sizes, strict=True))
    return record(
        step,
        by_name,
        value=by_name,
        update={n: 1e-3 * s for n, s in by_name.items()},
        epsilon=1e-8,
        loss=1.0,
        learning_rate=0.1,
    )


def cost() -> Table:
    """Median processor time of one recorded step over all alerts and the memory they keep."""
    table = Table("weights", "per recorded step", "per weight", "memory kept")
    for tensors, count in ((42, 300), (1000, 60), (10_000, 40)):
        records = [made_up(step, tensors) for step in range(count)]
        desk, times = AlertDesk(DEFAULT_ALERTS, flight_steps=1), []
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for one in records[: min(count, 32)]:
            desk.consider(one)
        kept = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        for one in records[min(count, 32) :]:
            start = time.process_time()  # others may use the machine meanwhile
            desk.consider(one)
            times.append(time.process_time() - start)
        median = statistics.median(times)
        table.add_row(
            f"{tensors:,}", f"{1e3 * median:.3f} ms", f"{1e6 * median / tensors:.2f} µs", f"{kept / 1e6:.1f} MB"
        )
    return table


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="cases to run; all when none is given")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, nargs="+", default=[200])
    parser.add_argument("--every", type=int, nargs="+", default=[1])
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0])
    parser.add_argument("--cost", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=160)
    if arguments.cost:
        console.print(cost())
        return
    cases = [case for case in (*HEALTHY, *FAULTS) if not arguments.names or case.name in arguments.names]
    console.print(verdicts(cases, arguments.seeds, arguments.steps, arguments.every, arguments.scales))


if __name__ == "__main__":
    main()
