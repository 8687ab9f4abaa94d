"""The fourth verb: repairs that are proven on a copy before they are recommended."""

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
from headwater._explain_init import explain_init
from headwater.capture import LossRun
from headwater.errors import HeadwaterError, InputError
from headwater.records import Diagnosis, Verdict
from headwater.records.initialization import BiasInitialization
from headwater.records.remedy import Cost, NotTried, Prescription, Prescriptions, Trial, run_code
from headwater.remedies import DEFAULT_REMEDIES, NotApplicable, Patient, Remedy, Treatment, examine
from headwater.remedies.trial import Course, OptimizerRecipe, run_steps

__all__ = ["prescribe"]

ENOUGH = 4
"""The search ends with that many repairs that heal and lower the loss; chosen by us."""
_MOST_PAIRS = 40
_FEW_PAIRS = 6  # where single remedies heal the gradient and the loss is no lower for it; chosen by us
_MOST_UNHEALED_TRIALS = 6  # where nothing heals, so many attempts are trained nevertheless; chosen by us
_TIE = 0.05  # share of the best fall of the loss within which two repairs count as equal; chosen by us
_FEW = 16  # elements from which on a standard deviation is known well enough to compare; chosen by us
_TRAINED_SHARE = 0.25  # share of weights and biases that no initialiser draws, from which on a model counts as trained

Progress = Callable[[str, int, int], None]


