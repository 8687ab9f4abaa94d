"""How far the forecast lies from sampled networks, and what it costs: ``python benchmarks/forecast.py [NAME…]``.

``--audit`` goes through thirty common small networks of ``forecast_audit.py`` instead.

For each network: the RMS over layers of the difference between forecast and the mean over draws of log10 rms(∂L/∂h), along
the trunk and over the branches, relative to the last trunk layer; of log10 rms(∂L/∂W), absolute. In decades. Behind each
figure: the standard error of the sampled mean itself (its RMS over the same layers), below which no forecast can be told
from another. It falls with the root of ``--draws``: ``python benchmarks/forecast.py "gelu kaiming" --draws 100``.
"""

from __future__ import annotations

import argparse
import math
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import headwater as hw
from headwater._predict import predict
from headwater.records.forecast import Forecast

Make = Callable[[], nn.Module]
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU, "elu": nn.ELU, "sigmoid": nn.Sigmoid}
INITS: dict[str, Callable[[Tensor], Any] | None] = {
    "default": None,
    "xavier": nn.init.xavier_normal_,
    "kaiming": lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu"),
}


def mlp(activation: str, init: str, depth: int = 20, width: int = 256) -> Make:
    """Linear layers, each with an activation."""

    def make() -> nn.Module:
        layers: list[nn.Module] = []
        for _ in range(depth):
            linear = nn.Linear(width, width)
            initialise = INITS[init]
            if initialise is not None:
                initialise(linear.weight)
                nn.init.zeros_(linear.bias)
            layers += [linear, ACTIVATIONS[activation]()]
        return nn.Sequential(*layers, nn.Linear(width, 10))

    return make


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, stride=stride)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return conv


def plain_cnn(norm: bool, depth: int = 10, width: int = 64) -> Make:
    """3×3 convolutions, then the mean over positions."""

    def make() -> nn.Module:
        layers: list[nn.Module] = []
        for i in range(depth):
            conv = _conv(3 if i == 0 else width, width)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU()] if norm else [conv, nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))

    return make


class ResidualBlock(nn.Module):
    """ReLU after the sum (He 2015 v1) or before the convolutions (v2)."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: bool, relu_first: bool) -> None:
        super().__init__()
        self.relu_first = relu_first
        self.first, self.second = _conv(inputs, outputs, stride), _conv(outputs, outputs)
        sizes = (inputs, outputs) if relu_first else (outputs, outputs)
        self.norms = nn.ModuleList([nn.BatchNorm2d(n) if norm else nn.Identity() for n in sizes])
        self.skip = nn.Identity() if stride == 1 and inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """The block."""
        if self.relu_first:
            y = self.first(torch.relu(self.norms[0](x)))
            return self.skip(x) + self.second(torch.relu(self.norms[1](y)))
        y = torch.relu(self.norms[0](self.first(x)))
        return torch.relu(self.skip(x) + self.norms[1](self.second(y)))


def residual_cnn(norm: bool, relu_first: bool, blocks: int = 4, width: int = 64) -> Make:
    """Residual blocks at two resolutions."""

    def make() -> nn.Module:
        body = [ResidualBlock(width, width, 1, norm, relu_first) for _ in range(blocks)]
        body += [
            ResidualBlock(width, 2 * width, 2, norm, relu_first),
            ResidualBlock(2 * width, 2 * width, 1, norm, relu_first),
        ]
        return nn.Sequential(_conv(3, width), *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10))

    return make


def encoder(norm_first: bool, depth: int = 12, width: int = 128, heads: int = 4) -> Make:
    """Encoder layers of torch's own."""

    def make() -> nn.Module:
        return nn.Sequential(
            *[
                nn.TransformerEncoderLayer(
                    width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=norm_first
                )
                for _ in range(depth)
            ]
        )

    return make


