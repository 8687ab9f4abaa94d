"""What people call each kind of operation on the trunk."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["KIND_WORDS"]

KIND_WORDS: Mapping[str, str] = {
    "weights": "weights",
    "activation": "activations",
    "normalization": "normalisation",
    "residual": "residual sums",
    "attention": "attention",
    "recurrent": "recurrence",
    "embedding": "embedding",
    "pooling": "pooling",
    "dropout": "dropout",
    "scale": "scaling",
    "branches": "branches",
    "reshape": "reshaping",
    "loss": "loss",
    "other": "other operations",
}
