from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import nn

from headwater.capture.slopes import Elementwise, SlopeReader
from headwater.capture.training.units import WINDOW_STEPS, UnitWindows, read_units
from headwater.records.step import WatchedTensor


def read(module: nn.Module, x: torch.Tensor, *, channels_first: bool = False) -> tuple[list[int], float | None]:
    function = Elementwise.of_module(module)
    assert function is not None
    y = module(x)
    reading = read_units(SlopeReader(), function, False, x, y, channels_first=channels_first)
    assert reading is not None
    share = None if reading.saturated is None else float(reading.saturated) / reading.elements
    return reading.alive.tolist(), share


@pytest.mark.parametrize("module", [nn.ReLU(), nn.GELU(), nn.SiLU(), nn.Tanh(), nn.Sigmoid(), nn.ELU(alpha=1.0)])
def test_units_driven_far_into_the_flat_part_are_dead_and_the_others_alive(module: nn.Module) -> None:
    torch.manual_seed(0)
    x = torch.randn(32, 5)
    x[:, [1, 3]] = -60.0
    assert read(module, x)[0] == [1, 0, 1, 0, 1]


def test_a_leaky_relu_has_no_dead_units() -> None:
    assert read(nn.LeakyReLU(0.01), -torch.rand(8, 3) - 1)[0] == [1, 1, 1]


def test_units_are_channels_of_images_and_features_of_tokens() -> None:
    image, tokens = torch.ones(2, 3, 4, 4), torch.ones(2, 7, 3)
    image[:, 1] = tokens[..., 1] = -1.0
    assert read(nn.ReLU(), image, channels_first=True)[0] == [1, 0, 1]
    assert read(nn.ReLU(), tokens)[0] == [1, 0, 1]


def test_saturation_counts_elements_of_activations_that_are_flat_at_both_ends() -> None:
    # |tanh'| < 0.05 beyond |x| = 2.18 (see capture.slopes)
    assert read(nn.Tanh(), torch.tensor([[0.0, 3.0], [2.0, -3.0]]))[1] == 0.5
    assert read(nn.ReLU(), torch.randn(4, 4))[1] is None


def test_an_activation_that_overwrote_its_input_is_read_from_its_output_or_not_at_all() -> None:
    reader = SlopeReader()
    relu, leaky = Elementwise.of_module(nn.ReLU(inplace=True)), Elementwise.of_module(nn.LeakyReLU(inplace=True))
    assert relu is not None
    assert leaky is not None
    y = torch.tensor([[1.0, 0.0]])
    found = read_units(reader, relu, True, y, y, channels_first=False)
    assert found is not None
    assert found.alive.tolist() == [1, 0]
    assert read_units(reader, leaky, True, y, y, channels_first=False) is None


LAYER = WatchedTensor(kind="layer", name="act")


def windows_at(steps: Sequence[int], alive: Callable[[int], Sequence[int]]) -> list[tuple[float, float]]:
    """(dead units, looks in the window) at each looked-at step."""
    windows, found = UnitWindows(), []
    for step in steps:
        mask = torch.tensor(alive(step), dtype=torch.uint8)
        _, _, rows = windows.rows(step, [(LAYER, len(mask), False, 6)], mask, None)
        units, dead, saturated, looks = rows[0]
        assert units == len(mask)
        assert math.isnan(saturated)
        found.append((dead, looks))
    return found


def test_a_unit_is_dead_only_when_it_was_so_in_every_step_of_the_window() -> None:
    found = windows_at(range(WINDOW_STEPS + 2), lambda step: [1, 0, int(step == 0)])
    for i, (dead, looks) in enumerate(found):
        assert looks == min(i + 1, WINDOW_STEPS)
        # Unit 1 never fires; unit 2 did in step 0, which leaves the window after WINDOW_STEPS steps.
        assert dead == (1.0 if i < WINDOW_STEPS else 2.0)


def test_the_early_looks_leave_the_window_as_soon_as_there_is_a_later_one() -> None:
    # Both units die after step 8. Gaps 1, 1, 2, 4 are at one pace (each at most twice the one before), 92 is not.
    found = windows_at([0, 1, 2, 4, 8, 100, 200, 300, 400], lambda step: [int(step <= 8)] * 2)
    assert found == [(0, 1), (0, 2), (0, 3), (0, 3), (0, 3), (2, 1), (2, 2), (2, 3), (2, 3)]


def test_a_schedule_that_is_throttled_to_half_its_pace_keeps_its_window() -> None:
    assert [looks for _, looks in windows_at([100, 200, 400, 600], lambda step: [1])] == [1, 2, 3, 3]


def test_looks_at_which_a_layer_did_not_run_count_for_the_pace_of_the_others() -> None:
    windows, mask = UnitWindows(), torch.ones(1, dtype=torch.uint8)
    looks = {}
    for step in (10, 20, 30, 40, 50):
        layers = [LAYER] if step in (10, 50) else [WatchedTensor(kind="layer", name="expert")]
        for layer, row in zip(layers, windows.rows(step, [(layers[0], 1, False, 1)], mask, None)[2], strict=True):
            looks[layer.name, step] = row[3]
    assert looks == {("act", 10): 1, ("expert", 20): 1, ("expert", 30): 2, ("expert", 40): 3, ("act", 50): 2}
