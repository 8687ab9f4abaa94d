"""What common rules of thumb say of labelled networks, beside headwater's verdict, in one table.

    python benchmarks/verdicts.py [--cases FILE] [--scales 1 1e-6 1e6] [--json FILE] [NAME …]

Every network is labelled faulty (with its fault) or healthy. Each rule looks at the weight gradients of one backward
pass, as it is used in practice:

- absolute: some weight's mean |∂L/∂W| below 1e-7 is vanishing, above 1e3 exploding (Amazon SageMaker Debugger's rule
  VanishingGradient and its 1e-7; 1e3 is common in callbacks).
- ratio: mean |∂L/∂W| of the first weight below 1/100 of the last one's is vanishing, above 100 times exploding.
- norm: the global norm below 1e-6 is vanishing, above 100 exploding.
- all three: exploding if one of them says so, else vanishing if one does.

A gradient that is not finite counts as ``nan`` in each of them. The same is done with the loss multiplied by 1e-6 and
1e6, which changes no network: right = the labelled verdict (or one that the label's author accepts too), unhealthy =
faulty networks that are called anything but healthy, false alarms = healthy networks that are not called healthy,
changed = networks whose verdict differs from the one of the first scale.

The cases are ../shared/cases where that folder is, else the project's own, tests/labelled/cases.py.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor

import headwater as hw

ROOT = Path(__file__).resolve().parents[1]
PLACES = (ROOT.parent / "shared" / "cases" / "cases.py", ROOT / "tests" / "labelled" / "cases.py")
Rule = Callable[[list[Tensor], list[Tensor]], str]


def _nonfinite(gradients: list[Tensor]) -> bool:
    return not all(bool(torch.isfinite(g).all()) for g in gradients)


def _means(weights: list[Tensor]) -> list[float]:
    return [float(g.double().abs().mean()) for g in weights]


def absolute(weights: list[Tensor], gradients: list[Tensor]) -> str:
    """Mean |∂L/∂W| of each weight against fixed numbers."""
    means = _means(weights)
    if any(m > 1e3 for m in means):
        return "exploding"
    return "vanishing" if any(m < 1e-7 for m in means) else "healthy"


def ratio(weights: list[Tensor], gradients: list[Tensor]) -> str:
    """Mean |∂L/∂W| of the first weight against the last one's."""
    means = _means(weights)
    if len(means) < 2 or means[0] == means[-1]:
        return "healthy"
    quotient = means[0] / means[-1] if means[-1] else math.inf
    if quotient > 100:
        return "exploding"
    return "vanishing" if quotient < 0.01 else "healthy"


def norm(weights: list[Tensor], gradients: list[Tensor]) -> str:
    """The norm of all gradients together against fixed numbers."""
    total = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
    if total > 100:
        return "exploding"
    return "vanishing" if total < 1e-6 else "healthy"


def all_three(weights: list[Tensor], gradients: list[Tensor]) -> str:
    """Exploding if one of the rules says so, else vanishing if one does."""
    said = {rule(weights, gradients) for rule in (absolute, ratio, norm)}
    return next((v for v in ("exploding", "vanishing") if v in said), "healthy")


RULES: dict[str, Rule] = {
    "absolute": absolute,
    "first/last": ratio,
    "global norm": norm,
    "all three": all_three,
}
OURS = "headwater"


def rules_of_thumb(case: Any, scale: float) -> dict[str, str]:
    """What each rule says of a network's gradients."""
    named = [(n, p) for n, p in case.model.named_parameters() if p.requires_grad]
    loss = scale * case.loss_fn(case.model(case.x), case.y)
    found = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    dense = [
        (p, g.coalesce().to_dense() if g.is_sparse else g)
        for (_, p), g in zip(named, found, strict=True)
        if g is not None
    ]
    gradients = [torch.view_as_real(g) if g.is_complex() else g for _, g in dense]
    weights = [g for (p, _), g in zip(dense, gradients, strict=True) if p.dim() > 1] or gradients
    if _nonfinite(gradients):
        return dict.fromkeys(RULES, "nan")
    return {name: rule(weights, gradients) for name, rule in RULES.items()}


