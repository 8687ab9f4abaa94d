"""Plain-autograd evidence for the labels: hooks, derivatives, exact zeros, short training. Nothing of headwater.

Each function returns a check; a check takes a built case, raises AssertionError when the label does not stand, and
returns the figure it saw.
"""

from __future__ import annotations

import copy
import math
from fnmatch import fnmatch

import torch
from tests.labelled.kit import Case, Evidence
from torch import nn


def _rms(t: torch.Tensor) -> float:
    t = t.detach().to(torch.complex128 if t.is_complex() else torch.float64)
    largest = float(t.abs().max())
    if largest == 0 or not math.isfinite(largest):
        return largest
    return largest * float((t / largest).abs().square().mean().sqrt())


def loss_of(case: Case, model: nn.Module | None = None) -> torch.Tensor:
    return case.loss_fn((model or case.model)(case.x), case.y)


def _first_tensor(out: object) -> torch.Tensor:
    return out if isinstance(out, torch.Tensor) else _first_tensor(out[0])  # type: ignore[index]


def output_gradients(case: Case, names: tuple[str, ...]) -> dict[str, float]:
    """rms(∂L/∂output) of the named modules, first call of each."""
    seen: dict[str, torch.Tensor] = {}
    model = copy.deepcopy(case.model)
    modules = dict(model.named_modules())

    def keep(name: str):
        def hook(_module: nn.Module, _inputs: object, out: object) -> None:
            t = _first_tensor(out)
            if name not in seen and t.requires_grad:
                t.retain_grad()
                seen[name] = t

        return hook

    for name in names:
        modules[name].register_forward_hook(keep(name))
    loss_of(case, model).backward()
    return {n: 0.0 if n not in seen or seen[n].grad is None else _rms(seen[n].grad) for n in names}


def falls(first: str, last: str, decades: float) -> Evidence:
    """rms(∂L/∂h) is at least ``decades`` smaller at ``first`` than at ``last``."""

    def check(case: Case) -> str:
        g = output_gradients(case, (first, last))
        assert g[last] > 0
        change = math.log10(g[first] / g[last]) if g[first] > 0 else -math.inf
        assert change <= -decades, f"gradient changes {change:+.2f} decades from {last} back to {first}"
        return f"{change:+.1f} decades from {last} back to {first}"

    return check


def rises(first: str, last: str, decades: float) -> Evidence:
    """rms(∂L/∂h) is at least ``decades`` larger at ``first`` than at ``last`` (a non-finite one counts)."""

    def check(case: Case) -> str:
        g = output_gradients(case, (first, last))
        change = math.log10(g[first] / g[last]) if math.isfinite(g[first]) else math.inf
        assert change >= decades, f"gradient changes {change:+.2f} decades from {last} back to {first}"
        return f"{change:+.1f} decades from {last} back to {first}"

    return check


def flat(first: str, last: str, within: float) -> Evidence:
    """rms(∂L/∂h) at the two places differs by at most ``within`` decades."""

    def check(case: Case) -> str:
        g = output_gradients(case, (first, last))
        change = math.log10(g[first] / g[last])
        assert abs(change) <= within, f"gradient changes {change:+.2f} decades from {last} back to {first}"
        return f"{change:+.1f} decades from {last} back to {first}"

    return check


