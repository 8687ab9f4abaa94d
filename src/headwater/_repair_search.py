"""The search of :func:`headwater.prescribe`: remedies, then pairs of them, each applied to a copy, measured and trained."""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from headwater._diagnose import diagnose
from headwater.capture import LossRun
from headwater.errors import HeadwaterError, InputError
from headwater.records import Diagnosis, Verdict
from headwater.records.remedy import Cost, NotTried, Prescription, Trial, run_code
from headwater.remedies import NotApplicable, Patient, Remedy, Stage, Treatment, examine
from headwater.remedies.trial import SGD_LEARNING_RATE, Course, OptimizerRecipe, run_steps

__all__ = ["Attempt", "Progress", "Search", "ranked"]

ENOUGH = 4
"""The search ends with that many repairs that heal and lower the loss; chosen by us."""
_MOST_PAIRS = 40  # where no single remedy heals; chosen by us
_FEW_PAIRS = 6  # where single remedies heal the gradient and the loss is no lower for it; chosen by us
_MOST_UNHEALED_TRIALS = 6  # where nothing heals, so many attempts are trained nevertheless; chosen by us
_BASELINE_SHARE = 1 / 6  # of the budget for the unrepaired model's trial; longer steps mean fewer of them. Chosen by us
_TIE = 0.05  # share of the best fall of the loss within which two repairs count as equal; chosen by us
Progress = Callable[[str, int, int], None]
"""Called with (what, done, total)."""


@dataclass
class Attempt:
    """One remedy or pair that was applied to a copy."""

    remedies: tuple[Remedy, ...]
    treatment: Treatment
    diagnosis: Diagnosis
    prescription: Prescription


