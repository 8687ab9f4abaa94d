"""What each dimension of a tensor counts: samples, positions or features, kept through views and permutations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

__all__ = ["Atom", "Axes", "Kind", "NoRuleError", "axes_of_shape", "flat", "refine", "split_atoms", "viewed"]

Kind: TypeAlias = Literal["sample", "position", "feature", "unknown"]
"""``unknown`` takes the kind of what it meets; in a signal it is a copy: equal along that dimension."""

_numbers = itertools.count()


class NoRuleError(Exception):
    """A rule cannot say what an operation does to the moments; the engine names the operation in the coverage."""


@dataclass(frozen=True)
class Atom:
    """One indivisible factor of a dimension.

    Attributes:
        kind: what it counts.
        size: how many.
        dense: for positions: whether statistics are kept per position (True) or once for all of them.
        number: identity.
    """

    kind: Kind
    size: int
    dense: bool = True
    number: int = field(default_factory=lambda: next(_numbers))

    @property
    def nodes(self) -> int:
        """How many values the statistics hold along it."""
        return self.size if self.dense else 1

    def of_kind(self, kind: Kind, dense: bool = True) -> Atom:
        """A new atom of the same size."""
        return Atom(kind, self.size, dense)

    def renewed(self) -> Atom:
        """A copy with an identity of its own."""
        return replace(self, number=next(_numbers))


Axes: TypeAlias = tuple[tuple[Atom, ...], ...]
"""Per dimension its atoms, outer ones first; a dimension of size 1 has none."""


def axes_of_shape(shape: Sequence[int], kinds: Sequence[Kind] = (), dense: bool = True) -> Axes:
    """Fresh axes.

    Args:
        shape: of the tensor.
        kinds: one per dimension; ``unknown`` where it is shorter than the shape.
        dense: of the atoms.

    Returns:
        The axes.
    """
    kinds = [*kinds, *(["unknown"] * (len(shape) - len(kinds)))]  # type: ignore[list-item]
    return tuple((Atom(kind, size, dense),) if size != 1 else () for size, kind in zip(shape, kinds, strict=True))


def flat(axes: Axes) -> tuple[Atom, ...]:
    """All atoms in order."""
    return tuple(atom for dimension in axes for atom in dimension)


Splits: TypeAlias = dict[Atom, tuple[Atom, Atom]]


def viewed(axes: Axes, shape: Sequence[int]) -> tuple[Axes, list[Splits]]:
    """The axes after ``view(shape)``.

    Args:
        axes: before.
        shape: after, every size known.

    Returns:
        The axes and the splits that were needed, in the order in which they happened.

    Raises:
        NoRuleError: a dimension would hold part of an atom that does not divide.
    """
    rest = list(flat(axes))
    splits: list[Splits] = []
    found: list[tuple[Atom, ...]] = []
    for size in shape:
        taken: list[Atom] = []
        missing = size
        while missing > 1:
            if not rest:
                raise NoRuleError("a view onto more elements than there are")
            atom = rest.pop(0)
            if missing % atom.size == 0:
                taken.append(atom)
                missing //= atom.size
            elif atom.size % missing == 0:
                outer, inner = replace(atom.renewed(), size=missing), replace(atom.renewed(), size=atom.size // missing)
                splits.append({atom: (outer, inner)})
                taken.append(outer)
                rest.insert(0, inner)
                missing = 1
            else:
                raise NoRuleError(f"a view that cuts a dimension of {atom.size} into {missing}")
        found.append(tuple(taken))
    return tuple(found), splits


def split_atoms(axes: Axes, splits: Sequence[Splits]) -> Axes:
    """Axes with some atoms replaced by their two factors."""
    for split in splits:
        axes = tuple(tuple(part for atom in dimension for part in split.get(atom, (atom,))) for dimension in axes)
    return axes


def refine(first: tuple[Atom, ...], second: tuple[Atom, ...]) -> tuple[list[Splits], list[Splits]]:
    """Splits that make the atoms of two equal dimensions the same sizes.

    Args:
        first: atoms of the one.
        second: atoms of the other; the products of the sizes agree.

    Returns:
        Splits of the first and of the second.

    Raises:
        NoRuleError: the sizes have no common refinement.
    """
    one, two = list(first), list(second)
    splits: tuple[list[Splits], list[Splits]] = ([], [])
    while one and two:
        a, b = one[0], two[0]
        if a.size == b.size:
            one.pop(0)
            two.pop(0)
            continue
        small = min(a.size, b.size)
        which, atom, rest = (1, b, two) if b.size > small else (0, a, one)
        if atom.size % small:
            raise NoRuleError(f"dimensions of {math.prod(x.size for x in first)} made of different factors")
        outer, inner = replace(atom.renewed(), size=small), replace(atom.renewed(), size=atom.size // small)
        splits[which].append({atom: (outer, inner)})
        rest[0:1] = [outer, inner]
    return splits
