"""What is known of a tensor: its values, the law of its elements, or the statistics of a random signal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from headwater.theory.forecast.axes import Atom, Axes, NoRuleError, Splits, flat, refine, split_atoms
from headwater.theory.forecast.length import GradientProfile, LengthLaw
from headwater.theory.forecast.memory import Branch, Memory
from headwater.theory.forecast.pointwise import Function, function_fourth_ratio, function_stats
from headwater.theory.forecast.stats import Stats
from headwater.theory.forecast.transport import Transport

__all__ = [
    "Known",
    "Law",
    "Root",
    "Shortcut",
    "Signal",
    "Source",
    "Term",
    "Thing",
    "rename",
    "to_signal",
    "uneven_lengths",
    "unify",
]


_LARGEST_SAMPLE = 1 << 22  # elements of known values that moments are taken of; chosen by us


@dataclass(eq=False)
class Root:
    """One random tensor; signals that are multiples or functions of the same root move together.

    Attributes:
        stats: its moments.
        spread: relative variance, between draws of the weights, of its mean square: what moves the mean of the
            logarithm below the logarithm of the mean.
        structure: what else a rule knows about it (attention weights and their gradients).
        main_share: of a sum of two: the larger part's share of the mean square; 0 for anything else.
        shortcut: of a sum with a function of an earlier Gaussian (a shortcut around a branch): how it came about.
        parts: of a sum: the random tensors it is the sum of, each with its factor.
        memory: of a gradient that came down a shortcut: the Gaussian at its lower end and how the moments depend on it.
        law: of pre-activations of a dense layer: the law of a sample's squared length; None where it is not followed.
        profile: of a gradient: its square as a function of the sample's length at the layer it comes from, or None.
        removed: of a gradient: how much of its component along the mean over features, and along what the normalisation
            before this one put out, was projected out already, 0 to 1 each.
    """

    stats: Stats
    spread: float = 0.0
    structure: Any = None
    main_share: float = 0.0
    removed: tuple[float, float] = (0.0, 0.0)
    shortcut: Shortcut | None = None
    parts: tuple[tuple[Term, float], ...] = ()
    memory: tuple[Term, Memory] | None = None
    law: LengthLaw | None = None
    profile: GradientProfile | None = None

    def whole_spread(self, samples: int) -> float:
        """The spread with what the lengths of samples bring about in a gradient.

        Args:
            samples: B.

        Returns:
            Relative variance of the mean square.
        """
        return self.spread + (0.0 if self.profile is None else self.profile.variance(samples))


@dataclass(frozen=True, eq=False)
class Term:
    """A root under the names that its positions have now.

    Attributes:
        root: the random tensor.
        atoms: the position atoms now, in the order in which the root's statistics count.
    """

    root: Root
    atoms: tuple[Atom, ...]

    @property
    def stats(self) -> Stats:
        """The root's statistics under these names."""
        return self.root.stats.with_atoms(self.atoms)

    def split(self, splits: Sequence[Splits]) -> Term:
        """With some atoms replaced by their factors."""
        return replace(self, atoms=flat(split_atoms((self.atoms,), splits)))

    def renamed(self, names: dict[Atom, Atom]) -> Term:
        """With some atoms under other names."""
        return replace(self, atoms=tuple(names.get(a, a) for a in self.atoms))


@dataclass(frozen=True, eq=False)
class Shortcut:
    """u = φ(t) + f.

    Attributes:
        term: t, a Gaussian.
        function: φ.
        branch: f.
        law: of u, as a function of the Gaussian of which this is remembered; None where u is that Gaussian.
    """

    term: Term
    function: Function
    branch: Branch
    law: Transport | None


