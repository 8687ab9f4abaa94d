"""How the elements of the gradients are distributed, one bin per power of two."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from headwater.capture.training.inventory import Inventory
from headwater.capture.training.raw import Piece
from headwater.records.step import histogram_columns
from headwater.stats import log2_histogram

__all__ = ["histogram_piece"]


def histogram_piece(inventory: Inventory, positions: Sequence[int], gradients: Sequence[Tensor]) -> Piece | None:
    """The log2 histograms of gradients, as a piece of the step's row; an accelerator is waited for.

    Args:
        inventory: that the positions are in.
        positions: of the parameters.
        gradients: as they lie in ``.grad``.

    Returns:
        The piece; None without a gradient.
    """
    if not positions:
        return None
    columns, rows = histogram_columns([log2_histogram(gradient.detach()) for gradient in gradients])
    table = torch.tensor(rows, dtype=torch.float64, device="cpu")
    return Piece("histogram", None, inventory.watched(positions), columns, table)
