"""What is known of a tensor: its values, the law of its elements, or the statistics of a random signal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch

from headwater.theory.forecast.axes import Atom, Axes, NoRuleError, Splits, flat, refine, split_atoms
from headwater.theory.forecast.laws import Known, Law, Source, rename, uneven_lengths
from headwater.theory.forecast.length import GradientProfile
from headwater.theory.forecast.memory import Memory
from headwater.theory.forecast.pointwise import Function, function_fourth_ratio, function_stats
from headwater.theory.forecast.roots import Root, Shortcut, Term
from headwater.theory.forecast.stats import Stats

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


Thing: TypeAlias = Signal | Law | Known


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
