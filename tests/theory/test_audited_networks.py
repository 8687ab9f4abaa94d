"""The common networks of ``benchmarks/forecast_audit.py``: forecast against sampled gradients, or said to be unknown."""

from __future__ import annotations

import pytest
import torch
from benchmarks.forecast import errors
from benchmarks.forecast_audit import Audited, audited

from headwater._predict import predict

FAST = {
    "U-Net, nearest", "WaveNet", "GLU MLP", "EmbeddingBag + MLP", "embeddings + MLP", "weight norm", "spectral norm",
    "PixelShuffle", "text CNN, maximum", "soft mixture",
}  # fmt: skip
CASES = audited()


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, id=c.name, marks=() if c.name in FAST else pytest.mark.slow) for c in CASES if c.known],
)
def test_gradients_of_a_common_network_are_forecast(case: Audited) -> None:
    forecast = predict(case.make, *case.run)
    assert forecast.coverage.complete, forecast.coverage
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trunk, branches, weights = errors(forecast, case.make, case.run, 8)[:3]
    finally:
        torch.set_num_threads(threads)
    # With 20 draws the table's limits hold; 8 draws add √(20/8) = 1.6 times their noise, 0.02 decades at most.
    assert trunk <= case.trunk + 0.02
    assert not branches > case.branches + 0.02
    assert weights <= case.branches + 0.02


@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in CASES if not c.known])
def test_what_has_no_rule_is_named_and_unknown(case: Audited) -> None:
    pytest.importorskip("transformers") if case.name == "T5" else None
    forecast = predict(case.make, *case.run)
    assert forecast.coverage.unruled
    assert forecast.coverage.unknown_layers
    assert forecast.coverage.unknown_parameters
    for row in forecast.layers:
        if row.unknown is None and row.gradient_rms_log10 is None:
            assert row.activation_rms_log10 is None or row.name not in forecast.coverage.unknown_layers
