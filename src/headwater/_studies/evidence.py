"""What the answers of a study may draw on, and the clauses that they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from headwater._studies.run import StudyRun, VariantRun
from headwater._studies.trends import WideTheory
from headwater._studies.words import decades, signed
from headwater.records.study import MatrixView, Observation, StudyTable

__all__ = ["Evidence", "split_words", "theory_words"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What an answer may draw on.

    Attributes:
        run: the study, run.
        tables: its own tables, by the name of the extra.
        observations: claims tested over many draws.
        matrices: weights beside gradients.
    """

    run: StudyRun
    tables: Mapping[str, StudyTable]
    observations: tuple[Observation, ...]
    matrices: tuple[MatrixView, ...]


def theory_words(theory: WideTheory | None) -> str:
    """What a wide network would do, as the end of a clause; empty without a prediction."""
    return "" if theory is None else f"; wide-network theory gives {signed(theory.decades_per_layer)}"


def split_words(one: VariantRun) -> str:
    """What the slope and what the weights do to the gradient per layer; empty where it cannot be told."""
    slope, weights = one.result.slope_decades, one.result.weight_decades
    if slope is None or weights is None:
        return ""
    network = one.variant.network
    variance = network.weight_variance
    mean_square_slope = 10.0 ** (2.0 * slope)
    verbs = [("takes" if part < 0 else "gives") for part in (slope, weights)]
    return (
        f"the slope of {one.result.activation} {verbs[0]} {decades(slope)} decades per layer (mean φ'² = "
        f"{mean_square_slope:.3g}) and the weights {verbs[1].rstrip('s')} {decades(weights)} (σ_w² = {variance:.3g}; "
        "1 would keep it)"
    )
