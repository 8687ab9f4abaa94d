"""What a study shows that its printout does not."""

from __future__ import annotations

import math

import torch

from headwater._studies.run import StudyRun, VariantRun
from headwater._studies.words import signed
from headwater.detectors import LossBroadcast
from headwater.records import Finding
from headwater.records.study import StudyFinding
from headwater.studies import LOSSES

__all__ = ["find"]


def find(run: StudyRun) -> tuple[StudyFinding, ...]:
    """What concerns the study as a whole.

    Args:
        run: the study, run.

    Returns:
        A loss that broadcasts, as the detector found it, and published figures outside their ensemble.
    """
    found = _broadcasts(run)
    for one in run:
        outside = [f.parameter for f in one.result.figures if f.agrees is False]
        if outside:
            found.append(
                StudyFinding(
                    code="published-outside",
                    defect="published figures outside",
                    text=f"{one.variant.title}: the published figures of {', '.join(outside)} are not reproduced.",
                    where=(one.variant.name,),
                )
            )
    return tuple(found)


def _broadcasts(run: StudyRun) -> list[StudyFinding]:
    """The detector's finding with what it does to this study: one per sentence, however many networks share it."""
    groups: dict[str, tuple[Finding, list[VariantRun]]] = {}
    for one in run:
        for finding in one.result.findings:
            if finding.code == LossBroadcast.code:
                groups.setdefault(finding.cause, (finding, []))[1].append(one)
    return [
        StudyFinding(
            code=finding.code,
            defect=finding.defect,
            text=f"{finding.cause} {_consequence(run, members)} {finding.advice}",
            where=tuple(one.variant.name for one in members),
        )
        for finding, members in groups.values()
    ]


def _consequence(run: StudyRun, members: list[VariantRun]) -> str:
    """How many terms the loss has, whether anything says so, and what it does to the gradient."""
    profile = members[0].result.profile
    output, target = profile.output_shape or (), profile.target_shape or ()
    joined = tuple(torch.broadcast_shapes(output, target))
    warned = any(one.result.profile.warnings for one in members)
    text = (
        f"The loss is taken over {_shape(joined)}: {math.prod(joined):,} terms for {math.prod(target):,} target"
        f"{'s' * (math.prod(target) > 1)}. {'That is only a warning of torch.' if warned else 'Nothing warns.'}"
    )
    if math.prod(target) != math.prod(output):
        return f"{text} All {math.prod(output)} outputs are pulled towards the same target."
    return (
        f"{text} The loss is lowest where all predictions are the mean of the targets. "
        f"{_intended(run, members, output)}"
    )


def _intended(run: StudyRun, members: list[VariantRun], output: tuple[int, ...]) -> str:
    """What the same loss gives with the target in the output's shape."""
    loss = LOSSES[run.study.loss][0]
    ratios, cosines = [], []
    for one in members:
        weights = list(one.model.parameters())[:1]
        gradients = []
        for target in (one.targets, one.targets.reshape(output)):
            (gradient,) = torch.autograd.grad(loss(one.model(one.inputs), target), weights)
            gradients.append(gradient.double().flatten())
        size = [float(g.norm()) for g in gradients]
        if all(size):
            ratios.append(size[0] / size[1])
            cosines.append(float(gradients[0] @ gradients[1]) / (size[0] * size[1]))
    if not ratios:
        return "The gradient of the first matrix is exactly zero either way."
    return (
        f"It makes the gradient of the first matrix {min(ratios):.0f} to {max(ratios):.0f} times that of the intended "
        f"loss (cosine between the two {signed(min(cosines))} to {signed(max(cosines))})."
    )


def _shape(shape: tuple[int, ...]) -> str:
    return "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"
