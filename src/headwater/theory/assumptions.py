"""Assumptions of the theory that a model or its inputs break, each as a sentence with what to do instead."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from headwater.theory.random_matrix import spectral_excess

__all__ = ["NARROW", "about_inputs", "about_laws", "about_values", "about_widths"]

NARROW = 16
"""Features below which the law of large numbers is not to be trusted. Chosen by us: at 8 features and 8 tanh layers the
forecast is 0.06 decades off, and one draw by a factor of two."""

# Chosen by us.
_MEAN_FRACTION = 0.01  # of a weight's variance that its squared mean may be
_LENGTH_VARIANCE = 1.0  # of ln mean x² over samples: at 1.6 weight gradients are 0.2 decades off, at 5 trunks 0.15
_EQUAL_SAMPLES = 0.95  # mean cosine of two samples
_EQUAL_POSITIONS = 0.99  # mean cosine of two positions of a sample; of natural images 0.8 to 0.98
_LARGEST = 1 << 22  # elements of an input that are looked at


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def about_widths(names: Sequence[str]) -> list[str]:
    """Narrow layers.

    Args:
        names: of inner layers with fewer than :data:`NARROW` features.

    Returns:
        At most one sentence.
    """
    if not names:
        return []
    return [
        f"width below {NARROW} at {_listed(names)}: moments of wide networks are a rough guide there; "
        "measure(draws=20) instead"
    ]


def about_laws(laws: Iterable[tuple[str, float, float]]) -> list[str]:
    """Weights that are all equal: nothing random is left for an average over draws.

    Args:
        laws: name, mean and variance of every parameter of two or more dimensions.

    Returns:
        At most one sentence.
    """
    equal = [name for name, mean, variance in laws if variance == 0.0 and mean != 0.0]
    if not equal:
        return []
    return [
        f"weights that are all equal ({_listed(equal)}): the units of a layer are copies of one, while the theory takes "
        "them as independent; initialise at random, or measure() it"
    ]


def about_values(parameters: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Weights that do not look drawn at random: trained, loaded from a checkpoint, copied.

    Args:
        parameters: name and values of every parameter of a model that has values. Only read.

    Returns:
        At most two sentences.
    """
    shifted, dependent, largest = [], [], 0.0
    for name, value in parameters:
        if value.dim() < 2 or value.is_meta or not value.is_floating_point():
            continue
        x = value.detach().flatten()[:_LARGEST].double()
        variance = float(x.var(correction=0))
        if variance == 0.0:
            continue
        # Sampling alone gives a squared mean of variance/n; sixteen times that is no accident.
        if float(x.mean()) ** 2 > max(_MEAN_FRACTION, 16.0 / x.numel()) * variance:
            shifted.append(name)
        excess = spectral_excess(value)
        if excess is not None and excess > 1.0:
            dependent.append(name)
            largest = max(largest, excess)
    found = []
    if dependent:
        found.append(
            f"weights whose entries depend on each other ({_listed(dependent)}; squared largest singular value up to "
            f"{largest:.2g} times that of a random matrix): trained, loaded or copied, while the theory is of "
            "initialisation; measure() this model, or predict the function that makes it fresh"
        )
    if shifted:
        found.append(
            f"weights that do not average to zero ({_listed(shifted)}): the model looks trained, not initialised, and its "
            "weights are not independent; measure() it instead"
        )
    return found


def about_inputs(inputs: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Samples or positions that are too alike, and samples that are too unlike in length.

    Args:
        inputs: where in the inputs, and the tensor; those without values are passed over. Samples along the first
            dimension; features are the last of three dimensions, the second of more.

    Returns:
        The sentences.
    """
    found = []
    for where, value in inputs:
        if value.is_meta or not value.is_floating_point() or value.dim() < 2 or value.shape[0] < 2:
            continue
        x = value.detach()[: max(2, _LARGEST // max(1, value[0].numel()))].to(device="cpu", dtype=torch.float64)
        if not bool(torch.isfinite(x).all()):
            continue
        flat = x.flatten(1)
        lengths = flat.square().mean(1)
        if bool((lengths > 0.0).all()):
            variance = float(lengths.log().var(correction=0))
            if variance > _LENGTH_VARIANCE:
                found.append(
                    f"the samples of inputs{where} differ in length (rms {float(lengths.min()) ** 0.5:.2g} to "
                    f"{float(lengths.max()) ** 0.5:.2g}): one second moment stands for all of them; normalise the samples, "
                    "or measure()"
                )
        cosine = _mean_cosine(flat[None])
        if cosine > _EQUAL_SAMPLES:
            found.append(
                f"the samples of inputs{where} are almost equal (mean cosine {cosine:.3f}): their covariances are followed, "
                "but what tells them apart is small, and BatchNorm magnifies every error of it; centre the inputs, or "
                "measure()"
            )
        if x.dim() >= 3:
            positions = x.flatten(1, -2) if x.dim() == 3 else x.flatten(2).transpose(1, 2)
            cosine = _mean_cosine(positions)
            if positions.shape[1] > 1 and cosine > _EQUAL_POSITIONS:
                found.append(
                    f"the positions of inputs{where} are almost equal (mean cosine {cosine:.3f}): their covariances are "
                    "followed, but what tells them apart is small; use inputs like the real ones, or measure()"
                )
    return found


def _mean_cosine(x: Tensor) -> float:
    """Mean cosine of two different rows, (N, rows, features), averaged over N."""
    length = x.norm(dim=2, keepdim=True)
    unit = torch.where(length > 0.0, x / length.clamp_min(1e-300), 0.0)
    rows = x.shape[1]
    if rows < 2:
        return 0.0
    return float(((unit.sum(1).square().sum(1) - unit.square().sum((1, 2))) / (rows * (rows - 1))).mean())
