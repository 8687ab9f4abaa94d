"""One layer of an RNN, LSTM or GRU over T steps: moments of its states, and of the gradient through time.

The same weights act at every step, so the steps are positions: K[t, s] = E of the product of one feature at two steps, for
one sample and between two samples. With weights of independent entries of mean 0 and variance v,

    preactivation:  Q[t, s] = D v_W K_x[t, s] + H v_U K_h[t-1, s-1] + v_b
    state (tanh):   K_h[t, s] = E φ(u_t) φ(u_s)
    gradient:       S_h[t, s] = direct[t, s] + H v_U S_h[t+1, s+1] E φ'(u_{t+1}) φ'(u_{s+1})
    ∂L/∂U:          E = Σ over samples and steps of S_u[t, s] K_h[t-1, s-1]

which is the map of Poole et al. (NeurIPS 2016) and Schoenholz et al. (ICLR 2017) with time in place of depth, and is
Pascanu et al. (ICML 2013)'s product of Jacobians in the mean. Gates multiply: of gates that are functions of independent
rows the expectations multiply. Derived by us; gradients are taken as independent of what they meet, and powers of the one
matrix U as products of independent ones, which is right for T² small against H.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from headwater.theory.forecast.axes import NoRuleError
from headwater.theory.forecast.pointwise import Function, hermite_expansion

__all__ = ["CELLS", "Cell", "GatedUnit", "Gates", "LongShortTerm", "PlainCell", "RectifiedCell"]

Pairs = Tensor
"""(2, T, T): within one sample, and between two samples."""


def _tanh_slope(x: Tensor) -> Tensor:
    return 1.0 - torch.tanh(x) ** 2


def _sigmoid_slope(x: Tensor) -> Tensor:
    return torch.sigmoid(x) * torch.sigmoid(-x)


def _relu_slope(x: Tensor) -> Tensor:
    return (x > 0).to(x.dtype)


@dataclass(frozen=True)
class Gates:
    """The laws of one parameter, gate by gate.

    Attributes:
        mean: of an entry, one per gate.
        variance: of an entry, one per gate.
    """

    mean: tuple[float, ...]
    variance: tuple[float, ...]


class _Moments:
    """E φ(u_t) φ(u_s) for a Gaussian sequence whose covariances become known row by row."""

    def __init__(self, fn: Function, mean: float, steps: int) -> None:
        self.fn, self.centre = fn, mean
        self.pairs = torch.zeros(2, steps, steps, dtype=torch.float64)
        self.mean = torch.zeros(steps, dtype=torch.float64)
        self._rows: Tensor | None = None
        self._last: tuple[float, Tensor] | None = None

    def advance(self, t: int, covariance: Pairs) -> None:
        """Fill in row and column ``t`` from the covariances of u up to ``t``."""
        variance = float(covariance[0, t, t])
        if self._last is None or abs(variance - self._last[0]) > 1e-9 * variance:
            deviation = torch.tensor([max(variance, 0.0)], dtype=torch.float64).sqrt()
            row = hermite_expansion(self.fn, torch.tensor([self.centre], dtype=torch.float64), deviation)[0]
            self._last = variance, row
        row = self._last[1]
        if self._rows is None:
            self._rows = torch.zeros(self.pairs.shape[1], len(row), dtype=torch.float64)
        self._rows[t] = row
        self.mean[t] = row[0]
        own = covariance[0].diagonal()[: t + 1]
        scale = (own * variance).clamp_min(0.0).sqrt()
        positive = scale > 0.0
        rho = torch.where(positive, covariance[:, t, : t + 1] / torch.where(positive, scale, 1.0), 1.0).clamp(-1.0, 1.0)
        degrees = torch.arange(len(row), dtype=torch.float64)
        values = (rho[..., None] ** degrees * (self._rows[: t + 1] * row)).sum(-1)
        self.pairs[:, t, : t + 1] = values
        self.pairs[:, : t + 1, t] = values


def _decay(kept: Tensor, t: int, factor: Tensor) -> None:
    """Fill in row t of M[a, b] = Π_{b < k ≤ a} factor_k for b ≤ a: what is kept from step b to step a."""
    if t:
        kept[t, :t] = kept[t - 1, :t] * factor
    kept[t, t] = 1.0


@dataclass
class Cell:
    """One layer, in one direction.

    Args:
        steps: T.
        hidden: H, features of the state.
        inputs: D, features of the input.
        weight_ih: laws of the entries of W.
        weight_hh: of U.
        bias_ih: of the first bias; zero without one.
        bias_hh: of the second.

    Attributes:
        state: K_h after ``forward``, (2, T, T).
        before: the same one step earlier, the initial state first.
        state_mean: E h_t.
    """

    steps: int
    hidden: int
    inputs: int
    weight_ih: Gates
    weight_hh: Gates
    bias_ih: Gates
    bias_hh: Gates
    state: Pairs = field(init=False)
    before: Pairs = field(init=False)
    state_mean: Tensor = field(init=False)
    x: Pairs = field(init=False)

    gates: ClassVar[int] = 1

    def __post_init__(self) -> None:
        for law in (self.weight_ih, self.weight_hh):
            if any(m * m > 1e-3 * v for m, v in zip(law.mean, law.variance, strict=True) if m):
                raise NoRuleError("a recurrence whose weights do not average to zero")
        self.state = torch.zeros(2, self.steps, self.steps, dtype=torch.float64)
        self.state_mean = torch.zeros(self.steps, dtype=torch.float64)

    def _input(self, gate: int, *, bias: bool = True) -> Pairs:
        found = self.x * (self.inputs * self.weight_ih.variance[gate])
        return found + (self.bias_ih.variance[gate] + self.bias_hh.variance[gate] if bias else 0.0)

    def _recurrent(self, gate: int, before: Pairs) -> Pairs:
        return before * (self.hidden * self.weight_hh.variance[gate])

    def _bias_mean(self, gate: int) -> float:
        return self.bias_ih.mean[gate] + self.bias_hh.mean[gate]

    def forward(self, x: Pairs, hidden: Pairs, cell: Pairs) -> None:
        """Follow the states.

        Args:
            x: E x_t x_s of the input, (2, T, T).
            hidden: E h² of the initial state within a sample and between two, (2,).
            cell: the same of the LSTM's initial cell state.
        """
        raise NotImplementedError

    def backward(self, direct: Pairs, final: Pairs) -> tuple[Pairs, list[tuple[Pairs, Pairs]]]:
        """Send a gradient back through time.

        Args:
            direct: E of the gradient that reaches h_t from outside, (2, T, T).
            final: E of the gradient that reaches the LSTM's last cell state, (2,).

        Returns:
            E of ∂L/∂h_t with everything that comes back through time, (2, T, T), and per gate that of the gradient at the
            input's and at the state's product.
        """
        raise NotImplementedError

    # ------------------------------------------------------------ what the gradient of a gate makes

    def input_gradient(self, gates: list[tuple[Pairs, Pairs]]) -> Pairs:
        """E of ∂L/∂x_t."""
        total = torch.zeros_like(self.state)
        for variance, (of_input, _) in zip(self.weight_ih.variance, gates, strict=True):
            total += of_input * (self.hidden * variance)
        return total

    def start_gradient(self, gates: list[tuple[Pairs, Pairs]]) -> Tensor:
        """E of the gradient that the first step sends to the initial state by U, (2,)."""
        total = torch.zeros(2, dtype=torch.float64)
        for variance, (_, of_state) in zip(self.weight_hh.variance, gates, strict=True):
            total += of_state[:, 0, 0] * (self.hidden * variance)
        return total

    def weight_gradients(self, gates: list[tuple[Pairs, Pairs]], samples: int) -> tuple[float, float, float, float]:
        """E of the squared entries of ∂L/∂W, ∂L/∂U and both biases' gradients, averaged over the gates.

        Args:
            gates: from ``backward``.
            samples: B.

        Returns:
            The four mean squares.
        """
        weight = torch.tensor([samples, samples * (samples - 1)], dtype=torch.float64)[:, None, None]
        one = torch.ones_like(self.state)
        found = [0.0, 0.0, 0.0, 0.0]
        for of_input, of_state in gates:
            for k, (gradient, met) in enumerate(
                ((of_input, self.x), (of_state, self.before), (of_input, one), (of_state, one))
            ):
                found[k] += max(0.0, float((weight * gradient * met).sum())) / len(gates)
        return found[0], found[1], found[2], found[3]

    def _through_time(self, t: int, gates: list[Pairs]) -> Tensor:
        """What the gates of step t + 1 send to h_t, (2, steps from t on)."""
        found = torch.zeros(2, self.steps - t, dtype=torch.float64)
        if t + 1 < self.steps:
            for variance, gradient in zip(self.weight_hh.variance, gates, strict=True):
                found[:, : self.steps - t - 1] += gradient[:, t + 1, t + 1 :] * (self.hidden * variance)
        return found


def _fill(target: Pairs, t: int, values: Tensor) -> None:
    target[:, t, t:] = values
    target[:, t:, t] = values


@dataclass
class PlainCell(Cell):
    """h = tanh(W x + U h + b)."""

    functions: ClassVar[tuple[Function, Function]] = (torch.tanh, _tanh_slope)

    def forward(self, x: Pairs, hidden: Pairs, cell: Pairs) -> None:
        """Follow the states; see the base class."""
        self.x = x
        fn, slope = self.functions
        mean = self._bias_mean(0)
        values, slopes = _Moments(fn, mean, self.steps), _Moments(slope, mean, self.steps)
        before, given = torch.zeros_like(self.state), self._input(0)
        covariance = torch.zeros_like(self.state)
        before[:, 0, 0] = hidden
        for t in range(self.steps):
            covariance[:, t, : t + 1] = given[:, t, : t + 1] + self._recurrent(0, before[:, t, : t + 1])
            covariance[:, : t + 1, t] = covariance[:, t, : t + 1]
            values.advance(t, covariance)
            slopes.advance(t, covariance)
            if t + 1 < self.steps:
                before[:, t + 1, 1 : t + 2] = values.pairs[:, t, : t + 1]
                before[:, 1 : t + 2, t + 1] = values.pairs[:, t, : t + 1]
        self.state, self.state_mean, self.before, self._slopes = values.pairs, values.mean, before, slopes.pairs

    def backward(self, direct: Pairs, final: Pairs) -> tuple[Pairs, list[tuple[Pairs, Pairs]]]:
        """Through φ' and U, step by step; see the base class."""
        total, gate = torch.zeros_like(direct), torch.zeros_like(direct)
        for t in reversed(range(self.steps)):
            row = direct[:, t, t:] + self._through_time(t, [gate])
            _fill(total, t, row)
            _fill(gate, t, row * self._slopes[:, t, t:])
        return total, [(gate, gate)]