def prescribe(
    model: nn.Module,
    inputs: Any = None,
    targets: Any = None,
    loss_fn: Callable[..., Tensor] | None = None,
    *,
    loss: Callable[[nn.Module], Tensor] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    trial_steps: int = 50,
    remedies: Sequence[Remedy] = DEFAULT_REMEDIES,
    budget_seconds: float = 60.0,
    keep_weights: bool | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Prescriptions:
    """Find what repairs the gradient flow of a model: every repair is tried on a copy, measured and trained for a few steps.

    The model is diagnosed; the remedies that fit the root cause are applied, each to a copy; the copy is diagnosed again
    and trained on the same batch, beside an unrepaired copy. Where no single remedy heals, pairs are tried. Your model is
    not touched until you call ``apply``.

    Args:
        model: any module that can be copied.
        inputs: as for ``measure``.
        targets: as for ``measure``.
        loss_fn: as for ``measure``.
        loss: as for ``measure``.
        optimizer: the trial uses its class and the options of its first group; without one, Adam with lr 1e-3.
        trial_steps: optimizer steps of the trial, on the one batch.
        remedies: what to try; any objects with a ``code`` and a call (:class:`headwater.remedies.Remedy`).
        budget_seconds: no repair is begun after that many seconds.
        keep_weights: True leaves out remedies that draw weights anew; None does so when the weights do not look freshly
            initialised.
        seed: of the weights that are drawn and of the trial.
        progress: called with (what, done, total).

    Returns:
        The prescriptions, best first: healed before not, then the lower loss after the trial, then the smaller change.
        Empty for a healthy model.

    Raises:
        InputError: two remedies share a code, a wrong argument, a model that cannot be copied; what ``measure`` raises.

    Example:
        >>> import torch, headwater as hw
        >>> _ = torch.manual_seed(0)
        >>> layers = [m for _ in range(8) for m in (torch.nn.Linear(16, 16), torch.nn.Sigmoid())]
        >>> model = torch.nn.Sequential(*layers, torch.nn.Linear(16, 2))
        >>> x, y = torch.randn(32, 16), torch.arange(32) % 2
        >>> rx = prescribe(model, x, y, torch.nn.functional.cross_entropy, trial_steps=10)
        >>> rx.verdict.value, rx.best.verdict_after.value
        ('vanishing', 'healthy')
    """
    _check(remedies, trial_steps, budget_seconds, optimizer)
    started = time.perf_counter()
    arguments = (inputs, targets, loss_fn, loss)
    diagnosis = diagnose(model, inputs, targets, loss_fn, loss=loss)
    if diagnosis.ok:
        return Prescriptions(
            items=(),
            verdict=diagnosis.verdict,
            before=diagnosis.profile,
            notes=("The model is healthy: there is nothing to prescribe.",),
            seconds=time.perf_counter() - started,
            budget_seconds=float(budget_seconds),
        )
    keep, why = _weights_to_keep(model, keep_weights)
    search = _Search(
        model=model,
        arguments=arguments,
        diagnosis=diagnosis,
        recipe=OptimizerRecipe.like(optimizer, model),
        steps=trial_steps,
        seed=seed,
        keep=keep,
        why=why,
        deadline=started + budget_seconds,
        budget=float(budget_seconds),
        progress=progress or _silent,
    )
    search.run(remedies)
    notes = list(search.notes)
    items = _ranked([attempt.prescription for attempt in search.attempts])
    if items and not items[0].healed:
        notes.append(f"Nothing that was tried heals it; the best attempt is {items[0].name}.")
    elif items and not items[0].proven:
        notes.append("What heals the gradient did not lower the loss of the trial below that of the unrepaired model.")
    elif not items:
        notes.append("No remedy could be tried: see the reasons.")
    return Prescriptions(
        items=items,
        verdict=diagnosis.verdict,
        cause=diagnosis.root.cause if diagnosis.root is not None else "",
        before=diagnosis.profile,
        not_tried=tuple(search.not_tried),
        keep_weights=keep,
        weights_note=why,
        notes=tuple(notes),
        seconds=time.perf_counter() - started,
        budget_seconds=float(budget_seconds),
    )


def _check(remedies: Sequence[Remedy], steps: int, budget: float, optimizer: object) -> None:
    codes = [r.code for r in remedies]
    twice = sorted({c for c in codes if codes.count(c) > 1})
    if twice:
        raise InputError(f"two remedies share the code {', '.join(twice)}: give each its own")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InputError(f"trial_steps should be a positive integer, got {steps!r}")
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not budget > 0:
        raise InputError(f"budget_seconds should be a number above 0, got {budget!r}")
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise InputError(f"optimizer should be a torch.optim.Optimizer, got {type(optimizer).__name__}")


def _silent(what: str, done: int, total: int) -> None:
    """No progress is shown."""


def _weights_to_keep(model: nn.Module, asked: bool | None) -> tuple[bool, str]:
    """Whether the weights may not be drawn anew, and how that was decided."""
    if asked is not None:
        return asked, f"keep_weights={asked} was asked for"
    report = explain_init(model)
    weights = [row.name for row in report.rows if row.distribution == "unknown"]
    odd = [row for row in report.biases if row.initializer == "no standard initialiser"]
    biases = [] if _of_one_law(odd) else [row.name for row in odd]
    total = len(report.rows) + len(report.biases)
    strange = len(weights) + len(biases)
    if total and strange / total > _TRAINED_SHARE:
        return True, (
            f"{strange} of {total} weights and biases have values that no initialiser draws, so the model seems to be trained; "
            "keep_weights=False draws them anew nevertheless"
        )
    return False, f"{total - strange} of {total} weights and biases look freshly initialised"


def _of_one_law(biases: Sequence[BiasInitialization]) -> bool:
    """Whether biases of several layers look drawn from one centred law: training moves each layer's by its own amount."""
    large = [b for b in biases if math.prod(b.shape) >= _FEW]
    if len(large) < 2 or not all(math.isfinite(b.std) and b.std > 0.0 for b in large):
        return False
    centred = all(abs(b.mean) < 4.0 * b.std / math.sqrt(math.prod(b.shape)) for b in large)
    alike = max(b.std for b in large) < 2.0 * min(b.std for b in large)
    return centred and alike


@dataclass
class _Attempt:
    """One remedy or pair that was applied to a copy."""

    remedies: tuple[Remedy, ...]
    treatment: Treatment
    diagnosis: Diagnosis
    prescription: Prescription


@dataclass
class _Search:
    """Tries remedies, then pairs of them, until enough heal or the time is spent."""

    model: nn.Module
    arguments: tuple[Any, Any, Any, Any]
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
    attempts: list[_Attempt] = field(default_factory=list)

    def loss_of(self, model: nn.Module) -> Tensor:
        return LossRun(*self.arguments)(model)

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
        self.baseline = run_steps(
            self.copied(self.model), self.loss_of, self.recipe, steps=self.steps, seed=self.seed, deadline=self.deadline
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
        if not self.proven():
            self.try_pairs()
        if not any(a.prescription.healed for a in self.attempts):
            for attempt in sorted(self.attempts, key=self.promise)[:_MOST_UNHEALED_TRIALS]:
                self.add_trial(attempt)
        if self.out_of_time():
            self.notes.append("The time was spent (budget_seconds) before everything was tried.")

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
            self.not_tried.append(_failure(remedy, error))

    def try_pairs(self) -> None:
        """Pairs of what was applied: structure first, weights after, the most promising first."""
        singles = [a for a in self.attempts if a.treatment.kind == "model"]
        pairs = [
            (a, b) if a.remedies[0].stage < b.remedies[0].stage else (b, a)
            for a, b in itertools.combinations(singles, 2)
            if a.remedies[0].stage != b.remedies[0].stage
        ]
        pairs.sort(key=lambda pair: sum(self.promise(a) for a in pair))
        pairs = pairs[: _MOST_PAIRS if not any(a.prescription.healed for a in singles) else _FEW_PAIRS]
        patients: dict[int, Patient] = {}
        for number, (first, second) in enumerate(pairs):
            if self.out_of_time() or self.proven() >= 2:
                break
            name = f"{first.remedies[0].name} + {second.remedies[0].name}"
            self.progress(name, number, len(pairs))
            try:
                patient = patients.get(id(first))
                if patient is None:
                    patient = patients[id(first)] = self.patient(self.repaired(first.treatment), first.diagnosis)
                then = second.remedies[0](patient)
                if isinstance(then, NotApplicable):
                    continue
                both = Treatment(
                    code=f"{first.treatment.code}\n\n{then.code}",
                    changes=first.treatment.changes + then.changes,
                    notes=tuple(dict.fromkeys(first.treatment.notes + then.notes)),
                )
                self.attempts.append(self.attempt((first.remedies[0], second.remedies[0]), both))
            except Exception as error:  # as above: listed, and the others go on
                code = f"{first.remedies[0].code}+{second.remedies[0].code}"
                self.not_tried.append(
                    NotTried(name=name, code=code, reason=f"{type(error).__name__}: {error}", failed=True)
                )
        if pairs:
            self.progress("done", len(pairs), len(pairs))

    def promise(self, attempt: _Attempt) -> float:
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

    def attempt(self, remedies: tuple[Remedy, ...], treatment: Treatment) -> _Attempt:
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
        attempt = _Attempt(remedies, treatment, after, prescription)
        if after.ok or treatment.kind == "training":
            self.add_trial(attempt)
        return attempt

    def add_trial(self, attempt: _Attempt) -> None:
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
        if not (self.baseline.note or course.note):
            length = min(len(before), len(after))
            before, after = before[:length], after[:length]
        own = "make_optimizer" in functions
        notes = [f"unrepaired: {self.baseline.note}"] if self.baseline.note else []
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


def _failure(remedy: Remedy, error: Exception) -> NotTried:
    return NotTried(name=remedy.name, code=remedy.code, reason=f"{type(error).__name__}: {error}", failed=True)


def _ranked(found: Sequence[Prescription]) -> tuple[Prescription, ...]:
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
