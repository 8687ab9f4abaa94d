"""The questions of each study, answered from its measurements; no conclusion is written in advance."""

from __future__ import annotations

from headwater._studies.depth_answers import DEPTH_ANSWERS
from headwater._studies.evidence import Evidence
from headwater._studies.verdict_answers import VERDICT_ANSWERS
from headwater._studies.weight_answers import WEIGHT_ANSWERS
from headwater.records.study import Answer

__all__ = ["compose"]

_COMPOSERS = {**VERDICT_ANSWERS, **DEPTH_ANSWERS, **WEIGHT_ANSWERS}


def compose(evidence: Evidence) -> tuple[Answer, ...]:
    """Answer every question of a study that its (possibly varied) networks can answer.

    Args:
        evidence: what was measured.

    Returns:
        The answers, in the order of the questions.
    """
    answers = []
    for question in evidence.run.study.questions:
        text = _COMPOSERS[question.key](evidence)
        if text:
            answers.append(Answer(question=question.text, text=text))
    return tuple(answers)
