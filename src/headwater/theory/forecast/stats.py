"""Second-order statistics of a tensor over positions and samples: what a wide network is described by."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from headwater.theory.forecast.axes import Atom, NoRuleError, Splits

__all__ = ["Stats"]

Pairwise: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Stats:
    """Moments of the features of a tensor, by position, and their covariances between positions and samples.

    Features are exchangeable: one number stands for all of them. All covariances are raw products E[x y] of the *same*
    feature. G is the number of position nodes: all positions, or 1 when one number stands for all of them.

    Attributes:
        atoms: the position atoms, in the order in which G counts.
        mean: E over features and samples, (G,).
        square: q, E x², (G,).
        within: E x_i x_j of two positions of one sample, (G, G); of a node with itself: of two *different* positions
            when one node stands for several, else q.
        aligned: E x_i y_i of the same position in two samples, (G,).
        between: E x_i y_j of two positions in two samples, (G, G); of a node with itself as for ``within``.
    """

    atoms: tuple[Atom, ...]
    mean: Tensor
    square: Tensor
    within: Tensor
    aligned: Tensor
    between: Tensor

    @staticmethod
    def constant(mean: float, square: float) -> Stats:
        """One number without positions, equal for all samples."""
        m, q = torch.tensor([mean], dtype=torch.float64), torch.tensor([square], dtype=torch.float64)
        return Stats((), m, q, q[None], q, q[None])

    @property
    def nodes(self) -> int:
        """G."""
        return len(self.square)

    @property
    def positions(self) -> int:
        """How many positions the nodes stand for."""
        return math.prod(a.size for a in self.atoms)

    @property
    def dense(self) -> bool:
        """Whether every position has its own node."""
        return self.positions == self.nodes

    def average(self) -> float:
        """Q averaged over positions."""
        return float(self.square.mean())

    # ---------------------------------------------------------------- arithmetic

    def scaled(self, factor: float) -> Stats:
        """Of the tensor times a number."""
        return self.times(torch.full_like(self.mean, factor))

    def times(self, factor: Tensor) -> Stats:
        """Of the tensor times a number per position."""
        outer = factor[:, None] * factor[None, :]
        square = factor * factor
        return replace(
            self,
            mean=self.mean * factor,
            square=self.square * square,
            within=self.within * outer,
            aligned=self.aligned * square,
            between=self.between * outer,
        )

    def plus(self, other: Stats) -> Stats:
        """Of the sum with an independent tensor over the same positions."""
        a, b = self.mean, other.mean
        cross = a[:, None] * b[None, :] + b[:, None] * a[None, :]
        return Stats(
            self.atoms,
            a + b,
            self.square + other.square + 2.0 * a * b,
            self.within + other.within + cross,
            self.aligned + other.aligned + 2.0 * a * b,
            self.between + other.between + cross,
        )

    def product(self, other: Stats) -> Stats:
        """Of the elementwise product with an independent tensor over the same positions."""
        return Stats(
            self.atoms,
            self.mean * other.mean,
            self.square * other.square,
            self.within * other.within,
            self.aligned * other.aligned,
            self.between * other.between,
        )

    def centred(self) -> Stats:
        """Of the tensor minus its mean over features."""
        outer = self.mean[:, None] * self.mean[None, :]
        square = self.mean * self.mean
        return replace(
            self,
            mean=torch.zeros_like(self.mean),
            square=(self.square - square).clamp_min(0.0),
            within=self.within - outer,
            aligned=self.aligned - square,
            between=self.between - outer,
        )

    def without_mean(self) -> Stats:
        """The same second moments, mean 0: what a matrix with independent zero-mean entries makes of it."""
        return replace(self, mean=torch.zeros_like(self.mean))

    def fixed_diagonals(self) -> Stats:
        """Diagonals of the covariances made equal to the moments where every node is one position."""
        if not self.dense:
            return self
        within, between = self.within.clone(), self.between.clone()
        within.diagonal().copy_(self.square)
        between.diagonal().copy_(self.aligned)
        return replace(self, within=within, between=between)

    # ---------------------------------------------------------------- sums over positions and samples

    def pair_sums(self, other: Stats) -> tuple[Tensor, Tensor]:
        """Σ over position pairs of the product of two tensors' covariances: within one sample, and between two.

        Args:
            other: over the same positions.

        Returns:
            Both sums, scalars.
        """
        if self.dense:
            return (self.within * other.within).sum(), (self.between * other.between).sum()
        n = self.positions / self.nodes
        one = n * (self.square * other.square).sum() + n * (n - 1.0) * (self.within * other.within).diagonal().sum()
        two = n * (self.aligned * other.aligned).sum() + n * (n - 1.0) * (self.between * other.between).diagonal().sum()
        return one, two

    def normalised(self) -> Stats:
        """Of the tensor divided by its rms at each position; 0 where it is 0."""
        positive = self.square > 0.0
        return self.times(torch.where(positive, torch.where(positive, self.square, 1.0).rsqrt(), 0.0))

    def total_square(self, samples: int) -> float:
        """E (Σ x)² over samples and positions; exactly 0 where the sum cancels to rounding.

        Args:
            samples: B.

        Returns:
            The second moment of the sum, per feature.
        """
        within, between = self.pair_sums(self.ones())
        total = float(samples * within + samples * (samples - 1) * between)
        alone = samples * self.positions * self.average()
        return total if total > 1e-10 * alone else 0.0

    def ones(self) -> Stats:
        """The statistics of a tensor of ones over the same positions."""
        one, square = torch.ones_like(self.mean), torch.ones_like(self.within)
        return Stats(self.atoms, one, one, square, one, square)

    def mean_squared_correlation(self, samples: int) -> float:
        """ρ² averaged over all pairs of samples and positions, a pair with itself included: 1/N to 1.

        Args:
            samples: B.

        Returns:
            The average.
        """
        unit = self.normalised()
        one, two = unit.pair_sums(unit)
        n = self.positions
        return float((one + (samples - 1) * two) / (samples * n * n))

    # ---------------------------------------------------------------- positions

    def with_atoms(self, atoms: Sequence[Atom]) -> Stats:
        """The same numbers under other names of the atoms."""
        return replace(self, atoms=tuple(atoms))

    def split(self, splits: Sequence[Splits]) -> Stats:
        """With some atoms replaced by their factors; G counts on in the same order."""
        atoms = self.atoms
        for step in splits:
            atoms = tuple(part for atom in atoms for part in step.get(atom, (atom,)))
        return replace(self, atoms=atoms)

    def reordered(self, atoms: Sequence[Atom]) -> Stats:
        """With G counting in another order of the same atoms."""
        atoms = tuple(atoms)
        if atoms == self.atoms:
            return self
        order = [self.atoms.index(a) for a in atoms]
        shape = [a.nodes for a in self.atoms]
        index = torch.arange(self.nodes).reshape(shape or [1]).permute(order or [0]).reshape(-1)
        return self.indexed(index, atoms)

    def indexed(self, index: Tensor, atoms: Sequence[Atom]) -> Stats:
        """With the nodes of ``index``, under new atoms; a node may come more than once."""
        return Stats(
            tuple(atoms),
            self.mean[index],
            self.square[index],
            self.within[index][:, index],
            self.aligned[index],
            self.between[index][:, index],
        )

    def broadcast(self, atoms: Sequence[Atom]) -> Stats:
        """Over more positions, equal along the new ones.

        Args:
            atoms: those of this tensor and new ones, in any order.

        Returns:
            The statistics over all of them.

        Raises:
            NoRuleError: per-position and pooled statistics meet.
        """
        if any(a not in atoms for a in self.atoms):
            raise NoRuleError("positions that the other tensor does not have")
        missing = [a for a in atoms if a not in self.atoms]
        if not missing:
            return self.reordered(atoms)
        if any(not a.dense for a in atoms):
            if self.nodes != 1:
                raise NoRuleError("statistics per position meet pooled ones")
            # One node for all positions: two different ones are equal when this tensor does not depend on them.
            if not self.atoms:
                pooled = replace(self, within=self.square[None].clone(), between=self.aligned[None].clone())
                return pooled.with_atoms(atoms)
            return self.with_atoms(atoms)
        inner = math.prod(a.size for a in missing)
        index = torch.arange(self.nodes).repeat_interleave(inner)
        return self.fixed_diagonals().indexed(index, (*self.atoms, *missing)).reordered(atoms)

    def independent(self, atoms: Sequence[Atom]) -> Stats:
        """Over more positions along which the numbers are others of the same law, not the same ones.

        Args:
            atoms: the new position atoms, all kept apart or none; counted after those of this tensor.

        Returns:
            The statistics over all of them: only the means are shared between two of the new positions.
        """
        atoms = tuple(atoms)
        if not atoms:
            return self
        mean = self.mean
        outer = mean[:, None] * mean[None, :]
        if any(not a.dense for a in atoms):
            if self.nodes != 1:
                raise NoRuleError("statistics per position meet pooled ones")
            return Stats((*self.atoms, *atoms), mean, self.square, outer, self.aligned, outer)
        n = math.prod(a.size for a in atoms)
        same = torch.eye(n, dtype=torch.float64)
        dense = self.fixed_diagonals()

        def spread(values: Tensor) -> Tensor:
            return torch.kron(outer, 1.0 - same) + torch.kron(values, same)

        return Stats(
            (*self.atoms, *atoms),
            mean.repeat_interleave(n),
            self.square.repeat_interleave(n),
            spread(dense.within),
            self.aligned.repeat_interleave(n),
            spread(dense.between),
        )

    def pooled(self, atoms: Sequence[Atom]) -> Stats:
        """One node for all positions: averages over positions, and over pairs of different ones.

        Args:
            atoms: the new names.

        Returns:
            The statistics with one node.
        """
        if self.nodes == 1:
            return self.with_atoms(atoms)
        n = self.nodes
        dense = self.fixed_diagonals()
        apart = [(k.sum() - k.diagonal().sum()) / (n * (n - 1)) for k in (dense.within, dense.between)]
        return Stats(
            tuple(atoms),
            self.mean.mean().reshape(1),
            self.square.mean().reshape(1),
            apart[0].reshape(1, 1),
            self.aligned.mean().reshape(1),
            apart[1].reshape(1, 1),
        )

    def unpooled(self, atoms: Sequence[Atom]) -> Stats:
        """A node for every position out of one for all: every pair of different ones is the average pair.

        Args:
            atoms: the new names, kept apart.

        Returns:
            The statistics per position.
        """
        n = math.prod(a.size for a in atoms)
        index = torch.zeros(n, dtype=torch.long)
        return self.indexed(index, atoms).fixed_diagonals()

    def averaged(self, positions: Sequence[Atom]) -> Stats:
        """Over some of the positions: averages over the others, each with itself.

        Args:
            positions: the atoms to keep.

        Returns:
            The statistics over them; the features of the other positions stand side by side.
        """
        rest = [a for a in self.atoms if a not in positions]
        if not rest:
            return self
        keep = [a for a in self.atoms if a in positions]
        if not self.dense:
            if not keep:
                return Stats((), self.mean, self.square, self.square[None], self.aligned, self.aligned[None])
            return self.with_atoms(keep)
        ordered = self.fixed_diagonals().reordered([*keep, *rest])
        n, m = math.prod(a.size for a in keep), math.prod(a.size for a in rest)

        def same(values: Tensor) -> Tensor:
            return torch.einsum("arbr->ab", values.reshape(n, m, n, m)) / m

        within, between = same(ordered.within), same(ordered.between)
        return Stats(
            tuple(keep),
            ordered.mean.reshape(n, m).mean(1),
            within.diagonal().clone(),
            within,
            between.diagonal().clone(),
            between,
        )
