"""Random tensors by identity, and where they come from: what makes signals depend on one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from headwater.theory.forecast.axes import Atom, Splits, flat, split_atoms
from headwater.theory.forecast.length import GradientProfile, LengthLaw
from headwater.theory.forecast.memory import Branch, Memory
from headwater.theory.forecast.pointwise import Function
from headwater.theory.forecast.stats import Stats
from headwater.theory.forecast.transport import Transport

__all__ = ["Root", "Shortcut", "Term"]


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