@dataclass(eq=False)
class Signal:
    """A random tensor: carrier · f(base), either of them optional.

    Attributes:
        axes: what its dimensions count.
        carrier: a factor that is linear; None for a function of ``base`` alone.
        base: the Gaussian that ``function`` is of; None for a multiple of the carrier.
        function: f; None without a base.
        factor: the multiple, without a base.
        samples: B, how many samples the run has.
    """

    axes: Axes
    carrier: Term | None
    base: Term | None = None
    function: Function | None = None
    factor: float = 1.0
    samples: int = 1
    _stats: Stats | None = field(default=None, repr=False)
    _spread: float | None = field(default=None, repr=False)
    _along: tuple[Function | None, GradientProfile | None, float] | None = field(default=None, repr=False)

    @staticmethod
    def of(axes: Axes, stats: Stats, samples: int, spread: float = 0.0, structure: Any = None) -> Signal:
        """A new root."""
        return Signal(axes, Term(Root(stats, spread, structure), stats.atoms), samples=samples)

    @property
    def plain(self) -> bool:
        """Whether it is a multiple of a root."""
        return self.base is None

    @property
    def structure(self) -> Any:
        """What a rule left with the root, for plain signals."""
        return self.carrier.root.structure if self.plain and self.carrier is not None else None

    @property
    def removed(self) -> tuple[float, float]:
        """What a normalisation projected out of this gradient already."""
        return self.carrier.root.removed if self.plain and self.carrier is not None else (0.0, 0.0)

    @property
    def features(self) -> int:
        """How many features the tensor has: what the law of large numbers works on."""
        return max(1, math.prod(a.size for a in flat(self.axes) if a.kind in ("feature", "unknown")))

    @property
    def atoms(self) -> tuple[Atom, ...]:
        """The position atoms its statistics are over."""
        return self.stats.atoms

    @property
    def stats(self) -> Stats:
        """Its moments."""
        if self._stats is None:
            if self.base is None:
                assert self.carrier is not None
                stats = self.carrier.stats
                self._stats = stats if self.factor == 1.0 else stats.scaled(self.factor)
            else:
                assert self.function is not None
                values = function_stats(self.function, self.base.stats)
                if self.carrier is not None:
                    atoms = tuple(dict.fromkeys((*self.base.atoms, *self.carrier.atoms)))
                    memory = self.memory()
                    if memory is not None:
                        values = memory.factor(self.function, self.base.stats)
                    values = self.carrier.stats.broadcast(atoms).product(values.broadcast(atoms))
                    values = values.scaled(math.sqrt(self._behind_slope()[1]))
                self._stats = values
        return self._stats

    def memory(self) -> Memory | None:
        """How the carrier's moments depend on the Gaussian that ``function`` is of; None where they do not."""
        if self.carrier is None or self.base is None or self.carrier.root.memory is None:
            return None
        term, memory = self.carrier.root.memory
        atoms = self.carrier.root.stats.atoms
        if len(atoms) != len(self.carrier.atoms):
            return None
        now = term.renamed(dict(zip(atoms, self.carrier.atoms, strict=True)))
        return memory if now.root is self.base.root and now.atoms == self.base.atoms else None

    def _behind_slope(self) -> tuple[GradientProfile | None, float]:
        """Of a gradient times φ'(u) where the law of u's length is known; None and 1 for anything else.

        Returns:
            Its profile, and E φ'² over that law over φ'² at the mean length.
        """
        if self._along is None or self._along[0] is not self.function:
            self._along = self.function, None, 1.0
            if self.carrier is not None and self.base is not None and self.carrier.root.law is None:
                law, of_base = self.base.root.law, self.base.stats
                if law is not None and of_base.positions == 1 == self.carrier.stats.positions:
                    assert self.function is not None
                    profile, factor = GradientProfile.behind_slope(self.carrier.root.profile, law, self.function)
                    flat = function_stats(self.function, of_base).average()
                    if factor > 0.0 and flat > 0.0:
                        self._along = self.function, profile, factor / flat
        return self._along[1:]

    @property
    def profile(self) -> GradientProfile | None:
        """Of a gradient: its square as a function of the sample's length, where that is followed."""
        if self.plain:
            assert self.carrier is not None
            return self.carrier.root.profile
        return self._behind_slope()[0]

    @property
    def noise(self) -> float:
        """The spread without what the lengths of samples bring about."""
        profile = self.profile
        return max(0.0, self.spread - (0.0 if profile is None else profile.variance(self.samples)))

    @property
    def spread(self) -> float:
        """Relative variance of its mean square between draws."""
        if self._spread is None:
            base = self.base
            if base is None:
                assert self.carrier is not None
                self._spread = self.carrier.root.whole_spread(self.samples)
            else:
                assert self.function is not None
                of_base = base.stats
                if self.carrier is None:
                    # The function's own unevenness replaces that of its Gaussian, 2ρ²/n.
                    uneven = function_fourth_ratio(self.function, of_base, self.samples)
                    own = 2.0 * of_base.mean_squared_correlation(self.samples)
                    self._spread = max(0.0, base.root.spread + (uneven - own) / self.features)
                else:
                    atoms = tuple(dict.fromkeys((*base.atoms, *self.carrier.atoms)))
                    weights = self.carrier.stats.broadcast(atoms)
                    uneven = function_fourth_ratio(self.function, of_base.broadcast(atoms), self.samples, weights)
                    profile, root = self._behind_slope()[0], self.carrier.root
                    if profile is None:
                        self._spread = root.whole_spread(self.samples) + uneven / self.features
                    else:  # the whole path's, instead of the carrier's part of it
                        self._spread = root.spread + profile.variance(self.samples) + uneven / self.features
        return self._spread

    # ---------------------------------------------------------------- the same numbers under other names

    def with_axes(self, axes: Axes) -> Signal:
        """Other dimensions of the same atoms."""
        return replace(self, axes=axes)

    def changed(self, axes: Axes, change: Callable[[Term], Term], stats: Callable[[Stats], Stats]) -> Signal:
        """The same signal with its terms under other names."""
        return replace(
            self,
            axes=axes,
            carrier=None if self.carrier is None else change(self.carrier),
            base=None if self.base is None else change(self.base),
            _stats=None if self._stats is None else stats(self._stats),
        )

    def split(self, splits: Sequence[Splits]) -> Signal:
        """With some atoms replaced by their factors."""
        if not splits:
            return self
        return self.changed(split_atoms(self.axes, splits), lambda t: t.split(splits), lambda s: s.split(splits))

    def renamed(self, names: dict[Atom, Atom]) -> Signal:
        """With some atoms under other names."""
        if all(a == b for a, b in names.items()):
            return self
        return self.changed(
            rename(self.axes, names),
            lambda t: t.renamed(names),
            lambda s: s.with_atoms(tuple(names.get(a, a) for a in s.atoms)),
        )

    def laid_out(self, positions: dict[Atom, Atom]) -> Signal:
        """With some features counted as positions, whose numbers are independent of one another.

        Args:
            positions: feature atom to position atom.

        Returns:
            The signal, a root of its own where there are any.
        """
        if not positions:
            return self
        stats = self.stats.independent(tuple(positions.values()))
        return Signal.of(rename(self.axes, positions), stats, self.samples, self.spread)

    def forgotten(self) -> Signal:
        """The same moments as a root of its own, independent of where they came from."""
        return Signal.of(self.axes, self.stats, self.samples, self.spread)

    def over(self, axes: Axes) -> Stats:
        """Statistics over all positions of ``axes``."""
        return self.stats.broadcast([a for a in flat(axes) if a.kind == "position"])


