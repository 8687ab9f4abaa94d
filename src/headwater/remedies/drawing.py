"""What every remedy that draws weights anew shares: which layers, which must be left alone, and the code around it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from headwater.remedies.patient import Patient, folded
from headwater.remedies.remedy import NotApplicable, Treatment

__all__ = ["draw_every_layer", "layers_to_draw", "trained_weights"]

_LAYERS = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip


def trained_weights(patient: Patient) -> NotApplicable | None:
    """The reason not to draw weights anew, where there is one.

    Args:
        patient: the model.

    Returns:
        The reason, or None.
    """
    if patient.keep_weights:
        return NotApplicable(f"it draws weights anew, and they are to be kept ({patient.weights_note})")
    return None


def layers_to_draw(patient: Patient) -> list[str]:
    """Names of the linear layers and convolutions whose weight is theirs alone and may be drawn anew.

    Args:
        patient: the model.

    Returns:
        Names in registration order; shared, frozen and reparametrised weights are left out.
    """
    owners: dict[int, int] = {}
    for module in patient.model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return [
        name
        for name, module in patient.model.named_modules()
        if isinstance(module, _LAYERS)
        and (weight := module._parameters.get("weight")) is not None
        and weight.requires_grad
        and weight.is_floating_point()
        and owners[id(weight)] == 1
    ]


def draw_every_layer(
    patient: Patient, statement: str, rule: str, notes: Sequence[str] = ()
) -> Treatment | NotApplicable:
    """Code that draws every layer's weight with one statement and sets the biases to zero.

    Args:
        patient: the model.
        statement: Python that fills ``layer.weight``.
        rule: the same in words.
        notes: of the treatment.

    Returns:
        The treatment, or why there is none.
    """
    kept = trained_weights(patient)
    if kept is not None:
        return kept
    names = layers_to_draw(patient)
    if not names:
        return NotApplicable("it has no linear layer or convolution with weights of its own")
    if names == [""]:
        return NotApplicable("the model is one layer: there is no depth to initialise for")
    code = (
        "import torch\nfrom torch import nn\n\n"
        f"names = {folded(names)}\n"
        f"{patient.seeded}"
        "    for name in names:\n"
        "        layer = model.get_submodule(name)\n"
        f"        {statement}\n"
        "        if layer.bias is not None:\n"
        "            nn.init.zeros_(layer.bias)\n"
    )
    return Treatment(
        code=code, changes=tuple(f"{name}: weight {rule}, bias zero" for name in names), notes=tuple(notes)
    )
