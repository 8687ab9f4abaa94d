"""What running a study gave: every figure beside the published one, trends, tables, answers in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from headwater.records.budget import gradient_budget
from headwater.records.diagnosis import Diagnosis
from headwater.records.finding import Finding, Verdict
from headwater.records.profile import Profile
from headwater.records.saved import Saved
from headwater.records.study_views import Cell, Chart, MatrixView, Series, StudyTable

__all__ = [
    "Answer",
    "Cell",
    "Chart",
    "Curve",
    "MatrixView",
    "Observation",
    "PrintedFigure",
    "Series",
    "StudyFinding",
    "StudyPrescription",
    "StudyResult",
    "StudyTable",
    "Trend",
    "VariantResult",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrintedFigure:
    """One number that the study prints, beside the published one and its ensemble.

    Attributes:
        parameter: whose gradient.
        value: the study's statistic in this run.
        low_log10: lower end of the central 99.9 % of the ensemble, log10.
        median_log10: median of the ensemble, log10.
        high_log10: upper end of the central 99.9 %, log10.
        published: the published figure, or None; 0.0 where the published format had rounded it to zero.
        published_text: the published figure as it was printed.
        percentile: share of the ensemble's draws below the published figure, 0 to 1; None without one.
        relative_error: |value − published| / |published| where the study fixed its seed, else None.
        agrees: whether the figure is reproduced (fixed seed) or lies inside the central 99.9 % (no seed); None when
            nothing was published for it, or the ensemble has fewer than 1,000 draws.
    """

    parameter: str
    value: float
    low_log10: float
    median_log10: float
    high_log10: float
    published: float | None = None
    published_text: str | None = None
    percentile: float | None = None
    relative_error: float | None = None
    agrees: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """The rate of one quantity along depth, over many draws of the network.

    Each draw gives one least-squares slope of log10(quantity) over the layer index, from the input side.

    Attributes:
        quantity: what is followed: ``∂L/∂h``, ``∂L/∂W``, ``activation``.
        decades_per_layer: mean slope *towards the input* (negative: the quantity shrinks on its way to layer 1; for
            the activation, which travels the other way, towards the output).
        low: lower end of the 95 % interval of that mean over draws (normal approximation).
        high: upper end.
        single_low: 2.5 % quantile of the slope of a single draw.
        single_high: 97.5 % quantile.
        draws: draws that entered (a draw with an exact zero anywhere has no slope).
        layers: how many layers the line goes through.
        theory: the wide-network prediction, or None.
    """

    quantity: str
    decades_per_layer: float
    low: float
    high: float
    single_low: float
    single_high: float
    draws: int
    layers: int
    theory: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One quantity layer by layer over the ensemble (log10).

    Attributes:
        quantity: what it is.
        labels: one name per layer.
        median: median over draws, log10; None where most draws are exactly zero.
        low: 2.5 % quantile.
        high: 97.5 % quantile.
    """

    quantity: str
    labels: tuple[str, ...]
    median: tuple[float | None, ...]
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantResult:
    """One network of the study.

    Attributes:
        name: stable, such as ``sigmoid-default``.
        title: for people.
        description: the network in words: layers, activation, initialisation, loss.
        activation: the activation's name.
        initialization: the initialiser's name.
        sizes: units per layer, the input first.
        figures: what the study prints, in its order.
        profile: the full measurement of this run.
        trends: rates along depth over the ensemble.
        curves: the ensemble layer by layer.
        slope_decades: mean over draws and layers of what the activation's slope takes from ∂L/∂h per layer (log10).
        weight_decades: the same for the multiplication by the weights; the two add up to the end-to-end rate.
        zero_fraction: mean share of weight-gradient elements that are exactly zero, over the ensemble.
        verdict: what :func:`headwater.diagnose` calls the network of this run.
        findings: what that rests on, worst first.
        undecided: what one measurement could not settle, in words.
        further_verdicts: how many of the networks drawn after this run get which verdict, the most frequent first.
    """

    name: str
    title: str
    description: str
    activation: str
    initialization: str
    sizes: tuple[int, ...]
    figures: tuple[PrintedFigure, ...]
    profile: Profile
    trends: tuple[Trend, ...]
    curves: tuple[Curve, ...]
    slope_decades: float | None
    weight_decades: float | None
    zero_fraction: float
    verdict: Verdict
    findings: tuple[Finding, ...]
    undecided: tuple[str, ...]
    further_verdicts: Mapping[str, int]

    @property
    def diagnosis(self) -> Diagnosis:
        """The diagnosis of this run, with its gradient budget."""
        return Diagnosis(
            verdict=self.verdict,
            findings=self.findings,
            budget=gradient_budget(self.profile),
            profile=self.profile,
            undecided=self.undecided,
        )

    def trend(self, quantity: str) -> Trend | None:
        """The trend of one quantity, or None when no draw gave one."""
        return next((t for t in self.trends if t.quantity == quantity), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """Something that the notebook's author saw once, tested over many draws.

    Attributes:
        claim: the observation.
        statistic: what was computed, over what.
        value: the statistic.
        low: lower end of its 95 % interval.
        high: upper end.
        unit: of the three.
        draws: how many networks.
        outcome: whether the draws bear it out.
        sentence: the answer in words, with the numbers.
    """

    claim: str
    statistic: str
    value: float
    low: float
    high: float
    unit: str
    draws: int
    outcome: Literal["holds", "does not hold", "undecided"]
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A question of the study and its answer, composed from the measurements.

    Attributes:
        question: as a reader would ask it.
        text: the answer, with numbers.
    """

    question: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyFinding:
    """Something that concerns the study as a whole and that its printout does not show.

    Attributes:
        code: stable: a detector's, such as ``HW502``, or ``published-outside``.
        defect: its name in a few words.
        text: what it is, with its evidence.
        where: names of the networks that have it.
    """

    code: str
    defect: str
    text: str
    where: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyPrescription:
    """What :func:`headwater.prescribe` found for one network of the study.

    Attributes:
        variant: name of the network.
        remedy: the best repair, in a few words; empty when none could be tried.
        codes: of the remedies that it consists of.
        changes: layer by layer, one line each.
        code: Python that makes the change to ``model``.
        verdict_before: of the network as it is.
        verdict_after: of the repaired copy.
        decades_before: log10 of rms(∂L/∂first) over rms at the loss, along the trunk; None where it has no such end.
        decades_after: the same for the repaired copy.
        losses_before: loss of the network as it is, before each step of the trial and after the last; empty without one.
        losses_after: loss of the repaired copy, likewise.
        optimizer: class name of what the trial stepped with; empty without one.
        learning_rate: of the trial; NaN where layers have their own, or without a trial.
        tried: how many repairs were tried.
        notes: what to know, such as that the time was spent.
        seconds: what the search took.
        budget_seconds: what it was allowed to take.
    """

    variant: str
    remedy: str
    codes: tuple[str, ...]
    changes: tuple[str, ...]
    code: str
    verdict_before: Verdict
    verdict_after: Verdict
    decades_before: float | None
    decades_after: float | None
    losses_before: tuple[float, ...]
    losses_after: tuple[float, ...]
    optimizer: str
    learning_rate: float
    tried: int
    notes: tuple[str, ...]
    seconds: float
    budget_seconds: float

    @property
    def healed(self) -> bool:
        """Whether the repaired copy has a healthy verdict."""
        return self.verdict_after is Verdict.HEALTHY


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyResult(Saved):
    """One study, run.

    Attributes:
        name: stable, such as ``deep-sigmoid``.
        title: for people.
        question: what the study asks.
        source: where its networks and figures come from, in words.
        statistic: what it prints for each parameter.
        seed: of this run.
        draws: networks in each ensemble.
        varied: what differs from the published study (option to value); empty: nothing.
        variants: its networks.
        answers: the questions it leaves, answered.
        findings: what a reader would not see.
        observations: claims tested over many draws.
        tables: its own tables.
        charts: its own charts.
        matrices: weights beside gradients.
        notes: what to know about the figures.
        torch_version: of the run.
        seconds: how long it took.
        prescription: of the first network that is not healthy; None when all are, or none was asked for.
    """

    SCHEMA: ClassVar[str] = "headwater.study"

    name: str
    title: str
    question: str
    source: str
    statistic: str
    seed: int
    draws: int
    varied: Mapping[str, str]
    variants: tuple[VariantResult, ...]
    answers: tuple[Answer, ...]
    findings: tuple[StudyFinding, ...]
    observations: tuple[Observation, ...]
    tables: tuple[StudyTable, ...]
    charts: tuple[Chart, ...]
    matrices: tuple[MatrixView, ...]
    notes: tuple[str, ...]
    torch_version: str
    seconds: float
    prescription: StudyPrescription | None = None

    def variant(self, name: str) -> VariantResult:
        """The result of one network.

        Args:
            name: its name.

        Returns:
            The result.

        Raises:
            KeyError: there is no such network; the message lists those there are.
        """
        for variant in self.variants:
            if variant.name == name:
                return variant
        raise KeyError(f"{self.name} has no network {name!r}; it has {', '.join(v.name for v in self.variants)}")
