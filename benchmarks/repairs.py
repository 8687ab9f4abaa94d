"""How often does the first prescription repair a network, beside two rules of thumb that need no diagnosis?

Every unhealthy case of a folder of labelled cases that has a repaired twin is taken. A repair counts when the model then
has the verdict ``healthy`` and ends a trial (the batch, the loss and the seed of the case, ``--steps`` steps of ``--trial``)
with a lower loss than the network as it was. The rules: every weight from He's law with ReLU for every hidden activation
("Kaiming + ReLU"), and a BatchNorm behind every hidden weight ("BatchNorm everywhere").

Usage: python benchmarks/repairs.py [CASE ...] [--cases FILE] [--trial adam|sgd] [--steps N] [--json FILE]
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from headwater._diagnose import diagnose
from headwater._prescribe import prescribe
from headwater.capture.names import layer_kind

GOAL = 0.9
SLOWEST_MEDIAN_SECONDS = 20.0
SOLVED = 0.01  # of the first loss: where both end below it, which of the two is lower says nothing. Chosen by us
_TRIALS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
}


class FeatureBatchNorm(nn.Module):
    """BatchNorm over the features of (B, …, D) or the channels of (B, C, H, W)."""

    def __init__(self, features: int, picture: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(features) if picture else nn.BatchNorm1d(features)
        self.picture = picture

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise; the shape stays."""
        return self.norm(x) if self.picture else self.norm(x.flatten(0, -2)).view_as(x)


def _weights(model: nn.Module) -> list[str]:
    return [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d)]


def kaiming_and_relu(model: nn.Module) -> nn.Module:
    """He's law for every weight, ReLU for every activation that has weights after it."""
    for name in _weights(model):
        layer: Any = model.get_submodule(name)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    names = [n for n, _ in model.named_modules()]
    last = max((names.index(n) for n in _weights(model)), default=0)
    for name in names[:last]:
        if layer_kind(model.get_submodule(name)) == "activation":
            model.set_submodule(name, nn.ReLU())
    return model


def batchnorm_everywhere(model: nn.Module) -> nn.Module:
    """BatchNorm behind every weight but the last."""
    for name in _weights(model)[:-1]:
        layer: Any = model.get_submodule(name)
        model.set_submodule(
            name, nn.Sequential(layer, FeatureBatchNorm(layer.weight.shape[0], layer.weight.dim() == 4))
        )
    return model


def final_loss(model: nn.Module, case: Any, trial: str, steps: int) -> float:
    """The loss after the trial; NaN as soon as it is not finite."""
    torch.manual_seed(1)
    optimizer = _TRIALS[trial]([p for p in model.parameters() if p.requires_grad])
    for _ in range(steps):
        optimizer.zero_grad()
        loss = case.loss_fn(model(case.x), case.y)
        if not math.isfinite(float(loss.detach())):
            return math.nan
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return float(case.loss_fn(model(case.x), case.y))


def arguments(case: Any) -> dict[str, Any]:
    """What the verbs are called with; a case's model takes its x whole, whatever that is."""
    if isinstance(case.x, torch.Tensor):
        return {"inputs": case.x, "targets": case.y, "loss_fn": case.loss_fn}
    return {"loss": lambda m: case.loss_fn(m(case.x), case.y)}


def judge(model: nn.Module, case: Any, faulty: float, trial: str, steps: int) -> tuple[str, float, bool]:
    """Verdict, loss after the trial, and whether both say repaired."""
    verdict = diagnose(model, **arguments(case)).verdict.value
    loss = final_loss(copy.deepcopy(model), case, trial, steps)
    lower = math.isfinite(loss) and (not math.isfinite(faulty) or loss < faulty)
    return verdict, loss, verdict == "healthy" and lower


def with_rule(
    rule: Callable[[nn.Module], nn.Module], case: Any, faulty: float, trial: str, steps: int
) -> dict[str, Any]:
    """What a rule of thumb does to a case; a model that it breaks is one it does not repair."""
    torch.manual_seed(0)
    try:
        verdict, loss, good = judge(rule(copy.deepcopy(case.model)), case, faulty, trial, steps)
    except (RuntimeError, ValueError, AttributeError) as error:
        verdict, loss, good = f"{type(error).__name__}", math.nan, False
    return {"verdict": verdict, "loss": loss, "good": good}