@dataclass
class RectifiedCell(PlainCell):
    """h = max(0, W x + U h + b)."""

    functions: ClassVar[tuple[Function, Function]] = (torch.relu, _relu_slope)


@dataclass
class LongShortTerm(Cell):
    """c = σ(f) c + σ(i) tanh(g), h = σ(o) tanh(c); gates in torch's order i, f, g, o."""

    gates: ClassVar[int] = 4
    cell_state: Pairs = field(init=False)

    def forward(self, x: Pairs, hidden: Pairs, cell: Pairs) -> None:
        """Follow both states, c taken as Gaussian of mean 0; see the base class."""
        self.x = x
        if abs(self._bias_mean(2)) > 1e-3:
            raise NoRuleError("an LSTM whose cell gate has a bias that does not average to zero")
        steps = self.steps
        functions: list[tuple[Function, Function]] = [
            (torch.tanh, _tanh_slope) if k == 2 else (torch.sigmoid, _sigmoid_slope) for k in range(4)
        ]
        values = [_Moments(f, self._bias_mean(k), steps) for k, (f, _) in enumerate(functions)]
        slopes = [_Moments(f, self._bias_mean(k), steps) for k, (_, f) in enumerate(functions)]
        of_cell, cell_slope = _Moments(torch.tanh, 0.0, steps), _Moments(_tanh_slope, 0.0, steps)
        given = [self._input(k) for k in range(4)]
        covariance = [torch.zeros_like(self.state) for _ in range(4)]
        before, c_before, c = (torch.zeros_like(self.state) for _ in range(3))
        written, kept = torch.zeros_like(self.state), torch.zeros_like(self.state)  # i g; E c_a (i g)_b
        decay = torch.zeros(steps, steps, dtype=torch.float64)
        before[:, 0, 0], c_before[:, 0, 0] = hidden, cell
        i, f, g, o = values
        for t in range(steps):
            upto = slice(0, t + 1)
            for k in range(4):
                row = given[k][:, t, upto] + self._recurrent(k, before[:, t, upto])
                covariance[k][:, t, upto] = row
                covariance[k][:, upto, t] = row
                values[k].advance(t, covariance[k])
                slopes[k].advance(t, covariance[k])
            _decay(decay, t, f.mean[t])
            new = i.pairs[:, t, upto] * g.pairs[:, t, upto]
            written[:, t, upto], written[:, upto, t] = new, new
            row = f.pairs[:, t, upto] * c_before[:, t, upto] + new
            if t:
                # E c_{t-1} (i g)_s and E c_{s-1} (i g)_t, each times the other's mean forget gate.
                kept[:, :t, t] = written[:, :t, t] @ decay[:t, :t].T
                row = row + f.mean[t] * kept[:, t - 1, upto]
                row[:, 1:] += f.mean[1 : t + 1] * kept[:, :t, t]
            kept[:, t, upto] = new + (f.mean[t] * kept[:, t - 1, upto] if t else 0.0)
            c[:, t, upto], c[:, upto, t] = row, row
            of_cell.advance(t, c)
            cell_slope.advance(t, c)
            if t + 1 < steps:
                h = o.pairs[:, t, upto] * of_cell.pairs[:, t, upto]
                before[:, t + 1, 1 : t + 2], before[:, 1 : t + 2, t + 1] = h, h
                c_before[:, t + 1, 1 : t + 2], c_before[:, 1 : t + 2, t + 1] = row, row
        self.state, self.before = o.pairs * of_cell.pairs, before
        self.cell_state, self._cell_before = c, c_before
        self._values, self._slopes, self._of_cell, self._cell_slope = values, slopes, of_cell, cell_slope
        self._decay = decay

    def backward(self, direct: Pairs, final: Pairs) -> tuple[Pairs, list[tuple[Pairs, Pairs]]]:
        """Through both states; see the base class."""
        steps = self.steps
        i, f, g, o = self._values
        si, sf, sg, so = (s.pairs for s in self._slopes)
        total, of_cell = torch.zeros_like(direct), torch.zeros_like(direct)
        gates = [torch.zeros_like(direct) for _ in range(4)]
        passed = o.pairs * self._cell_slope.pairs
        kept = self._decay
        self.cell_gradient = of_cell
        for t in reversed(range(steps)):
            later = slice(t, None)
            row = direct[:, t, later] + self._through_time(t, gates)
            _fill(total, t, row)
            c = row * passed[:, t, later]
            if t + 1 < steps:
                after = slice(t + 1, None)
                c[:, :-1] += f.pairs[:, t + 1, after] * of_cell[:, t + 1, after]
                # Two gradients that enter c at different steps: E δh_a δc_b = Σ_{e ≥ b} of what entered at a and at e.
                entered = total[:, later, after] * passed[:, later, after]
                c[:, :-1] += f.mean[after] * (entered[:, 0] @ kept[after, after])
                c += f.mean[t + 1] * (entered @ kept[after, t + 1])
            if t == steps - 1:
                c[:, 0] += final
            _fill(of_cell, t, c)
            for k, (value, gradient) in enumerate(
                (
                    (g.pairs * si, of_cell),
                    (self._cell_before * sf, of_cell),
                    (i.pairs * sg, of_cell),
                    (self._of_cell.pairs * so, total),
                )
            ):
                _fill(gates[k], t, gradient[:, t, later] * value[:, t, later])
        return total, [(s, s) for s in gates]

    def start_cell_gradient(self) -> Tensor:
        """E of the gradient that reaches the initial cell state, (2,)."""
        return self._values[1].pairs[:, 0, 0] * self.cell_gradient[:, 0, 0]