def ours(case: Any, scale: float) -> str:
    """The verdict of ``headwater.diagnose``; ``refused`` where it raises one of its own errors (NaN in the inputs)."""
    try:
        if isinstance(case.x, Tensor):
            return hw.diagnose(case.model, case.x, case.y, lambda out, y: scale * case.loss_fn(out, y)).verdict.value
        return hw.diagnose(case.model, loss=lambda m: scale * case.loss_fn(m(case.x), case.y)).verdict.value
    except hw.HeadwaterError:
        return "refused"


def load(path: Path) -> ModuleType:
    """The module with ``all_cases()`` and ``ALSO_OK``."""
    spec = importlib.util.spec_from_file_location("labelled_cases", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def score(cases: ModuleType, scales: list[float], names: list[str], console: Console) -> list[dict[str, Any]]:
    """One row per network: its label, and what every rule said at every scale."""
    wanted = [c for c in cases.all_cases() if not names or c[0] in names]
    rows = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("networks", total=len(wanted))
        for name, fixed, build in wanted:
            progress.update(task, description=f"{name[:32]:32}")
            case = build()
            said = {}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # some cases warn on purpose
                for scale in scales:
                    # headwater first: it leaves the model as it was, a plain forward moves BatchNorm's averages
                    said[f"{scale:g}"] = {OURS: ours(case, scale)}
                for scale in scales:
                    said[f"{scale:g}"] |= rules_of_thumb(case, scale)
            label = "healthy" if fixed else case.label
            accepted = sorted({label, *(() if fixed else getattr(cases, "ALSO_OK", {}).get(name, ()))})
            rows.append(
                {"name": name + (" [fixed]" if fixed else ""), "label": label, "accepted": accepted, "said": said}
            )
            progress.advance(task)
    return rows


def table_of(rows: list[dict[str, Any]], scales: list[float]) -> Table:
    """The scores: one line per rule and scale of the loss."""
    faulty = [r for r in rows if r["label"] != "healthy"]
    healthy = [r for r in rows if r["label"] == "healthy"]
    table = Table(title=f"{len(faulty)} faulty and {len(healthy)} healthy networks")
    for heading in ("rule", "loss times", "right", "unhealthy", "false alarms", "changed"):
        table.add_column(heading, justify="left" if heading == "rule" else "right", no_wrap=heading == "rule")
    for rule in (*RULES, OURS):
        for scale in (f"{s:g}" for s in scales):
            right = sum(r["said"][scale][rule] in r["accepted"] for r in faulty)
            flagged = sum(r["said"][scale][rule] != "healthy" for r in faulty)
            alarms = sum(r["said"][scale][rule] != "healthy" for r in healthy)
            changed = sum(r["said"][scale][rule] != r["said"][f"{scales[0]:g}"][rule] for r in rows)
            table.add_row(
                rule, scale, f"{right}/{len(faulty)}", f"{flagged}/{len(faulty)}", f"{alarms}/{len(healthy)}", str(changed),
                end_section=scale == f"{scales[-1]:g}",
            )  # fmt: skip
    return table


def main() -> None:
    """Run every network through every rule and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="networks to run; all without any")
    parser.add_argument("--cases", type=Path, default=next((p for p in PLACES if p.is_file()), PLACES[-1]))
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 1e-6, 1e6])
    parser.add_argument("--json", type=Path, help="also write every verdict")
    options = parser.parse_args()
    torch.set_num_threads(1)
    begin, console = time.perf_counter(), Console(stderr=True)
    rows = score(load(options.cases), options.scales, options.names, console)
    Console().print(table_of(rows, options.scales))
    print(f"{options.cases}, {time.perf_counter() - begin:.0f} s")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
