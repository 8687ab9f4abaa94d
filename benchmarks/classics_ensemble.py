"""Many fresh draws of each classic study: is every published figure an ordinary one?

    python benchmarks/classics_ensemble.py [--draws 20000] [--out tests/fixtures/classics_ensemble.json]

Prints, for every published figure of an unseeded run, the share of draws below it, and writes the central 99.9 % of
each printed figure (quantiles 0.0005, 0.5 and 0.9995 of log10) for the test. 20,000 draws leave ten beyond either end.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from pathlib import Path
from typing import Any

import torch

from headwater._studies.ensemble import Ensemble, draw_ensemble
from headwater.studies import CLASSICS, Variant

LEVELS = (0.0005, 0.5, 0.9995)


def _entry(variant: Variant, names: tuple[str, ...], ensemble: Ensemble) -> dict[str, Any]:
    values = ensemble.statistic
    levels = torch.tensor(LEVELS, dtype=values.dtype)
    quantiles = torch.stack([torch.quantile(column, levels, interpolation="nearest") for column in values.T])
    # an exact zero has no logarithm: null
    rows = [[round(q, 6) if math.isfinite(q) else None for q in row] for row in quantiles.tolist()]
    entry: dict[str, Any] = {"parameters": list(names), "log10_quantiles": rows}
    if variant.published:
        published = torch.tensor(variant.published, dtype=values.dtype).log10()
        entry["share_of_draws_below_published"] = [round(x, 5) for x in (values < published).double().mean(0).tolist()]
    return entry


def main() -> None:
    """Draw, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=20_240)
    parser.add_argument("--out", type=Path, default=Path("tests/fixtures/classics_ensemble.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)  # the networks are small: a second thread waits more than it works
    result: dict[str, Any] = {
        "command": f"python benchmarks/classics_ensemble.py --draws {options.draws} --seed {options.seed}",
        "draws": options.draws,
        "levels": LEVELS,
        "torch_version": torch.__version__,
        "python_version": platform.python_version(),
        "studies": {},
    }
    for study in CLASSICS.values():
        entries = result["studies"][study.name] = {}
        for variant in study:
            begin = time.perf_counter()
            names = study.printed_parameters(variant.network)
            ensemble = draw_ensemble(
                variant.network, variant.data, loss=study.loss, statistic=study.statistic, printed=names,
                draws=options.draws, seed=options.seed,
            )  # fmt: skip
            entry = entries[variant.name] = _entry(variant, names, ensemble)
            shares = entry.get("share_of_draws_below_published", [])
            print(
                f"{study.name:20} {variant.name:22} {time.perf_counter() - begin:6.1f} s  published at {shares}",
                flush=True,
            )
    text = json.dumps(result, indent=1, allow_nan=False)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
