"""The vocabulary of a study: variants of a network, what is printed, what was published, what to ask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from headwater.errors import StudyError
from headwater.studies.activations import Activation, activation_layer, activation_name
from headwater.studies.data import Data
from headwater.studies.initializations import initialization
from headwater.studies.network import Network

__all__ = ["Question", "ShortcutGrid", "Study", "Variant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One network of a study with its data, and what was published for it.

    Attributes:
        name: stable, such as ``sigmoid-default``.
        title: for people.
        network: the layers.
        data: samples and targets.
        published: figures in the study's order; 0.0 where the printed format had rounded to zero; empty: none.
        published_decimals: digits after the point of the published format, None when they were printed in full.
        note: what to know about this network.
    """

    name: str
    title: str
    network: Network
    data: Data
    published: tuple[float, ...] = ()
    published_decimals: int | None = None
    note: str = ""

    def interval(self, figure: float) -> tuple[float, float]:
        """The values that print as a published figure: half a unit in its last decimal either way."""
        half = 0.0 if self.published_decimals is None else 0.5 * 10.0**-self.published_decimals
        return figure - half, figure + half


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortcutGrid:
    """Networks with and without a shortcut, at several widths, depths and initialisations.

    Attributes:
        widths: units per layer.
        depths: numbers of layers.
        initializations: names of rules.
        activation: of every layer.
        draws: seeds per cell; the same weights serve all arms.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512)
    depths: tuple[int, ...] = (5, 10, 20, 50, 100)
    initializations: tuple[str, ...] = ("default", "kaiming_normal")
    activation: Activation = "gelu"
    draws: int = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question that the study leaves its reader with.

    Attributes:
        key: which composer answers it from the measurements.
        text: as a reader would ask it.
    """

    key: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """Everything about one study except the running of it.

    Attributes:
        name: stable, such as ``deep-sigmoid``.
        title: for people.
        question: what it asks.
        source: where the networks and figures come from, in words.
        variants: its networks, in order; drawn from one random stream when ``seed`` is fixed.
        loss: a key of :data:`headwater.studies.data.LOSSES`.
        statistic: what it prints for a parameter's gradient.
        printed: whose gradient is printed: ``hidden_weights`` (the output layer left out), ``weights``, or
            ``all`` (weights and biases interleaved, in registration order).
        published_seed: the seed that the study fixed, or None when its figures are one unseeded run.
        draws: networks in each ensemble by default.
        questions: what it leaves unsaid.
        extras: names of further tables, charts and tests that the engine composes for it.
        grid: a comparison of shortcuts, or None.
        notes: what to know about the published figures.
    """

    name: str
    title: str
    question: str
    source: str
    variants: tuple[Variant, ...]
    loss: str
    statistic: Literal["mean_abs", "l2_norm"]
    printed: Literal["hidden_weights", "weights", "all"]
    published_seed: int | None = None
    draws: int = 1000
    questions: tuple[Question, ...] = ()
    extras: tuple[str, ...] = ()
    grid: ShortcutGrid | None = None
    notes: tuple[str, ...] = field(default=())

    def printed_parameters(self, network: Network) -> tuple[str, ...]:
        """The parameters whose gradient the study prints, in its order.

        Args:
            network: one of its networks.

        Returns:
            Parameter names.
        """
        if self.printed == "all":
            return tuple(
                f"{name}.{kind}" for name in network.layer_names for kind in ("weight", "bias")[: 1 + network.bias]
            )
        if self.printed == "hidden_weights":
            return network.weight_names[: network.hidden]
        return network.weight_names

    def varied(
        self,
        *,
        depth: int | None = None,
        width: int | None = None,
        activation: Activation | None = None,
        init: str | None = None,
    ) -> Study:
        """The study with other networks; published figures stay only where nothing changed.

        Args:
            depth: how many times the activation is applied.
            width: units of a hidden layer.
            activation: of every network that has one.
            init: initialisation of every network.

        Returns:
            A study; networks that become equal are kept once.

        Raises:
            StudyError: an option has no meaning for these networks.
        """
        if depth is None and width is None and activation is None and init is None:
            return self
        if activation is not None:
            activation_layer(activation)
        variants: list[Variant] = []
        for variant in self.variants:
            network = variant.network
            if depth is not None:
                network = network.with_depth(depth)
            if width is not None:
                network = network.with_width(width)
            if init is not None:
                network = replace(network, initialization=initialization(init).name)
            if activation is not None and network.activation != "identity":
                network = replace(network, activation=activation)
            if network == variant.network:
                variants.append(variant)
            elif not any(v.network == network and v.data == variant.data for v in variants):
                changed = replace(variant, network=network, published=(), title=_title(variant, network), note="")
                variants.append(changed)
        if len({v.name for v in variants}) != len(variants):  # pragma: no cover - names come from the variants
            raise StudyError(f"{self.name}: two networks have the same name")
        grid = self.grid
        if grid is not None:
            grid = replace(
                grid,
                widths=grid.widths if width is None else (width,),
                depths=grid.depths if depth is None else (depth,),
                activation=grid.activation if activation is None else activation,
                initializations=grid.initializations if init is None else (init,),
            )
        return replace(self, variants=tuple(variants), grid=grid, published_seed=self._seed_if_same(variants))

    def _seed_if_same(self, variants: Sequence[Variant]) -> int | None:
        return self.published_seed if tuple(variants) == self.variants else None

    def __iter__(self) -> Iterator[Variant]:
        return iter(self.variants)


def _title(variant: Variant, network: Network) -> str:
    name = activation_name(network.activation)
    shortcut = "" if network.shortcut == "none" else ", with shortcut"
    standardized = ", standardised" if variant.data.standardize else ""
    return f"{name}, {network.rule.title.split(',')[0]}{shortcut}{standardized}"
