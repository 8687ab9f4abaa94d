"""Broken assumptions are listed with what to do instead, and a network that keeps them lists none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import headwater as hw
from headwater._predict import predict
from headwater.errors import InputError


def tanhs(width: int = 64, depth: int = 4) -> nn.Sequential:
    return nn.Sequential(*[m for _ in range(depth) for m in (nn.Linear(width, width), nn.Tanh())], nn.Linear(width, 10))


def vectors(features: int = 64) -> Tensor:
    return torch.randn(32, features, generator=torch.Generator().manual_seed(3))


def assumptions(model: nn.Module | Callable[[], nn.Module], inputs: Tensor) -> str:
    return " | ".join(predict(model, inputs).coverage.assumptions)


def test_fresh_networks_break_none() -> None:
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.Flatten())
    encoder = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    embedding = nn.Sequential(nn.Embedding(100, 32, padding_idx=0), nn.Linear(32, 32))
    orthogonal = tanhs()
    for layer in orthogonal:
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight)
    generator = torch.Generator().manual_seed(1)
    for model, inputs in (
        (tanhs(), vectors()),
        (orthogonal, vectors()),
        (conv, torch.randn(4, 3, 12, 12, generator=generator)),
        (encoder, torch.randn(4, 6, 32, generator=generator)),
        (embedding, torch.randint(100, (8, 5), generator=generator)),
    ):
        assert assumptions(model, inputs) == ""


def test_a_trained_network_is_told_from_a_fresh_one_of_the_same_scale() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16.0, dtype=torch.float32), torch.tensor(labels)
    torch.manual_seed(0)
    model = tanhs()
    assert "depend on each other" not in assumptions(model, x[:64])
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(150):
        rows = torch.randint(len(x), (128,))
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    told = assumptions(model, x[:64])
    assert "weights whose entries depend on each other (0.weight" in told
    assert "measure() this model, or predict the function that makes it fresh" in told
    # And it matters: the forecast from these weights' own moments misses what was measured.
    comparison = predict(model, x[:64], y[:64], F.cross_entropy).compare(
        hw.measure(model, x[:64], y[:64], F.cross_entropy)
    )
    (finding,) = comparison.findings
    assert "The forecast lists" in finding.cause
    assert "Weights whose entries depend on each other" in finding.advice


def test_a_checkpoint_that_the_function_loads_is_seen() -> None:
    torch.manual_seed(0)
    trained = tanhs()
    with torch.no_grad():
        trained[2].weight.add_(torch.outer(torch.randn(64), torch.randn(64)), alpha=0.05)

    def make() -> nn.Sequential:
        model = tanhs()
        model.load_state_dict(trained.state_dict())
        return model

    for source in (make, lambda: trained, trained):
        assert "entries depend on each other (2.weight" in assumptions(source, vectors())


def test_weights_with_a_mean_of_their_own_look_trained() -> None:
    torch.manual_seed(0)
    model = tanhs()
    with torch.no_grad():
        model[0].weight.add_(0.05)
    assert "do not average to zero (0.weight)" in assumptions(model, vectors())


def test_equal_weights_are_no_random_ones() -> None:
    def make() -> nn.Sequential:
        model = tanhs()
        nn.init.constant_(model[2].weight, 0.01)
        return model

    assert "weights that are all equal (2.weight)" in assumptions(make, vectors())


def test_a_narrow_network_is_sent_to_measure_with_draws() -> None:
    told = assumptions(lambda: tanhs(8), vectors(8))
    assert "width below 16 at 0, 2, 4 and 1 more" in told
    assert "measure(draws=20)" in told


def test_samples_of_unlike_lengths_have_no_common_second_moment() -> None:
    x = vectors()
    x[:16] *= 10.0
    told = assumptions(tanhs, x)
    assert "the samples of inputs differ in length (rms 0." in told
    assert "normalise the samples" in told


def test_inputs_with_a_large_mean_make_samples_alike_and_are_followed_all_the_same() -> None:
    # Cosine of two samples 25/26 = 0.96 at a mean of 5.
    x = vectors() + 5.0
    assert "the samples of inputs are almost equal (mean cosine 0.96" in assumptions(tanhs, x)
    torch.manual_seed(0)
    comparison = predict(tanhs, x).compare(hw.measure(tanhs(), x, draws=8))
    assert comparison.rms_error_decades < 0.05


def test_equal_positions_are_listed() -> None:
    x = torch.randn(4, 1, 32, generator=torch.Generator().manual_seed(0)).expand(4, 6, 32).clone()
    told = assumptions(lambda: nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), x)
    assert "the positions of inputs are almost equal (mean cosine 1.000)" in told


def test_inputs_may_be_a_function_of_the_model() -> None:
    forecast = predict(tanhs, lambda model: torch.empty(8, model[0].in_features, device="meta"))
    assert forecast.batch_size == 8
    with pytest.raises(InputError, match="inputs should hold a tensor"):
        predict(tanhs, lambda _: 3)