@dataclass(eq=False)
class Law:
    """A tensor of independent elements of one law: a weight, or inputs of which only moments are given.

    Attributes:
        axes: what its dimensions count; ``unknown`` until it meets a signal.
        mean: of an element.
        variance: of an element.
        pieces: (share, mean, variance) of parts along the first dimension that follow different laws (the gates of an
            LSTM's bias); the shares sum to 1. Empty when one law holds for all.
    """

    axes: Axes
    mean: float
    variance: float
    pieces: tuple[tuple[float, float, float], ...] = ()

    @staticmethod
    def of_pieces(axes: Axes, pieces: Sequence[tuple[float, float, float]]) -> Law:
        """A law made of parts along the first dimension.

        Args:
            axes: what its dimensions count.
            pieces: (share, mean, variance); neighbours of one law are joined.

        Returns:
            The law; ``mean`` and ``variance`` are those of an element drawn anywhere.
        """
        joined: list[tuple[float, float, float]] = []
        for share, mean, variance in pieces:
            if share <= 0.0:
                continue
            if joined and joined[-1][1:] == (mean, variance):
                joined[-1] = (joined[-1][0] + share, mean, variance)
            else:
                joined.append((share, mean, variance))
        mean = math.fsum(p * m for p, m, _ in joined)
        square = math.fsum(p * (v + m * m) for p, m, v in joined)
        return Law(axes, mean, max(0.0, square - mean**2), tuple(joined) if len(joined) > 1 else ())

    def parts(self, start: float, stop: float) -> list[tuple[float, float, float]]:
        """The pieces between two shares of the first dimension, their shares of the whole."""
        found, at = [], 0.0
        for share, mean, variance in self.pieces or ((1.0, self.mean, self.variance),):
            inside = min(stop, at + share) - max(start, at)
            if inside > 1e-9:
                found.append((inside, mean, variance))
            at += share
        return found

    def part(self, start: float, stop: float) -> tuple[float, float]:
        """Mean and variance of the elements between two shares of the first dimension."""
        law = Law.of_pieces((), [(p / (stop - start), m, v) for p, m, v in self.parts(start, stop)])
        return law.mean, law.variance

    @property
    def square(self) -> float:
        """Second moment of an element."""
        return self.mean**2 + self.variance

    def split(self, splits: Sequence[Splits]) -> Law:
        """With some atoms replaced by their factors."""
        return replace(self, axes=split_atoms(self.axes, splits))

    def renamed(self, names: dict[Atom, Atom]) -> Law:
        """With some atoms under other names."""
        return replace(self, axes=rename(self.axes, names))