@dataclass
class GatedUnit(Cell):
    """h = (1 - σ(z)) n + σ(z) h, n = tanh(W x + σ(r) (U h + b)); gates in torch's order r, z, n."""

    gates: ClassVar[int] = 3

    def forward(self, x: Pairs, hidden: Pairs, cell: Pairs) -> None:
        """Follow the state; the candidate's argument is taken as Gaussian; see the base class."""
        self.x = x
        if max(abs(self.bias_ih.mean[2]), abs(self.bias_hh.mean[2])) > 1e-3:
            raise NoRuleError("a GRU whose candidate has a bias that does not average to zero")
        steps = self.steps
        r, z = (_Moments(torch.sigmoid, self._bias_mean(k), steps) for k in (0, 1))
        sr, sz = (_Moments(_sigmoid_slope, self._bias_mean(k), steps) for k in (0, 1))
        n, sn = _Moments(torch.tanh, 0.0, steps), _Moments(_tanh_slope, 0.0, steps)
        given = [self._input(0), self._input(1), self._input(2, bias=False) + self.bias_ih.variance[2]]
        covariance = [torch.zeros_like(self.state) for _ in range(3)]
        before, state, inner = (torch.zeros_like(self.state) for _ in range(3))
        kept = torch.zeros_like(self.state)  # E h_a n_b
        decay = torch.zeros(steps, steps, dtype=torch.float64)
        before[:, 0, 0] = hidden
        for t in range(steps):
            upto = slice(0, t + 1)
            for k, moments in ((0, (r, sr)), (1, (z, sz))):
                row = given[k][:, t, upto] + self._recurrent(k, before[:, t, upto])
                covariance[k][:, t, upto], covariance[k][:, upto, t] = row, row
                for m in moments:
                    m.advance(t, covariance[k])
            u = self._recurrent(2, before[:, t, upto]) + self.bias_hh.variance[2]
            inner[:, t, upto], inner[:, upto, t] = u, u
            row = given[2][:, t, upto] + r.pairs[:, t, upto] * u
            covariance[2][:, t, upto], covariance[2][:, upto, t] = row, row
            n.advance(t, covariance[2])
            sn.advance(t, covariance[2])
            _decay(decay, t, z.mean[t])
            zz, mine, theirs = z.pairs[:, t, upto], z.mean[t], z.mean[upto]
            row = (1.0 - mine - theirs + zz) * n.pairs[:, t, upto] + zz * before[:, t, upto]
            if t:
                kept[:, :t, t] = ((1.0 - z.mean[:t]) * n.pairs[:, :t, t]) @ decay[:t, :t].T
                row[:, 1:] += (theirs - zz)[:, 1:] * kept[:, :t, t]  # (1 - z_t) n_t with z_s h_{s-1}
                row += (mine - zz) * kept[:, t - 1, upto]
            kept[:, t, upto] = (1.0 - mine) * n.pairs[:, t, upto] + (mine * kept[:, t - 1, upto] if t else 0.0)
            state[:, t, upto], state[:, upto, t] = row, row
            if t + 1 < steps:
                before[:, t + 1, 1 : t + 2], before[:, 1 : t + 2, t + 1] = row, row
        self.state, self.before, self._inner, self._decay = state, before, inner, decay
        self._reset, self._update, self._candidate, self._slopes = r, z, n, (sr.pairs, sz.pairs, sn.pairs)
        earlier = torch.zeros_like(kept)
        earlier[:, 1:] = kept[:, :-1]  # E h_{a-1} n_b
        self._difference = before - earlier - earlier.transpose(1, 2) + n.pairs

    def backward(self, direct: Pairs, final: Pairs) -> tuple[Pairs, list[tuple[Pairs, Pairs]]]:
        """Through the state itself and through U; see the base class."""
        steps, z = self.steps, self._update
        sr, sz, sn = self._slopes
        total, base = torch.zeros_like(direct), torch.zeros_like(direct)
        reset, update, candidate, inner = (torch.zeros_like(direct) for _ in range(4))
        kept = self._decay
        for t in reversed(range(steps)):
            later = slice(t, None)
            row = direct[:, t, later] + self._through_time(t, [reset, update, inner])
            _fill(base, t, row)
            h = row.clone()
            if t + 1 < steps:
                after = slice(t + 1, None)
                h[:, :-1] += z.pairs[:, t + 1, after] * total[:, t + 1, after]
                h[:, :-1] += z.mean[after] * (base[:, t, after] @ kept[after, after])  # E base_t δh_b, b > t
                h += z.mean[t + 1] * (base[:, later, after] @ kept[after, t + 1])  # E base_a δh_{t+1}
            _fill(total, t, h)
            passed = 1.0 - z.mean[t] - z.mean[later] + z.pairs[:, t, later]
            a = h * passed * sn[:, t, later]
            _fill(candidate, t, a)
            _fill(inner, t, a * self._reset.pairs[:, t, later])
            _fill(reset, t, a * self._inner[:, t, later] * sr[:, t, later])
            _fill(update, t, h * self._difference[:, t, later] * sz[:, t, later])
        self._carried = z.pairs[:, 0, 0] * total[:, 0, 0]
        return total, [(reset, reset), (update, update), (candidate, inner)]

    def start_gradient(self, gates: list[tuple[Pairs, Pairs]]) -> Tensor:
        """E of the gradient that reaches the initial state, (2,)."""
        return Cell.start_gradient(self, gates) + self._carried


CELLS: dict[str, Callable[..., Cell]] = {
    "RNN_TANH": PlainCell,
    "RNN_RELU": RectifiedCell,
    "LSTM": LongShortTerm,
    "GRU": GatedUnit,
}
