"""Batched draws against one network at a time, and the rates computed from them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from headwater._studies.ensemble import draw_ensemble, draw_parameters, forward_backward, log10_rms
from headwater._studies.run import run_variants
from headwater._studies.shortcut_grid import run_grid
from headwater._studies.trends import interval_of_mean, slopes, split, trends, wide_theory
from headwater.errors import StudyError
from headwater.studies import CLASSICS, LOSSES, Data, Network, ShortcutGrid, Study, Variant, build, initialization

ALL = [(s, v) for s in CLASSICS.values() for v in s]


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize(("study", "variant"), ALL, ids=lambda x: x.name)
def test_every_draw_of_a_batch_has_the_gradients_of_its_own_network(study: Study, variant: Variant) -> None:
    network = variant.network
    generator = torch.Generator().manual_seed(1)
    weights, biases = draw_parameters(network, 3, generator, torch.float64)
    x, y = variant.data.draw(network.sizes[0], network.sizes[-1], generator, (3,))
    batch = forward_backward(network, weights, biases, x.double(), y.double(), study.loss)
    for draw in range(3):
        model = build(network).double()
        with torch.no_grad():
            for i, name in enumerate(network.layer_names):
                weight = weights[i][draw]
                model.get_parameter(network.weight_names[i]).copy_(weight.T if network.raw else weight)
                if biases:
                    model.get_parameter(f"{name}.bias").copy_(biases[i][draw])
        loss = LOSSES[study.loss][0](model(x[draw].double()), y[draw].double())
        loss.backward()
        assert batch.loss[draw].item() == pytest.approx(loss.item(), rel=1e-10)
        for i, name in enumerate(network.layer_names):
            slow = model.get_parameter(network.weight_names[i]).grad
            assert slow is not None
            torch.testing.assert_close(
                batch.weight_gradients[i][draw], slow.T if network.raw else slow, rtol=1e-8, atol=0
            )
            if biases:
                slow = model.get_parameter(f"{name}.bias").grad
                assert slow is not None
                torch.testing.assert_close(batch.bias_gradients[i][draw], slow, rtol=1e-8, atol=0)


def test_the_measured_run_and_the_ensemble_print_the_same_statistic() -> None:
    study = replace(CLASSICS["init-strategies"], variants=CLASSICS["init-strategies"].variants[:1])
    one = next(iter(run_variants(study, seed=3, draws=2)))
    network = one.variant.network
    weights = [one.model.get_parameter(n).detach()[None] for n in network.weight_names]
    biases = [one.model.get_parameter(f"{n}.bias").detach()[None] for n in network.layer_names]
    run = forward_backward(network, weights, biases, one.inputs[None], one.targets[None], study.loss)
    norms = [g.norm().item() for pair in zip(run.weight_gradients, run.bias_gradients, strict=True) for g in pair]
    assert [f.value for f in one.result.figures] == pytest.approx(norms, rel=1e-5)
    assert [f.parameter for f in one.result.figures][:3] == ["fc1.weight", "fc1.bias", "fc2.weight"]


def test_log10_of_the_rms_neither_underflows_nor_overflows() -> None:
    # (3, 4): rms = √12.5
    for exponent in (-40, 0, 35):
        x = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64) * 10.0**exponent
        values = log10_rms(x.float())
        # 3e-40 is subnormal in single precision: it holds about five digits
        assert values[0].item() == pytest.approx(exponent + math.log10(math.sqrt(12.5)), abs=1e-4)
        assert values[1].item() == -math.inf


def test_an_ensemble_is_repeatable_and_leaves_the_global_stream_alone() -> None:
    variant = CLASSICS["activation-and-init"].variants[0]
    before = torch.random.get_rng_state()
    options = {"loss": "summed_output", "statistic": "mean_abs", "printed": ("fc1.weight",), "draws": 5}
    one, two, other = (draw_ensemble(variant.network, variant.data, seed=s, **options) for s in (1, 1, 2))
    assert torch.equal(one.statistic, two.statistic)
    assert not torch.equal(one.statistic, other.statistic)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_running_a_study_leaves_the_global_stream_alone() -> None:
    before = torch.random.get_rng_state()
    run_variants(replace(CLASSICS["shortcut"], grid=None), seed=123, draws=2)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_one_draw_has_no_interval() -> None:
    with pytest.raises(StudyError, match="2 draws or more"):
        run_variants(CLASSICS["deep-sigmoid"], seed=0, draws=1)


def test_the_slope_of_a_line_is_exact_and_rows_with_a_zero_are_left_out() -> None:
    x = torch.arange(5, dtype=torch.float64)
    rows = torch.stack([0.7 * x - 3, -2.0 * x, torch.full((5,), -math.inf, dtype=torch.float64)])
    assert slopes(rows).tolist() == pytest.approx([0.7, -2.0])


def test_the_interval_of_a_mean() -> None:
    # 1, 3: mean 2, s = √2, standard error 1, so 2 ± 1.96
    assert interval_of_mean(torch.tensor([1.0, 3.0])) == pytest.approx((2.0, 2.0 - 1.959964, 2.0 + 1.959964), abs=1e-5)


def test_sigmoid_loses_what_theory_says_and_the_parts_add_up() -> None:
    variant = CLASSICS["deep-sigmoid"].variants[0]
    ensemble = draw_ensemble(
        variant.network, variant.data, loss="mse", statistic="mean_abs", printed=("fc1.weight",), draws=20, seed=0
    )
    theory = wide_theory(variant.network, variant.data)
    assert theory is not None
    # −16.17 decades over 19 layers
    assert theory.decades_per_layer * 19 == pytest.approx(-16.17, abs=0.01)
    assert theory.weight_decades == pytest.approx(0.5 * math.log10(1 / 3))
    trend = {t.quantity: t for t in trends(variant.network, ensemble, theory)}["∂L/∂h"]
    assert trend.decades_per_layer == pytest.approx(theory.decades_per_layer, abs=0.01)
    assert trend.low < trend.decades_per_layer < trend.high
    parts = split(variant.network, ensemble)
    assert parts is not None
    h = ensemble.preactivation_gradient
    end_to_end = float((h[:, 0] - h[:, 19]).mean()) / 19
    assert sum(parts) == pytest.approx(end_to_end, abs=1e-9)
    assert parts == pytest.approx((theory.slope_decades, theory.weight_decades), abs=0.01)


def test_tiny_linear_weights_lose_half_the_log_of_their_variance() -> None:
    # √(64 · 0.01²) = 0.08 per layer, no activation
    theory = wide_theory(
        Network(inputs=64, width=64, hidden=4, activation="identity", initialization="normal:0.01"), Data()
    )
    assert theory is not None
    assert theory.decades_per_layer == pytest.approx(math.log10(0.08))


def test_the_shortcut_grid_multiplies_the_slopes_of_a_linear_chain() -> None:
    # Width 1, no activation: ∂x_L/∂x_1 is the product over layers 2 … L of w (plain), 1 + w, or 1 + w/√L.
    grid = ShortcutGrid(widths=(1,), depths=(2, 3), initializations=("kaiming_normal",), activation="identity", draws=2)
    cells = run_grid(grid, seed=4)
    assert [c.depth for c in cells] == [2, 3]
    generator = torch.Generator().manual_seed(4)
    expected: dict[int, list[list[float]]] = {2: [], 3: []}
    for _ in range(2):
        weights = torch.empty(3, 1, 1)
        initialization("kaiming_normal").weight_(weights, 1, 1, generator)
        torch.randn(1, generator=generator)  # the sample
        torch.randn(1, generator=generator)  # the projection
        w = weights.flatten().double()
        for depth in (2, 3):
            tail: Tensor = w[1:depth]
            arms = (tail, 1 + tail, 1 + tail / math.sqrt(depth))
            expected[depth].append([float(arm.abs().log10().sum()) for arm in arms])
    for cell in cells:
        means = torch.tensor(expected[cell.depth], dtype=torch.float64).mean(0).tolist()
        assert list(cell.decades.values()) == pytest.approx(means, abs=1e-6)
        assert cell.gain == pytest.approx(means[1] - means[0], abs=1e-6)


def test_unscaled_shortcuts_explode_and_a_branch_scale_repairs_it() -> None:
    cells = run_grid(ShortcutGrid(widths=(64,), depths=(50,), initializations=("kaiming_normal",), draws=2), seed=0)
    decades = cells[0].decades
    assert decades["plain"] < -3
    assert decades["shortcut"] > 3
    # (1 + χ/L)^L is below e, 0.22 decades of the root mean square, for the slopes; the mean of GELU adds some
    assert abs(decades["scaled"]) < 1.0