@dataclass(eq=False)
class Known:
    """A tensor whose values are known: inputs, masks, angles, ones.

    Attributes:
        axes: what its dimensions count; ``unknown`` until it meets a signal.
        value: the values.
    """

    axes: Axes
    value: Tensor

    def split(self, splits: Sequence[Splits]) -> Known:
        """With some atoms replaced by their factors."""
        return replace(self, axes=split_atoms(self.axes, splits))

    def renamed(self, names: dict[Atom, Atom]) -> Known:
        """With some atoms under other names."""
        return replace(self, axes=rename(self.axes, names))


@dataclass(frozen=True)
class Source:
    """A tensor about which nothing is known, because of the operation that made it.

    Attributes:
        operation: its name.
    """

    operation: str


Thing: TypeAlias = Signal | Law | Known


def rename(axes: Axes, names: dict[Atom, Atom]) -> Axes:
    """Axes with some atoms under other names."""
    return tuple(tuple(names.get(a, a) for a in dimension) for dimension in axes)


# -------------------------------------------------------------------- two tensors side by side

_STRONG = {"feature": 3, "position": 2, "sample": 2, "unknown": 0}


def unify(first: Thing, second: Thing, pairs: Sequence[tuple[int, int]]) -> tuple[Thing, Thing]:
    """Give two tensors the same atoms in dimensions that run together.

    Args:
        first: the one; of two different kinds its own wins when it is a signal, or the other is none.
        second: the other.
        pairs: (dimension of the first, dimension of the second).

    Returns:
        Both, under common names. A dimension of size 1 is left as it is.
    """
    for i, j in pairs:
        one, two = first.axes[i], second.axes[j]
        if not one or not two or one == two:
            continue
        if math.prod(a.size for a in one) != math.prod(a.size for a in two):
            raise NoRuleError("dimensions of different sizes meet")
        left, right = refine(one, two)
        first, second = first.split(left), second.split(right)
        if isinstance(first, Signal) and isinstance(second, Signal):
            # Gates over what the other counts as positions: numbers of their own for each.
            pairs_of_atoms = list(zip(first.axes[i], second.axes[j], strict=True))
            first = first.laid_out({a: b for a, b in pairs_of_atoms if a.kind == "feature" and b.kind == "position"})
            second = second.laid_out({b: a for a, b in pairs_of_atoms if b.kind == "feature" and a.kind == "position"})
        mine: dict[Atom, Atom] = {}
        theirs: dict[Atom, Atom] = {}
        for a, b in zip(first.axes[i], second.axes[j], strict=True):
            if a == b:
                continue
            a_wins = _STRONG[a.kind] > 0 and (isinstance(first, Signal) or not isinstance(second, Signal))
            if a_wins or b.kind == "unknown":
                if isinstance(second, Signal) and a.kind == "position" != b.kind and b.kind != "unknown":
                    raise NoRuleError("positions of one tensor meet features of another")
                theirs[b] = a
            else:
                mine[a] = b
        first, second = first.renamed(mine), second.renamed(theirs)
    return first, second


def to_signal(thing: Thing, axes: Axes, samples: int) -> Signal:
    """A tensor as a signal whose atoms have the kinds that ``axes`` gives them.

    Args:
        thing: under the same names as ``axes``.
        axes: of the tensor it meets, or of itself.
        samples: B.

    Returns:
        The signal; ``unknown`` atoms count as features.
    """
    if isinstance(thing, Signal):
        return thing
    if isinstance(thing, Law) and thing.pieces:
        means = [m for _, m, _ in thing.pieces]
        if (max(means) - min(means)) ** 2 > 1e-3 * thing.square:
            raise NoRuleError("a parameter whose parts have different means")
    mine = flat(thing.axes)
    positions = tuple(a for a in flat(axes) if a.kind == "position")
    own = tuple(a for a in positions if a in mine)
    has_samples = any(a.kind == "sample" for a in mine)
    stats = _known_stats(thing, own, has_samples) if isinstance(thing, Known) else _law_stats(thing, own, has_samples)
    return Signal.of(thing.axes, stats, samples)