@dataclass
class Search:
    """Tries remedies, then pairs of them, until enough heal or the time is spent.

    ``arguments`` are what the model is diagnosed with, ``task`` what it is trained on: the same, unless no loss was given.
    """

    model: nn.Module
    arguments: tuple[Any, Any, Any, Any]
    task: tuple[Any, Any, Any, Any]
    diagnosis: Diagnosis
    recipe: OptimizerRecipe
    steps: int
    seed: int
    keep: bool
    why: str
    deadline: float
    budget: float
    progress: Progress
    not_tried: list[NotTried] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    baseline: Course = field(default_factory=lambda: Course((), math.nan))
    attempts: list[Attempt] = field(default_factory=list)

    def loss_of(self, model: nn.Module) -> Tensor:
        return LossRun(*self.task)(model)

    def copied(self, model: nn.Module) -> nn.Module:
        try:
            twin = copy.deepcopy(model)
        except (RuntimeError, TypeError, NotImplementedError, AttributeError, RecursionError) as error:
            raise InputError(
                f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}), and repairs are tried on copies"
            ) from error
        for parameter in twin.parameters():
            parameter.grad = None
        return twin

    def out_of_time(self) -> bool:
        return time.perf_counter() > self.deadline

    def run(self, remedies: Sequence[Remedy]) -> None:
        verdict = self.diagnosis.verdict
        fitting = sorted((r for r in remedies if verdict in r.treats), key=lambda r: r.treats[verdict])
        self.not_tried += [
            NotTried(name=r.name, code=r.code, reason=f"it treats {_listed(r)}, not {verdict.value}")
            for r in remedies
            if verdict not in r.treats
        ]
        self.baseline = self.unrepaired()
        if self.baseline.cut:  # its last loss is that before a step that was not taken: as many losses, one step fewer
            self.steps = len(self.baseline.losses) - 1
            self.notes.append(
                f"A step takes {self.baseline.seconds_per_step:.2g} s: the trials have {self.steps} steps."
            )
        patient = self.patient(self.copied(self.model), self.diagnosis)
        for number, remedy in enumerate(fitting):
            if self.out_of_time() or self.enough():
                break
            self.progress(remedy.name, number, len(fitting))
            self.try_one(remedy, patient)
        else:
            number = len(fitting)
        self.progress("done", len(fitting), len(fitting))
        why = "the time was spent before it" if self.out_of_time() else f"{self.proven()} others heal already"
        self.not_tried += [NotTried(name=r.name, code=r.code, reason=why) for r in fitting[number:]]
        if self.proven():
            self.try_with_input()
        else:
            self.try_pairs(self.pairs())
        if not any(a.prescription.healed for a in self.attempts):
            for attempt in sorted(self.attempts, key=self.promise)[:_MOST_UNHEALED_TRIALS]:
                self.add_trial(attempt)
        if self.out_of_time():
            self.notes.append("The time was spent (budget_seconds) before everything was tried.")

    def unrepaired(self) -> Course:
        """The trial of the model as it is; plain SGD where the optimizer cannot step on it."""
        deadline = min(self.deadline, time.perf_counter() + _BASELINE_SHARE * self.budget)
        for recipe in (self.recipe, OptimizerRecipe(torch.optim.SGD, {"lr": SGD_LEARNING_RATE})):
            try:
                course = run_steps(
                    self.copied(self.model), self.loss_of, recipe, steps=self.steps, seed=self.seed, deadline=deadline
                )
            except RuntimeError as error:
                failure = error
                self.notes.append(f"{recipe.cls.__name__} cannot train this model ({error}).")
            else:
                self.recipe = recipe
                return course
        raise InputError(f"no optimizer step can be taken on this model: {failure}") from failure

    def proven(self) -> int:
        return sum(a.prescription.proven for a in self.attempts)

    def enough(self) -> bool:
        """Several repairs are proven; or one is, and half of the time is gone."""
        late = time.perf_counter() > self.deadline - 0.5 * self.budget
        return self.proven() >= (1 if late else ENOUGH)

    def patient(self, model: nn.Module, diagnosis: Diagnosis) -> Patient:
        return examine(model, self.loss_of, diagnosis, keep_weights=self.keep, weights_note=self.why, seed=self.seed)

    def try_one(self, remedy: Remedy, patient: Patient) -> None:
        try:
            treatment = remedy(patient)
            if isinstance(treatment, NotApplicable):
                self.not_tried.append(NotTried(name=remedy.name, code=remedy.code, reason=treatment.reason))
                return
            self.attempts.append(self.attempt((remedy,), treatment))
        except Exception as error:  # one remedy's failure is listed and does not stop the others
            self.not_tried.append(_failure((remedy,), error))

    def pairs(self) -> list[tuple[Attempt, Attempt]]:
        """Pairs of what was applied: structure first, weights after, the most promising first."""
        singles = [a for a in self.attempts if a.treatment.kind == "model"]
        pairs = [
            (a, b) if a.remedies[0].stage < b.remedies[0].stage else (b, a)
            for a, b in itertools.combinations(singles, 2)
            if a.remedies[0].stage != b.remedies[0].stage
        ]
        pairs.sort(key=lambda pair: sum(self.promise(a) for a in pair))
        return pairs[: _MOST_PAIRS if not any(a.prescription.healed for a in singles) else _FEW_PAIRS]

    def try_with_input(self) -> None:
        """Inputs far from mean 0 and deviation 1 are a fault of their own: mended together with what heals."""
        inputs = [a for a in self.attempts if a.remedies[0].stage == Stage.INPUT]
        proven = [a for a in self.attempts if a.prescription.proven and a.treatment.kind == "model" and a not in inputs]
        self.try_pairs([(first, second) for first in inputs for second in proven[:_FEW_PAIRS]], enough=math.inf)

    def try_pairs(self, pairs: Sequence[tuple[Attempt, Attempt]], enough: float = 2) -> None:
        """Apply pairs, one after the other, until so many are proven or the time is spent."""
        patients: dict[int, Patient] = {}
        for number, (first, second) in enumerate(pairs):
            if self.out_of_time() or self.proven() >= enough:
                break
            self.progress(f"{first.remedies[0].name} + {second.remedies[0].name}", number, len(pairs))
            try:
                patient = patients.get(id(first))
                if patient is None:
                    patient = patients[id(first)] = self.patient(self.repaired(first.treatment), first.diagnosis)
                self.try_second(first, second, patient)
            except Exception as error:  # as for a single one: listed, and the others go on
                self.not_tried.append(_failure(first.remedies + second.remedies, error))
        if pairs:
            self.progress("done", len(pairs), len(pairs))

    def try_second(self, first: Attempt, second: Attempt, patient: Patient) -> None:
        """Plan the second remedy on a model that the first has changed, and apply both."""
        then = second.remedies[0](patient)
        if isinstance(then, NotApplicable):
            return
        both = Treatment(
            code=f"{first.treatment.code}\n\n{then.code}",
            changes=first.treatment.changes + then.changes,
            notes=tuple(dict.fromkeys(first.treatment.notes + then.notes)),
        )
        self.attempts.append(self.attempt(first.remedies + second.remedies, both))

    def promise(self, attempt: Attempt) -> float:
        """Small for what helped, or is the first choice for the verdict."""
        verdict = self.diagnosis.verdict
        turn = attempt.remedies[0].treats.get(verdict, 9)
        after = attempt.diagnosis
        if after.ok:
            return turn - 3.0
        return float(turn) - (1.0 if after.verdict is not verdict and after.verdict is not Verdict.NAN else 0.0)

    def repaired(self, treatment: Treatment) -> nn.Module:
        twin = self.copied(self.model)
        result: nn.Module = run_code(treatment.code, twin)["model"]
        return result

    def attempt(self, remedies: tuple[Remedy, ...], treatment: Treatment) -> Attempt:
        """Apply to a copy, diagnose it, and train it beside the unrepaired one."""
        twin = self.copied(self.model)
        functions = run_code(treatment.code, twin)
        after = self.diagnosis
        scale = functions.get("scale_loss")
        if scale is not None:
            after = diagnose(twin, loss=lambda m: scale(self.loss_of(m)))
        elif treatment.kind == "model":
            inputs, targets, loss_fn, loss = self.arguments
            after = diagnose(twin, inputs, targets, loss_fn, loss=loss)
            if after.profile.output_shape != self.diagnosis.profile.output_shape:
                raise HeadwaterError(
                    f"it changes the output's shape from {self.diagnosis.profile.output_shape} to "
                    f"{after.profile.output_shape}"
                )
        size = sum(p.numel() for p in twin.parameters()) - sum(p.numel() for p in self.model.parameters())
        prescription = Prescription(
            name=" + ".join(r.name for r in remedies),
            codes=tuple(r.code for r in remedies),
            kind=treatment.kind,
            changes=treatment.changes,
            code=treatment.code,
            before=self.diagnosis.profile,
            after=after.profile,
            verdict_before=self.diagnosis.verdict,
            verdict_after=after.verdict,
            cost=Cost(parameters_added=size),
            invasiveness=sum(r.invasiveness for r in remedies),
            notes=treatment.notes,
        )
        attempt = Attempt(remedies, treatment, after, prescription)
        if after.ok or treatment.kind == "training":
            self.add_trial(attempt)
        return attempt

    def add_trial(self, attempt: Attempt) -> None:
        """Train the repaired copy as the unrepaired one was trained, unless the time is spent."""
        if attempt.prescription.trial is not None or self.out_of_time():
            return
        twin = self.copied(self.model)
        functions = run_code(attempt.treatment.code, twin)
        course = run_steps(
            twin,
            self.loss_of,
            self.recipe,
            steps=self.steps,
            seed=self.seed,
            functions=functions,
            deadline=self.deadline,
        )
        ratio = course.seconds_per_step / self.baseline.seconds_per_step
        attempt.prescription = replace(
            attempt.prescription,
            trial=self.trial(course, functions),
            cost=replace(attempt.prescription.cost, step_time_ratio=ratio),
        )

    def trial(self, course: Course, functions: dict[str, Any]) -> Trial:
        """The course beside the baseline's, over as many steps as both have taken."""
        before, after = self.baseline.losses, course.losses
        if course.cut:
            before = before[: len(after)]
        own = "make_optimizer" in functions
        notes = [f"unrepaired: {self.baseline.note}"] if self.baseline.note and not self.baseline.cut else []
        notes += [f"repaired: {course.note}"] if course.note else []
        return Trial(
            before=before,
            after=after,
            optimizer="SGD, a rate per layer" if own else self.recipe.cls.__name__,
            learning_rate=math.nan if own else self.recipe.learning_rate,
            seed=self.seed,
            note="; ".join(notes),
        )


