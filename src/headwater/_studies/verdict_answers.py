"""What is wrong with the networks of a study, and why: answered from the findings of the diagnosis alone."""

from __future__ import annotations

import math
from collections.abc import Callable

from headwater._studies.evidence import Evidence
from headwater._studies.run import VariantRun
from headwater._studies.words import percent, signed
from headwater.detectors.depth import depth_course, shares
from headwater.records import Verdict, fold_names
from headwater.records.displayed_kinds import KIND_WORDS

__all__ = ["VERDICT_ANSWERS", "verdict_words"]

# A verdict that fewer of the further networks share is called one draw's. Chosen by us.
_SHARED = 0.9
_ALONG_DEPTH = (Verdict.VANISHING, Verdict.EXPLODING)


def verdict_words(verdict: Verdict | str) -> str:
    """A verdict as people write it, such as ``dead units``."""
    return Verdict(verdict).value.replace("_", " ")


def _why(evidence: Evidence) -> str:
    groups: dict[Verdict, list[VariantRun]] = {}
    for one in evidence.run:
        groups.setdefault(one.result.verdict, []).append(one)
    count = len(evidence.run.variants)
    sentences = []
    for verdict, members in groups.items():
        if verdict is not Verdict.HEALTHY:
            share = f" ({len(members)} of {count} networks)" if count > 1 else ""
            words = verdict_words(verdict)
            sentences.append(f"{words[:1].upper()}{words[1:]}{share}: {'; '.join(map(_sick, members))}.")
    healthy = groups.get(Verdict.HEALTHY, [])
    if healthy:
        lead = "Nothing that decides a verdict. Healthy" if len(healthy) == count else "Healthy"
        sentences.append(f"{lead}, ‖∂L/∂h‖ from the head to the first layer: {'; '.join(map(_healthy, healthy))}.")
    unsure = [words for one in evidence.run if (words := _one_draws(one))]
    if unsure:
        sentences.append(f"Another draw can be called otherwise: {'; '.join(unsure)}.")
    return " ".join(sentences)


def _sick(one: VariantRun) -> str:
    root = one.result.diagnosis.root
    if root is None:
        return one.variant.title
    if root.verdict in _ALONG_DEPTH:
        return f"{one.variant.title} ({_shares(one)})"
    places = ", ".join(fold_names(root.where))
    return f"{one.variant.title}, {root.defect}{f' at {places}' if places else ''}"


def _shares(one: VariantRun) -> str:
    """Who takes (or adds) how much of the change that the depth detectors judge."""
    course = depth_course(one.result.profile)
    sign = -1.0 if course.total_decades < 0 else 1.0
    kinds = {kind: v for kind, v in shares(course).items() if sign * v > 0}
    total = math.fsum(kinds.values())
    parts = [f"{KIND_WORDS.get(kind, kind)} {percent(value / total)}" for kind, value in kinds.items()]
    return f"{signed(course.total_decades)} decades: {', '.join(parts)}"


def _healthy(one: VariantRun) -> str:
    course = depth_course(one.result.profile)
    if not course.layers:
        return f"{one.variant.title} (no layer below its head)"
    layers = f"{course.layers} layer{'s' * (course.layers > 1)}"
    return f"{one.variant.title} {signed(course.total_decades)} decades over {layers}"


def _one_draws(one: VariantRun) -> str:
    """What further networks are called, where too few of them share this one's verdict."""
    counts = one.result.further_verdicts
    total = sum(counts.values())
    if not total or counts.get(one.result.verdict.value, 0) >= _SHARED * total:
        return ""
    shown = ", ".join(f"{verdict_words(name)} {count}" for name, count in counts.items())
    return f"{one.variant.title} ({shown} of {total} further networks)"


VERDICT_ANSWERS: dict[str, Callable[[Evidence], str]] = {"why": _why}
