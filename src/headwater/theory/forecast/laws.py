"""Tensors that are no signal: independent elements of one law, known values, and those nothing is known of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from headwater.theory.forecast.axes import Atom, Axes, Splits, flat, split_atoms

__all__ = ["Known", "Law", "Source", "rename", "uneven_lengths"]


def rename(axes: Axes, names: dict[Atom, Atom]) -> Axes:
    """Axes with some atoms under other names."""
    return tuple(tuple(names.get(a, a) for a in dimension) for dimension in axes)


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