def _calls(case: Case, name: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    calls: list[tuple[torch.Tensor, torch.Tensor]] = []
    model = copy.deepcopy(case.model)
    module = dict(model.named_modules())[name]
    handle = module.register_forward_hook(lambda _m, i, o: calls.append((i[0].detach(), _first_tensor(o).detach())))
    loss_of(case, model)
    handle.remove()
    return calls


def _slope(case: Case, name: str) -> torch.Tensor:
    """|φ'| at every entry of the elementwise module's inputs, stacked over calls."""
    module = copy.deepcopy(dict(case.model.named_modules())[name])
    x = torch.cat([i.clone() for i, _ in _calls(case, name)]).requires_grad_()
    return torch.autograd.grad(module(x).sum(), x)[0].abs()


def dead(name: str, fraction: float) -> Evidence:
    """At least ``fraction`` of the units (dimension 1) of activation ``name`` have φ' = 0 on the whole batch."""

    def check(case: Case) -> str:
        slope = _slope(case, name).transpose(0, 1).flatten(1)
        share = float((slope.amax(1) == 0).double().mean())
        assert share >= fraction, f"{share:.2f} of the units of {name} are dead"
        return f"{share:.2f} of the units of {name} are dead"

    return check


def flat_spots(name: str, fraction: float, below: float = 0.01) -> Evidence:
    """At least ``fraction`` of the entries of the bounded activation ``name`` have |φ'| < ``below`` × its steepest."""

    def check(case: Case) -> str:
        module = dict(case.model.named_modules())[name]
        grid = torch.linspace(-8, 8, 3201, requires_grad=True)
        steepest = float(torch.autograd.grad(module(grid).sum(), grid)[0].abs().max())
        share = float((_slope(case, name) < below * steepest).double().mean())
        assert share >= fraction, f"{share:.2f} of the entries of {name} are flat"
        return f"{share:.2f} of the entries of {name} have |slope| < {below} of the steepest"

    return check


def peaked(name: str, probability: float) -> Evidence:
    """The mean of the largest probability of the softmax ``name`` is at least ``probability``."""

    def check(case: Case) -> str:
        top = float(torch.cat([o.amax(-1).flatten() for _, o in _calls(case, name)]).mean())
        assert top >= probability, f"mean top probability of {name}: {top:.3f}"
        return f"mean top probability of {name}: {top:.3f}"

    return check


def after_steps(case: Case, steps: int = 3, lr: float = 0.05) -> nn.Module:
    """A copy of the model after plain SGD steps on its own batch, with fresh gradients."""
    model = copy.deepcopy(case.model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(case, model).backward()
        optimizer.step()
    optimizer.zero_grad()
    loss_of(case, model).backward()
    return model


def _silent(p: nn.Parameter) -> bool:
    if p.grad is None:
        return True
    g = p.grad.coalesce().values() if p.grad.is_sparse else p.grad
    return not bool((g != 0).any())


def no_gradient(patterns: str) -> Evidence:
    """At step 0 and after three SGD steps the named parameters get None or exact zero; another one does not."""

    def check(case: Case) -> str:
        wanted = patterns.split(",")
        for steps in (0, 3):
            named = dict(after_steps(case, steps).named_parameters())
            inside = [n for n in named if any(fnmatch(n, w) for w in wanted)]
            assert inside, f"no parameter matches {patterns}"
            loud = [n for n in inside if not _silent(named[n])]
            assert not loud, f"after {steps} steps {loud} do get a gradient"
        return f"{len(inside)} of {len(named)} parameters get no gradient, now and after 3 steps"

    return check


def twins(patterns: str, groups: int = 1) -> Evidence:
    """After three SGD steps every unit (row) of the matching weights equals its neighbour, to 1e-5 of the largest.

    ``groups`` splits the rows of stacked gates (4 for an LSTM, 3 for a GRU) before they are compared.
    """

    def check(case: Case) -> str:
        checked = 0
        for n, p in after_steps(case).named_parameters():
            if any(fnmatch(n, w) for w in patterns.split(",")) and p.dim() > 1:
                for block in p.detach().chunk(groups):
                    checked += 1
                    rows = block.flatten(1)
                    # a recurrent or hidden matrix of copies has copies for columns as well, so rows may be compared
                    assert (rows - rows[:1]).abs().max() <= 1e-5 * rows.abs().max(), f"{n}: the rows differ"
        assert checked, f"no weight matches {patterns}"
        return f"the rows of {checked} weights are copies after 3 steps"

    return check


def nonfinite() -> Evidence:
    """The loss or a parameter's gradient holds NaN or Inf."""

    def check(case: Case) -> str:
        model = copy.deepcopy(case.model)
        loss = loss_of(case, model)
        loss.backward()
        bad = [n for n, p in model.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]
        assert bad or not torch.isfinite(loss), "loss and gradients are finite"
        return f"loss {loss.item():.3g}; non-finite gradient in {len(bad)} parameters"

    return check


def input_gradients(case: Case, name: str = "") -> list[float]:
    """rms(∂L/∂x_t) for every time step (dimension 1) of the float input, or of the output of module ``name``."""
    model = copy.deepcopy(case.model)
    kept: list[torch.Tensor] = []
    x = case.x
    if name:
        dict(model.named_modules())[name].register_forward_hook(lambda _m, _i, o: (o.retain_grad(), kept.append(o))[0])
    else:
        x = x.clone().requires_grad_()
        kept.append(x)
    case.loss_fn(model(x), case.y).backward()
    return [_rms(kept[0].grad[:, t]) for t in range(kept[0].shape[1])]


def through_time(decades: float, early: int = 0, late: int = -1, name: str = "") -> Evidence:
    """log10 of rms(∂L/∂x_early) over rms(∂L/∂x_late): at most ``decades`` if negative, at least if positive."""

    def check(case: Case) -> str:
        g = input_gradients(case, name)
        change = math.log10(g[early] / g[late]) if g[early] > 0 else -math.inf
        ok = change <= decades if decades < 0 else change >= decades
        assert ok, f"step {early} gets {change:+.2f} decades of step {late}'s gradient"
        return f"step {early} gets {change:+.1f} decades of step {late}'s gradient"

    return check


def steady_in_time(within: float, early: int = 0, late: int = -1, name: str = "") -> Evidence:
    """The gradients of the two time steps differ by at most ``within`` decades."""

    def check(case: Case) -> str:
        g = input_gradients(case, name)
        change = math.log10(g[early] / g[late])
        assert abs(change) <= within, f"step {early} gets {change:+.2f} decades of step {late}'s gradient"
        return f"step {early} gets {change:+.1f} decades of step {late}'s gradient"

    return check


def weight_gradient_ratio(first: str, other: str, decades: float):
    """rms(∂L/∂W) of one weight lies ``decades`` below another's."""

    def check(case: Case) -> str:
        p = dict(after_steps(case, 0).named_parameters())
        change = float(torch.log10(p[first].grad.double().norm() / p[other].grad.double().norm()))
        assert change <= -decades, f"{change:+.2f} decades"
        return f"{first} gets {change:+.1f} decades of {other}'s gradient"

    return check


def _everything_moves(model: nn.Module, quiet: str) -> None:
    for n, p in model.named_parameters():
        if p.requires_grad and not any(fnmatch(n, w) for w in quiet.split(",") if w):
            assert not _silent(p), f"{n} gets no gradient"
            g = p.grad.coalesce().values() if p.grad.is_sparse else p.grad
            assert torch.isfinite(g).all(), f"{n} has a non-finite gradient"


def learns(fall: float = 0.1, steps: int = 40, lr: float = 3e-3, quiet: str = "") -> Evidence:
    """Everything is finite, every parameter gets a gradient after 3 steps (``quiet`` ones excepted), and the loss falls.

    ``fall`` is the smallest accepted relative fall of the loss over ``steps`` of Adam at ``lr`` on the case's batch.
    """

    def check(case: Case) -> str:
        model = copy.deepcopy(case.model)
        trained = [p for p in model.parameters() if p.requires_grad]
        sparse = any(isinstance(m, nn.Embedding | nn.EmbeddingBag) and m.sparse for m in model.modules())
        optimizer = torch.optim.SGD(trained, lr=30 * lr) if sparse else torch.optim.Adam(trained, lr=lr)
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = loss_of(case, model)
            losses.append(loss.item())
            (loss / abs(losses[0])).backward()  # so that Adam's eps is as small for every scale of the loss
            if len(losses) == 4:
                _everything_moves(model, quiet)
            optimizer.step()
        end = sum(losses[-3:]) / 3
        assert math.isfinite(end), "training diverges"
        assert losses[0] - end >= fall * abs(losses[0]), f"the loss goes from {losses[0]:.4g} to {end:.4g}"
        return f"loss {losses[0]:.3g} -> {end:.3g} in {steps} Adam steps"

    return check
