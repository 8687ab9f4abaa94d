"""Why an element of a weight gradient is exactly zero."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from headwater._studies.ensemble import Forward, draw_parameters, forward_backward
from headwater._studies.raw_matrices import REASONS, matrix_views, zero_census, zero_reasons
from headwater.studies import CLASSICS, Data, Network, Variant

RELU = torch.nn.functional.relu
NAMES = ("", *REASONS)


def raw(hidden: int, width: int = 2) -> Network:
    return Network(
        inputs=width, width=width, hidden=hidden, outputs=1, activation="relu", activation_on_input=True,
        initialization="normal:1", bias=False, raw=True,
    )  # fmt: skip


def run(network: Network, matrices: list[list[list[float]]], x: list[list[float]]) -> Forward:
    """Matrices in the notebook's (in, out) layout."""
    weights = [torch.tensor(m).T[None].contiguous() for m in matrices]
    y = torch.full((1, len(x)), 100.0)  # far from every prediction: the loss always pulls
    return forward_backward(network, weights, [], torch.tensor([x]), y, "summed_squared_error")


def reasons(forward: Forward, layer: int, *, last: bool = False) -> list[list[str]]:
    codes: Tensor = zero_reasons(None if last else RELU, forward, layer)[0].T
    return [[NAMES[c] for c in row] for row in codes.tolist()]


def test_a_column_is_zero_when_the_unit_it_feeds_is_inactive_and_a_row_when_the_unit_that_feeds_it_is() -> None:
    # Positive inputs; column 1 of w1 is negative, so unit 1 is never active; unit 2 is. w2 reads (0, +).
    forward = run(raw(1), [[[-1.0, 1.0], [-1.0, 1.0]], [[1.0], [1.0]]], [[1.0, 2.0], [3.0, 1.0]])
    assert reasons(forward, 0) == [["column", ""], ["column", ""]]
    assert reasons(forward, 1, last=True) == [["row"], [""]]


def test_the_printed_example_is_one_dead_layer_but_for_its_last_unit() -> None:
    # ∂L/∂w3 zero outside its last column, ∂L/∂w4 zero outside its last row: only the last unit after w3 is active.
    keep = [[1.0] * 4] * 4
    only_last = [[-1.0, -1.0, -1.0, 1.0]] * 4
    forward = run(raw(4, 4), [keep, keep, only_last, keep, [[1.0]] * 4], [[1.0, 2.0, 3.0, 4.0]])
    gradient = [g[0].T for g in forward.weight_gradients]
    assert (gradient[2][:, :3] == 0).all()
    assert (gradient[2][:, 3] != 0).all()
    assert (gradient[3][:3] == 0).all()
    assert (gradient[3][3] != 0).all()
    variant = Variant(name="example", title="example", network=raw(4, 4), data=Data(samples=1))
    third, fourth = matrix_views(variant, forward)[2:4]
    assert third.explanation == (
        "∂L/∂w3: 12 of 16 elements are exactly zero. columns 1, 2, 3: the unit it feeds is inactive throughout."
    )
    assert fourth.explanation == (
        "∂L/∂w4: 12 of 16 elements are exactly zero. rows 1, 2, 3: the unit that feeds it is 0 throughout."
    )
    assert third.rows_are == "input units"
    assert third.weight == tuple(tuple(row) for row in only_last)


def test_an_active_unit_with_nothing_behind_it_has_no_path() -> None:
    # After w1 both units are active; w2 sends both to inactive units: nothing reaches the loss.
    forward = run(raw(2), [[[1.0, 1.0], [1.0, 1.0]], [[-1.0, -1.0], [-1.0, -1.0]], [[1.0], [1.0]]], [[1.0, 1.0]])
    assert reasons(forward, 0) == [["no path"] * 2] * 2
    assert reasons(forward, 1) == [["column"] * 2] * 2
    assert reasons(forward, 2, last=True) == [["row"], ["row"]]


def test_values_and_gradients_that_never_meet_in_a_sample_are_disjoint() -> None:
    # Input 1 is present only in sample 1, where unit 1 (fed by −1 · x1 + 1 · x2) is inactive.
    forward = run(raw(1), [[[-1.0, 1.0], [1.0, 1.0]], [[1.0], [1.0]]], [[1.0, 0.0], [0.0, 1.0]])
    assert reasons(forward, 0) == [["disjoint", ""], ["", ""]]


def test_a_gradient_that_cancels_exactly_is_not_blamed_on_a_unit() -> None:
    # Targets on either side of the prediction: Σ (p − y) = 0 for the broadcast loss.
    weights = [torch.ones(1, 2, 2), torch.ones(1, 1, 2)]
    forward = forward_backward(
        raw(1), weights, [], torch.ones(1, 2, 2), torch.tensor([[3.0, 5.0]]), "summed_squared_error"
    )
    # p = 4 for both samples: each is pulled by (4 − 3) + (4 − 5) = 0, so no gradient comes back at all
    assert reasons(forward, 0) == [["no path"] * 2] * 2


@pytest.mark.parametrize("name", ["relu", "sigmoid", "tanh"])
def test_every_zero_has_a_reason_and_only_zeros_do(name: str) -> None:
    variant = next(v for v in CLASSICS["raw-weights"] if v.name == name)
    generator = torch.Generator().manual_seed(0)
    weights, _ = draw_parameters(variant.network, 30, generator)
    x, y = variant.data.draw(4, 1, generator, (30,))
    forward = forward_backward(variant.network, weights, [], x, y, "summed_squared_error")
    phi = {"relu": RELU, "sigmoid": torch.sigmoid, "tanh": torch.tanh}[name]
    for i in range(len(weights)):
        codes = zero_reasons(phi if variant.network.is_activated(i) else None, forward, i)
        assert torch.equal(codes > 0, forward.weight_gradients[i] == 0)
        # ReLU's zeros have structural reasons: never underflow
        assert name != "relu" or int((codes == 1 + list(REASONS).index("underflow")).sum()) == 0


def test_the_census_counts_what_the_reasons_say() -> None:
    variant = next(v for v in CLASSICS["raw-weights"] if v.name == "relu-standardized")
    census = zero_census(variant, loss="summed_squared_error", draws=50, seed=0)
    elements = 50 * (9 * 16 + 4)
    assert sum(census.reasons.values()) / elements == pytest.approx(float(census.zero_fraction.mean()))
    assert 0.3 < float(census.zero_fraction.mean()) < 0.9


def test_a_network_without_zeros_has_no_reasons() -> None:
    variant = replace(next(v for v in CLASSICS["raw-weights"] if v.name == "sigmoid"))
    census = zero_census(variant, loss="summed_squared_error", draws=5, seed=0)
    assert set(census.reasons.values()) == {0}
    assert float(census.zero_fraction.max()) == 0.0