def _law_stats(law: Law, atoms: tuple[Atom, ...], has_samples: bool) -> Stats:
    nodes = math.prod(a.nodes for a in atoms)
    one = torch.ones(nodes, dtype=torch.float64)
    apart = torch.full((nodes, nodes), law.mean**2, dtype=torch.float64)
    dense = all(a.dense for a in atoms)
    within = apart + law.variance * torch.eye(nodes, dtype=torch.float64) if dense else apart
    aligned = one * (law.mean**2 if has_samples else law.square)
    between = apart if has_samples else within
    return Stats(atoms, one * law.mean, one * law.square, within, aligned, between)


def _known_stats(known: Known, atoms: tuple[Atom, ...], has_samples: bool) -> Stats:
    """Moments over the values: samples and features averaged, positions kept or pooled."""
    value = known.value.detach()
    mine = flat(known.axes)
    value = value.reshape([a.size for a in mine] or [1])
    sample = [i for i, a in enumerate(mine) if a.kind == "sample"]
    place = [mine.index(a) for a in atoms]
    rest = [i for i in range(len(mine)) if i not in sample and i not in place]
    count = math.prod(mine[i].size for i in sample)
    positions = math.prod(a.size for a in atoms)
    x = value.permute(*sample, *place, *rest) if mine else value
    x = x.reshape(count, positions, -1)  # (B, P, D)
    if x.numel() > _LARGEST_SAMPLE:  # some features stand for all
        x = x[..., :: math.ceil(x.numel() / _LARGEST_SAMPLE)]
    x = x.to(torch.float64)
    if not bool(torch.isfinite(x).all()):
        raise NoRuleError("a constant tensor with infinite values outside an attention mask")
    features = x.shape[2]
    total = x.sum(0)  # (P, D)
    if all(a.dense for a in atoms):
        mean, square = x.mean((0, 2)), (x * x).mean((0, 2))
        within = torch.einsum("bpd,bqd->pq", x, x) / (count * features)
        if count > 1:
            between = (total @ total.T / features - count * within) / (count * (count - 1))
        else:
            between = mean[:, None] * mean[None, :] if has_samples else within
        aligned = between.diagonal().clone() if has_samples else square
        return Stats(atoms, mean, square, within, aligned, between if has_samples else within)
    mean, square = x.mean().reshape(1), (x * x).mean().reshape(1)
    sums = x.sum(1)  # (B, D)
    pairs = positions * (positions - 1)
    apart = float((sums**2).sum() - (x * x).sum()) / (count * features * pairs)
    aligned_value = float((total**2).sum() - (x * x).sum()) / (features * positions * max(1, count * (count - 1)))
    whole = float((total.sum(0) ** 2).sum() - (sums**2).sum())  # different samples, any positions
    across = (whole - float((total**2).sum() - (x * x).sum())) / (features * pairs * max(1, count * (count - 1)))
    if not has_samples:
        aligned_value, across = float(square), apart
    within = torch.tensor([[apart]], dtype=torch.float64)
    aligned = torch.tensor([aligned_value], dtype=torch.float64)
    return Stats(atoms, mean, square, within, aligned, torch.tensor([[across]], dtype=torch.float64))


def uneven_lengths(thing: Known | Law) -> float:
    """How much the samples of an input differ in length: Var over samples of ln mean x².

    Args:
        thing: known values, or independent numbers of one law, which are taken as Gaussian.

    Returns:
        The variance; 0 without samples.
    """
    mine = flat(thing.axes)
    samples = [i for i, a in enumerate(mine) if a.kind == "sample"]
    features = math.prod(a.size for a in mine if a.kind != "sample")
    if not samples:
        return 0.0
    if isinstance(thing, Law):
        ratio = thing.variance / thing.square if thing.square > 0.0 else 0.0
        return 2.0 * ratio * (2.0 - ratio) / features  # Var x² = 2 s⁴ + 4 m² s²
    value = thing.value.detach().reshape([a.size for a in mine]).double()
    lengths = value.square().mean([i for i in range(len(mine)) if i not in samples]).reshape(-1)
    lengths = lengths[lengths > 0.0]
    return float(lengths.log().var(correction=0)) if len(lengths) > 1 else 0.0