def one(make: Callable[[], Any], trial: str, steps: int) -> dict[str, Any]:
    """The row of one case."""
    case = make()
    faulty = final_loss(copy.deepcopy(case.model), case, trial, steps)
    started, processor = time.perf_counter(), time.process_time()
    rx = prescribe(case.model, **arguments(case))
    seconds, processor = time.perf_counter() - started, time.process_time() - processor
    row: dict[str, Any] = {
        "faulty": faulty,
        "seconds": seconds,
        "processor_seconds": processor,
        "remedy": None,
        "verdict": None,
        "good": False,
    }
    if rx.best is not None:
        repaired = rx.best.apply(copy.deepcopy(case.model))
        verdict, loss, good = judge(repaired, case, faulty, trial, steps)
        row |= {"remedy": rx.best.name, "verdict": verdict, "loss": loss, "good": good}
        start = float(case.loss_fn(case.model(case.x), case.y).detach())
        solved = 0 <= faulty < SOLVED * start and 0 <= loss < SOLVED * start
        row["good_or_solved"] = good or (verdict == "healthy" and solved)
    row["kaiming"] = with_rule(kaiming_and_relu, case, faulty, trial, steps)
    row["batchnorm"] = with_rule(batchnorm_everywhere, case, faulty, trial, steps)
    return row


def main() -> int:
    """Print the table and the rates."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--cases", default=str(Path(__file__).parents[2] / "shared" / "cases" / "cases.py"))
    parser.add_argument("--trial", choices=list(_TRIALS), default="adam")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--json")
    options = parser.parse_args()
    if not Path(options.cases).is_file():
        print(f"no cases at {options.cases}; name a file with --cases")
        return 2
    spec = importlib.util.spec_from_file_location("labelled_cases", options.cases)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["labelled_cases"] = module
    spec.loader.exec_module(module)
    names = [n for n in module.CASES if n in module.FIXABLE and (not options.names or n in options.names)]
    rows: dict[str, dict[str, Any]] = {}
    print(
        f"{'case':30s} {'headwater':>12s} {'loss':>9s} {'was':>9s} {'s':>5s}  {'Kaiming+ReLU':>12s} {'BatchNorm':>12s}  remedy"
    )
    for name in names:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            row = rows[name] = one(module.CASES[name], options.trial, options.steps)
        marks = [("+" if r["good"] else "-") + str(r["verdict"])[:11] for r in (row, row["kaiming"], row["batchnorm"])]
        loss = row.get("loss", math.nan)
        print(
            f"{name:30s} {marks[0]:>12s} {loss:9.3g} {row['faulty']:9.3g} {row['seconds']:5.1f}  {marks[1]:>12s} {marks[2]:>12s}"
            f"  {row['remedy']}",
            flush=True,
        )
    good = sum(r["good"] for r in rows.values())
    rules = [(n, sum(r[n]["good"] for r in rows.values())) for n in ("kaiming", "batchnorm")]
    median = statistics.median(r["seconds"] for r in rows.values())
    processor = statistics.median(r["processor_seconds"] for r in rows.values())
    print(
        f"\nrepaired ({options.steps} steps of {options.trial}): headwater {good}/{len(rows)}, Kaiming + ReLU "
        f"{rules[0][1]}/{len(rows)}, BatchNorm everywhere {rules[1][1]}/{len(rows)}\n"
        f"counting what both solve (losses below {SOLVED:.0%} of the first) and the repair makes healthy: "
        f"{sum(r.get('good_or_solved', False) for r in rows.values())}/{len(rows)}\n"
        f"median {median:.1f} s per case ({processor:.1f} s of processor time) on {torch.get_num_threads()} thread(s)"
    )
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return 0 if good >= GOAL * len(rows) and median <= SLOWEST_MEDIAN_SECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
