"""Normalise what enters the hidden activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from headwater.records import Verdict
from headwater.remedies.patient import Call, Patient
from headwater.remedies.remedy import NotApplicable, Stage, Treatment

__all__ = ["InsertNormalization"]

_CODES = {"layer": "HR301", "rms": "HR302", "batch": "HR303"}
_TITLES = {"layer": "LayerNorm", "rms": "RMSNorm", "batch": "BatchNorm"}
_TURNS = {"layer": 3, "rms": 5, "batch": 4}


@dataclass(frozen=True)
class InsertNormalization:
    """Put a normalisation before every hidden activation, inside a Sequential that takes the activation's place.

    ``layer`` and ``rms`` normalise the features of a sample (over channels, height and width for a convolution);
    ``batch`` normalises each feature or channel over the batch, which couples the samples and differs in evaluation.

    Attributes:
        over: which one.

    References:
        Ioffe and Szegedy, *Batch normalization*, ICML 2015. Ba, Kiros, Hinton, *Layer normalization*, 2016. Zhang and
        Sennrich, *Root mean square layer normalization*, NeurIPS 2019.
    """

    over: Literal["layer", "rms", "batch"] = "layer"

    @property
    def code(self) -> str:
        """One per kind: HR301 to HR303."""
        return _CODES[self.over]

    @property
    def name(self) -> str:
        """Such as ``LayerNorm before the activations``."""
        return f"{_TITLES[self.over]} before the activations"

    @property
    def stage(self) -> int:
        """Before the weights are drawn."""
        return Stage.NORMALIZATION

    @property
    def invasiveness(self) -> int:
        """Chosen by us."""
        return 5

    @property
    def treats(self) -> Mapping[Verdict, int]:
        """Verdicts and their turn."""
        turn = _TURNS[self.over]
        return {
            Verdict.VANISHING: turn, Verdict.EXPLODING: turn, Verdict.SATURATED: turn, Verdict.DEAD_UNITS: turn,
        }  # fmt: skip

    def __call__(self, patient: Patient) -> Treatment | NotApplicable:
        """Plan it.

        Args:
            patient: the model.

        Returns:
            The treatment, or why there is none.
        """
        before: dict[str, str | None] = {}
        last: Call | None = None
        for name, call in patient.calls.items():
            before[name] = last.kind if last is not None else None
            last = call
        hidden = patient.hidden_activations()
        makers: dict[str, str] = {}
        for call in hidden:
            maker = self._maker(call, patient.factory) if before[call.name] != "normalization" else None
            if maker is not None:
                makers |= dict.fromkeys(patient.every_name(call.module), maker)
        if not makers:
            why = "are normalised already, or have no fixed size" if hidden else "are functions in its source, if any"
            return NotApplicable(f"its hidden activations {why}")
        listed = "".join(f"    {name!r}: {maker},\n" for name, maker in makers.items())
        code = (
            f"from torch import nn\n\nnorms = {{\n{listed}}}\n"
            "for name, norm in norms.items():\n"
            "    model.set_submodule(name, nn.Sequential(norm, model.get_submodule(name)))\n"
        )
        if "torch." in patient.factory:
            code = "import torch\n" + code
        notes = (
            ("BatchNorm behaves differently in training and in evaluation, and needs more than one sample.",)
            if self.over == "batch"
            else ()
        )
        return Treatment(
            code=code,
            changes=tuple(f"{name}: {maker.removeprefix('nn.')} before it" for name, maker in makers.items()),
            notes=notes,
        )

    def _maker(self, call: Call, factory: str) -> str | None:
        shape = call.shape
        if shape is None or len(shape) < 2:
            return None
        if self.over == "batch":
            dimensions = max(1, len(shape) - 2)
            if len(shape) == 3 or dimensions > 3:  # (B, T, D) or (B, C, T)? Not to be told from the shape.
                return None
            return f"nn.BatchNorm{dimensions}d({shape[1]}{factory})"
        if len(shape) > 3:
            # Channels, height and width: GroupNorm with one group does not depend on the picture's size.
            return f"nn.GroupNorm(1, {shape[1]}{factory})" if self.over == "layer" else None
        kind = "LayerNorm" if self.over == "layer" else "RMSNorm"
        return f"nn.{kind}({shape[-1]}{factory})"