def _listed(remedy: Remedy) -> str:
    return ", ".join(v.value for v in remedy.treats)


def _failure(remedies: Sequence[Remedy], error: Exception) -> NotTried:
    return NotTried(
        name=" + ".join(r.name for r in remedies),
        code="+".join(r.code for r in remedies),
        reason=f"{type(error).__name__}: {error}",
        failed=True,
    )


def ranked(found: Sequence[Prescription]) -> tuple[Prescription, ...]:
    """Healed and with a lower loss first; then healed; then by the loss; equals by the smaller change."""
    means = [p.trial.mean_after for p in found if p.trial is not None and math.isfinite(p.trial.mean_after)]
    starts = [p.trial.before[0] for p in found if p.trial is not None and p.trial.before]
    best = min(means, default=0.0)
    start = next((s for s in starts if math.isfinite(s)), max(means, default=0.0))
    width = _TIE * max(start - best, 1e-12)

    def key(item: tuple[int, Prescription]) -> tuple[Any, ...]:
        number, p = item
        mean = p.trial.mean_after if p.trial is not None else math.nan
        # Past a thousand widths one is as bad as the other.
        level = min(1000, int((mean - best) / width)) if math.isfinite(mean) else 1001
        return (not p.healed, not p.proven, level, p.invasiveness, number)

    return tuple(p for _, p in sorted(enumerate(found), key=key))
