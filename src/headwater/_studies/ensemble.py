"""Many draws of one small network at once: batched products, one backward for all of them."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from headwater.studies import LOSSES, Data, Network
from headwater.studies.activations import activation_layer

__all__ = ["Ensemble", "Forward", "draw_ensemble", "forward_backward", "log10_rms"]

# Elements of weights per batch of draws, chosen by us: the fastest of 2^19 … 2^23 on two cores.
_CHUNK_ELEMENTS = 2**21


@dataclass(frozen=True, slots=True)
class Forward:
    """One batch of draws, forward and backward. Leading dimension: draws D.

    Attributes:
        weights: (D, out, in) each.
        inputs: what each layer reads, (D, B, in).
        preactivations: h = W x + b, (D, B, out).
        outputs: what each layer hands on, shortcut included, (D, B, out).
        weight_gradients: ∂L/∂W, (D, out, in).
        bias_gradients: ∂L/∂b, (D, out); empty without biases.
        preactivation_gradients: ∂L/∂h.
        output_gradients: ∂L/∂output.
        loss: (D,).
    """

    weights: list[Tensor]
    inputs: list[Tensor]
    preactivations: list[Tensor]
    outputs: list[Tensor]
    weight_gradients: list[Tensor]
    bias_gradients: list[Tensor]
    preactivation_gradients: list[Tensor]
    output_gradients: list[Tensor]
    loss: Tensor


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Statistics of many fresh draws of weights and data. Rows: draws D; log10 of an exact zero is -inf.

    Attributes:
        statistic: the study's statistic of every printed parameter, log10, (D, P).
        weight_gradient: rms ∂L/∂W per layer, log10, (D, L).
        preactivation_gradient: rms ∂L/∂h per layer, log10, (D, L).
        output_gradient: rms ∂L/∂(layer output) per layer, log10, (D, L).
        layer_input: rms of what each layer reads, log10, (D, L).
        zero_fraction: share of exact zeros in ∂L/∂W per layer, (D, L).
        max_abs: largest |∂L/∂W| of the whole network, log10, (D,).
    """

    statistic: Tensor
    weight_gradient: Tensor
    preactivation_gradient: Tensor
    output_gradient: Tensor
    layer_input: Tensor
    zero_fraction: Tensor
    max_abs: Tensor

    @property
    def draws(self) -> int:
        """D."""
        return self.statistic.shape[0]


def log10_rms(x: Tensor) -> Tensor:
    """log10 of the root mean square over all but the first dimension.

    Args:
        x: (D, …).

    Returns:
        (D,) in double precision; -inf where every element is zero.
    """
    flat = x.flatten(1)
    peak = flat.abs().amax(1).double()
    safe = torch.where(peak > 0, peak, torch.ones_like(peak))
    # divided by the peak first: neither squares of 1e-30 nor of 1e30 leave the range
    return torch.log10(peak) + 0.5 * torch.log10((flat / safe[:, None].to(x.dtype)).square().double().mean(1))


def _log10_statistic(x: Tensor, statistic: str) -> Tensor:
    if statistic == "mean_abs":
        return torch.log10(x.flatten(1).double().abs().mean(1))
    return log10_rms(x) + 0.5 * torch.log10(torch.tensor(float(x[0].numel()), dtype=torch.float64))