def transformers_models() -> dict[str, tuple[Make, tuple[Any, ...]]]:
    """GPT-2, BERT, Llama and ViT in small configurations; empty without transformers."""
    try:
        import transformers as tr
    except ImportError:
        return {}
    tr.logging.set_verbosity_error()
    common = dict(hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=256)
    off = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    ends = dict(bos_token_id=0, eos_token_id=1, use_cache=False)
    ids, image = torch.randint(0, 200, (4, 16)), torch.randn(4, 3, 32, 32)
    gpt2 = dict(
        n_layer=4, n_embd=64, n_head=4, vocab_size=200, n_positions=32, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    language, tokens = {"input_ids": ids, "labels": ids}, {"input_ids": ids}
    small = dict(vocab_size=200, max_position_embeddings=32)
    return {
        "GPT-2": (lambda: tr.GPT2LMHeadModel(tr.GPT2Config(**gpt2, **ends)), (language,)),
        "BERT": (lambda: tr.BertModel(tr.BertConfig(**small, **common, **off)), (tokens,)),
        "Llama": (
            lambda: tr.LlamaForCausalLM(tr.LlamaConfig(num_key_value_heads=2, **small, **common, **ends)),
            (language,),
        ),
        "ViT": (
            lambda: tr.ViTModel(tr.ViTConfig(image_size=32, patch_size=8, **common, **off)),
            ({"pixel_values": image},),
        ),
    }


def cases() -> Iterator[tuple[str, Make, tuple[Any, ...]]]:
    """Name, network, and what it is run on."""
    torch.manual_seed(7)
    vectors, labels = torch.randn(32, 256), torch.randint(0, 10, (32,))
    images, tokens = torch.randn(8, 3, 12, 12), torch.randn(4, 16, 128)
    for activation in ACTIVATIONS:
        for init in INITS:
            yield f"MLP {activation} {init}", mlp(activation, init), (vectors, labels, F.cross_entropy)
    for norm in (False, True):
        suffix = " BatchNorm" if norm else ""
        run = (images, labels[:8], F.cross_entropy)
        yield f"CNN plain{suffix}", plain_cnn(norm), run
        yield f"CNN residual, ReLU first{suffix}", residual_cnn(norm, True), run
        yield f"CNN residual, ReLU last{suffix}", residual_cnn(norm, False), run
    yield "encoder pre-LN", encoder(True), (tokens,)
    yield "encoder post-LN", encoder(False), (tokens,)
    for name, (make, run) in transformers_models().items():
        yield name, make, run


_HEAD = " ".join(f"{word:>7}   {'':5}" for word in ("trunk", "branch", "weight"))


def _rms(values: list[float]) -> float:
    return math.sqrt(math.fsum(v * v for v in values) / len(values)) if values else math.nan


class Errors(NamedTuple):
    """RMS differences in decades, each with the RMS standard error of the sampled means it was taken from."""

    trunk: float
    branch: float
    weight: float
    trunk_error: float
    branch_error: float
    weight_error: float

    def __str__(self) -> str:
        pairs = zip(self[:3], self[3:], strict=True)
        return " ".join(
            f"{value:7.3f} ± {error:5.3f}" if value == value else f"{'':>7}   {'':5}" for value, error in pairs
        )


def _standard_error(values: list[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / max(1, len(values) - 1) / len(values))


def errors(forecast: Forecast, make: Make, run: tuple[Any, ...], draws: int) -> Errors:
    """Trunk, branch and weight errors, and what they cannot be told from."""
    layers: dict[str, list[float]] = {}
    weights: dict[str, list[float]] = {}
    trunk: list[str] = []
    for seed in range(draws):
        torch.manual_seed(seed)
        profile = hw.measure(make(), *run)
        trunk = [row.name for row in profile.trunk_layers]
        for row in profile.layers:
            if row.gradient is not None:
                layers.setdefault(row.name, []).append(row.gradient.rms_log10)
        for parameter in profile.parameters:
            if parameter.gradient is not None:
                weights.setdefault(parameter.name, []).append(parameter.gradient.rms_log10)
    predicted = {row.name: row.gradient_rms_log10 for row in forecast.layers}
    last = trunk[-1]
    # Of each draw: relative to its own last layer.
    relative = {n: [a - b for a, b in zip(v, layers[last], strict=True)] for n, v in layers.items()}

    def difference(name: str) -> float:
        value, reference = predicted.get(name), predicted.get(last)
        if value is None or reference is None:
            return math.nan
        return value - reference - math.fsum(relative[name]) / draws

    of_weights, weight_errors = [], []
    for name, values in weights.items():
        value, mean = forecast.parameter(name).gradient_rms_log10, math.fsum(values) / len(values)
        # A gradient that is zero but for rounding (a bias before a BatchNorm, a key's bias) is forecast as -inf.
        if value is None:
            of_weights.append(math.nan)
        elif math.isfinite(value) and math.isfinite(mean):
            of_weights.append(value - mean)
            weight_errors.append(_standard_error(values))
    branches = [n for n in relative if n not in trunk]
    return Errors(
        *(_rms([difference(n) for n in names]) for names in (trunk, branches)),
        _rms(of_weights),
        *(_rms([_standard_error(relative[n]) for n in names]) for names in (trunk, branches)),
        _rms(weight_errors),
    )


def large_encoder() -> None:
    """A network that no single machine holds."""
    start = time.perf_counter()
    forecast = predict(encoder(True, 80, 7808, 64), torch.empty(4, 2048, 7808, device="meta"))
    seconds = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    billions = forecast.parameter_count / 1e9
    print(
        f"80-layer encoder, {billions:.1f}e9 parameters: {seconds:.1f} s, {memory:.2f} GiB resident, {forecast.coverage}"
    )


def audit(names: list[str], draws: int) -> None:
    """The common networks, and what is known of each."""
    try:
        from benchmarks.forecast_audit import audited
    except ImportError:  # run as a program, from any folder
        from forecast_audit import audited  # type: ignore[no-redef]
    print(f"{'network':22} {_HEAD} {'seconds':>8}   decades, {draws} draws, ± standard error of their mean")
    for case in audited():
        if names and not any(part in case.name for part in names):
            continue
        start = time.perf_counter()
        forecast = predict(case.make, *case.run)
        seconds = time.perf_counter() - start
        if forecast.coverage.complete:
            found = errors(forecast, case.make, case.run, draws)
            goal = found.trunk <= 0.05 and not found.branch > 0.10 and found.weight <= 0.10
            print(f"{case.name:22} {found} {seconds:8.1f}   {'' if goal else case.reason or 'outside'}", flush=True)
        else:
            print(f"{case.name:22} {'unknown':>47} {seconds:8.1f}   {case.reason}: {forecast.coverage}", flush=True)


def large_encoder_by_command() -> None:
    """The same network through ``headwater predict``, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.py"
        path.write_text(
            "from torch import nn\n\ndef make():\n    return nn.Sequential(*[nn.TransformerEncoderLayer(7808, 64, 31232, "
            "dropout=0.0, batch_first=True, norm_first=True) for _ in range(80)])\n"
        )
        words = ["predict", f"{path}:make", "--input-shape", "4,2048,7808", "--json", str(Path(folder) / "large.json")]
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([sys.executable, "-m", "headwater", *words], check=True, capture_output=True)
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"the same by headwater predict: {seconds:.1f} s ({after.ru_utime - before.ru_utime:.1f} s of CPU), "
        f"{after.ru_maxrss / 2**20:.2f} GiB resident"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", help="only networks whose name contains one of these; 'large' for the encoder"
    )
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--audit", action="store_true", help="common small networks instead")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if options.audit:
        audit(options.names, options.draws)
        return
    if not options.names or "large" in options.names:
        large_encoder()  # first: the peak of the resident memory is its own
        large_encoder_by_command()

    def deep_sigmoid() -> nn.Module:
        return nn.Sequential(*[m for _ in range(20) for m in (nn.Linear(100, 100), nn.Sigmoid())])

    if not options.names or "sigmoid" in options.names:
        rows = predict(deep_sigmoid, torch.empty(64, 100, device="meta"))
        change = (rows.layer("0").gradient_rms_log10 or 0.0) - (rows.layer("38").gradient_rms_log10 or 0.0)
        print(f"deep sigmoid, 20 × 100: {change:.2f} decades (THEORY.md: -16.17, sampled -16.22)")
    print(f"{'network':38} {_HEAD}   decades, {options.draws} draws, ± standard error of their mean")
    for name, make, run in cases():
        if options.names and not any(part in name for part in options.names):
            continue
        forecast = predict(make, *run)
        print(f"{name:38} {errors(forecast, make, run, options.draws)}   {forecast.coverage}", flush=True)


if __name__ == "__main__":
    main()
