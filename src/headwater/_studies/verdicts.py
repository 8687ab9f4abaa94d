"""The verdict on each network of a study, and on further networks drawn like it."""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from headwater._diagnose import diagnose
from headwater.records import Diagnosis
from headwater.studies import LOSSES, Study, Variant, build

__all__ = ["FURTHER", "Diagnosed", "diagnose_all", "further_verdicts"]

# Networks whose verdict is compared with that of the measured one. Chosen by us: a verdict that one network in seven
# does not share shows up among 20 with a probability of 95 %.
FURTHER = 20


@dataclass(frozen=True, slots=True)
class Diagnosed:
    """One built network of a study.

    Attributes:
        model: the module.
        inputs: its samples.
        targets: its targets.
        diagnosis: what was found, with the full measurement.
    """

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    diagnosis: Diagnosis


def diagnose_all(study: Study, seed: int) -> dict[str, Diagnosed]:
    """Build every network of a study from one random stream, in order, and diagnose it.

    Args:
        study: what to build.
        seed: set once, before the first network; torch's own random state is left as it was.

    Returns:
        Name of the variant to what was found.
    """
    with _stream(seed):
        return {variant.name: _diagnosed(study, variant) for variant in study}


def further_verdicts(
    study: Study, variant: Variant, *, seed: int, count: int, advance: Callable[[int], None]
) -> dict[str, int]:
    """Diagnose further networks, weights and data drawn afresh.

    Args:
        study: whose loss is taken.
        variant: what to build.
        seed: of the random stream.
        count: how many networks.
        advance: called with the number of networks done since the last call.

    Returns:
        Verdict to number of networks, the most frequent first.
    """
    counts: Counter[str] = Counter()
    with _stream(seed):
        for _ in range(count):
            counts[_diagnosed(study, variant).diagnosis.verdict.value] += 1
            advance(1)
    return dict(counts.most_common())


def _diagnosed(study: Study, variant: Variant) -> Diagnosed:
    model = build(variant.network)
    x, y = variant.data.draw(variant.network.sizes[0], variant.network.sizes[-1])
    return Diagnosed(model, x, y, diagnose(model, x, y, LOSSES[study.loss][0]))


@contextlib.contextmanager
def _stream(seed: int) -> Iterator[None]:
    """Draw from a seeded stream, and keep quiet about target sizes: the profile keeps that warning, for a finding."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using a target size")
        torch.manual_seed(seed)
        yield