def forward_backward(
    network: Network, weights: list[Tensor], biases: list[Tensor], x: Tensor, y: Tensor, loss: str
) -> Forward:
    """Run a batch of draws forward and backward.

    Args:
        network: their architecture.
        weights: (D, out, in) each.
        biases: (D, out) each; empty without biases.
        x: samples (D, B, in).
        y: targets (D, …).
        loss: a key of :data:`headwater.studies.LOSSES`; every draw has a loss of its own.

    Returns:
        Every tensor and its gradient.
    """
    activation: Callable[[Tensor], Tensor] = activation_layer(network.activation)
    weights = [w.requires_grad_() for w in weights]
    biases = [b.requires_grad_() for b in biases]
    inputs: list[Tensor] = []
    preactivations: list[Tensor] = []
    outputs: list[Tensor] = []
    a = activation(x) if network.activation_on_input else x
    for i, weight in enumerate(weights):
        inputs.append(a)
        h = torch.bmm(a, weight.mT)
        if biases:
            h = h + biases[i][:, None]
        out = activation(h) if network.is_activated(i) else h
        if not network.is_activated(i) or network.activation == "identity":
            out = h.clone()  # a tensor of its own, so that ∂L/∂h and ∂L/∂output are two entries
        a = a + network.scale * out if network.has_shortcut(i) else out
        preactivations.append(h)
        outputs.append(a)
    with warnings.catch_warnings():
        # the measured run keeps this warning and makes a finding of it; once is enough
        warnings.filterwarnings("ignore", message="Using a target size")
        losses = torch.vmap(LOSSES[loss][0])(a, y)
    leaves = [*weights, *biases, *preactivations, *outputs]
    gradients = list(torch.autograd.grad(losses.sum(), leaves))
    count, biased = len(weights), len(biases)
    return Forward(
        weights=[w.detach() for w in weights],
        inputs=[t.detach() for t in inputs],
        preactivations=[t.detach() for t in preactivations],
        outputs=[t.detach() for t in outputs],
        weight_gradients=gradients[:count],
        bias_gradients=gradients[count : count + biased],
        preactivation_gradients=gradients[count + biased : 2 * count + biased],
        output_gradients=gradients[2 * count + biased :],
        loss=losses.detach(),
    )


def draw_parameters(
    network: Network, draws: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], list[Tensor]]:
    """Fresh weights and biases.

    Args:
        network: whose.
        draws: D.
        generator: the random stream.
        dtype: of the tensors.

    Returns:
        Weights (D, out, in) and biases (D, out); no biases where the network has none.
    """
    rule, sizes = network.rule, network.sizes
    weights, biases = [], []
    for fan_in, fan_out in itertools.pairwise(sizes):
        weight = torch.empty(draws, fan_out, fan_in, dtype=dtype)
        rule.weight_(weight, fan_in, fan_out, generator)
        weights.append(weight)
        if network.bias:
            bias = torch.empty(draws, fan_out, dtype=dtype)
            rule.bias_(bias, fan_in, generator)
            biases.append(bias)
    return weights, biases


def draw_ensemble(
    network: Network,
    data: Data,
    *,
    loss: str,
    statistic: str,
    printed: tuple[str, ...],
    draws: int,
    seed: int,
    dtype: torch.dtype = torch.float32,
    advance: Callable[[int], None] | None = None,
) -> Ensemble:
    """Statistics of fresh draws of weights and data.

    Args:
        network: the architecture.
        data: how samples and targets are drawn.
        loss: a key of :data:`headwater.studies.LOSSES`.
        statistic: ``mean_abs`` or ``l2_norm``: what the study prints.
        printed: names of the parameters that it prints.
        draws: how many.
        seed: of the random stream; torch's global one is left alone.
        dtype: of the computation.
        advance: called with the number of draws done since the last call.

    Returns:
        The statistics.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = network.sizes
    elements = sum(a * b for a, b in itertools.pairwise(sizes)) + data.samples * max(sizes) * len(sizes)
    size = max(1, min(draws, _CHUNK_ELEMENTS // elements))
    parts: list[list[Tensor]] = []
    for start in range(0, draws, size):
        count = min(size, draws - start)
        weights, biases = draw_parameters(network, count, generator, dtype)
        x, y = data.draw(sizes[0], sizes[-1], generator, (count,))
        run = forward_backward(network, weights, biases, x.to(dtype), y.to(dtype), loss)
        parts.append(_summarise(network, run, statistic, printed))
        if advance is not None:
            advance(count)
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    return Ensemble(*columns)


def _summarise(network: Network, run: Forward, statistic: str, printed: tuple[str, ...]) -> list[Tensor]:
    gradients = dict(zip(network.weight_names, run.weight_gradients, strict=True))
    if run.bias_gradients:
        gradients.update(zip((f"{n}.bias" for n in network.layer_names), run.bias_gradients, strict=True))
    return [
        torch.stack([_log10_statistic(gradients[name], statistic) for name in printed], 1),
        torch.stack([log10_rms(g) for g in run.weight_gradients], 1),
        torch.stack([log10_rms(g) for g in run.preactivation_gradients], 1),
        torch.stack([log10_rms(g) for g in run.output_gradients], 1),
        torch.stack([log10_rms(t) for t in run.inputs], 1),
        torch.stack([(g == 0).flatten(1).double().mean(1) for g in run.weight_gradients], 1),
        torch.log10(torch.stack([g.flatten(1).abs().amax(1) for g in run.weight_gradients]).amax(0).double()),
    ]
