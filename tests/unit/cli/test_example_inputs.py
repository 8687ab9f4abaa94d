"""The shape of a random batch, told from the model's first layer or its configuration."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from headwater.cli.example_inputs import example_batch
from headwater.errors import TargetError


@pytest.mark.parametrize(
    ("model", "shape", "dtype"),
    [
        (nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 1)), (8, 5), torch.float32),
        (nn.Sequential(nn.Flatten(), nn.Linear(5, 3)), (8, 5), torch.float32),
        (nn.Linear(5, 3).double(), (8, 5), torch.float64),
        (nn.Linear(5, 3, dtype=torch.bfloat16), (8, 5), torch.bfloat16),
        (nn.Embedding(11, 4), (8, 16), torch.int64),
        (nn.LSTM(6, 4), (16, 8, 6), torch.float32),
        (nn.GRU(6, 4, batch_first=True), (8, 16, 6), torch.float32),
        (nn.TransformerEncoderLayer(8, 2, batch_first=True), (8, 16, 8), torch.float32),
    ],
)
def test_the_first_layer_tells_the_shape(model: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    (inputs,) = example_batch(model).inputs
    assert inputs.shape == shape
    assert inputs.dtype == dtype


def test_tokens_stay_below_the_number_of_embeddings() -> None:
    (inputs,) = example_batch(nn.Embedding(3, 4)).inputs
    assert set(inputs.flatten().tolist()) == {0, 1, 2}  # 128 uniform draws of 3: one is missing with p = 3·(2/3)^128


def test_a_convolution_does_not_tell_the_size_of_the_image() -> None:
    with pytest.raises(TargetError, match="give --input-shape 8,3,32,32"):
        example_batch(nn.Sequential(nn.Conv2d(3, 4, 3)))
    with pytest.raises(TargetError, match="give --input-shape 4,2,32 "):
        example_batch(nn.Sequential(nn.Conv1d(2, 4, 3)), batch=4)


def test_a_model_without_parameters_is_refused() -> None:
    with pytest.raises(TargetError, match="no parameters"):
        example_batch(nn.Sequential(nn.ReLU()))


def test_the_options_win_over_what_the_model_tells() -> None:
    model = nn.Linear(5, 3)
    inputs = example_batch(model, shapes=[(2, 7), (2, 3)], dtypes=["float64"]).inputs
    assert [(tuple(t.shape), t.dtype) for t in inputs] == [((2, 7), torch.float64), ((2, 3), torch.float32)]
    (tokens,) = example_batch(model, shapes=[(2, 7)], vocabulary=4).inputs
    assert tokens.dtype == torch.int64
    assert int(tokens.max()) < 4


def test_the_same_seed_gives_the_same_batch_and_leaves_the_global_generator_alone() -> None:
    model = nn.Linear(5, 3)
    before = torch.get_rng_state()
    first, second, other = (example_batch(model, seed=s).inputs[0] for s in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_integers_need_their_range_and_types_must_exist() -> None:
    with pytest.raises(TargetError, match="--vocab"):
        example_batch(nn.Linear(5, 3), dtypes=["int64"])
    with pytest.raises(TargetError, match="--input-dtype float31"):
        example_batch(nn.Linear(5, 3), dtypes=["float31"])


def test_the_description_says_what_was_assumed() -> None:
    text = example_batch(nn.Sequential(nn.Flatten(), nn.Linear(5, 3)), batch=2).description
    assert text == "random inputs, from 1, a Linear: (2, 5) float32"
