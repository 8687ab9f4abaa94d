"""Thirty common small networks: what ``python benchmarks/forecast.py --audit`` holds the forecast against sampling on."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Make = Callable[[], nn.Module]


@dataclass(frozen=True)
class Audited:
    """One network.

    Attributes:
        name: shown in the table.
        make: the factory.
        run: inputs, and targets and loss where there are some.
        trunk: decades allowed along the trunk; the goal is 0.05.
        branches: over the other layers and the weights; the goal is 0.10.
        reason: why more than the goal is allowed, or why nothing is known; empty for none.
        known: whether every layer has a forecast.
    """

    name: str
    make: Make
    run: tuple[Any, ...]
    trunk: float = 0.05
    branches: float = 0.10
    reason: str = ""
    known: bool = True


def _conv_norm(inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class LeNet(nn.Module):
    """Convolutions, max pooling, linear layers on flattened pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(1, 16, 5, padding=2), nn.Conv2d(16, 32, 5)
        self.f1, self.f2, self.f3 = nn.Linear(800, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        """The network."""
        x = F.max_pool2d(F.relu(self.c1(x)), 2)
        x = F.max_pool2d(F.relu(self.c2(x)), 2).flatten(1)
        out: Tensor = self.f3(F.relu(self.f2(F.relu(self.f1(x)))))
        return out


def vgg() -> nn.Module:
    """Convolutions with max pooling between them."""
    layers: list[nn.Module] = []
    width = 3
    for outputs in (32, 0, 64, 0, 64, 64, 0):
        layers += [nn.Conv2d(width, outputs, 3, padding=1), nn.ReLU()] if outputs else [nn.MaxPool2d(2)]
        width = outputs or width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 10))


class Basic(nn.Module):
    """ResNet's block."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.a, self.b = _conv_norm(inputs, outputs, 3, stride), _conv_norm(outputs, outputs)
        self.skip = nn.Identity() if stride == 1 and inputs == outputs else _conv_norm(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """The block."""
        return F.relu(self.b(F.relu(self.a(x))) + self.skip(x))


def resnet() -> nn.Module:
    """Stem with max pooling, three blocks, one of them strided."""
    stem = [nn.Conv2d(3, 32, 7, 2, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    body = [Basic(32, 32, 1), Basic(32, 64, 2), Basic(64, 64, 1)]
    return nn.Sequential(*stem, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class UNet(nn.Module):
    """Two resolutions down and up, with concatenated skips."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode
        self.e1, self.e2 = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 64, 3, 2, 1)
        self.e3 = nn.Conv2d(64, 64, 3, 2, 1)
        up = mode == "transposed"
        self.u1 = nn.ConvTranspose2d(64, 64, 2, 2) if up else nn.Conv2d(64, 64, 3, padding=1)
        self.u2 = nn.ConvTranspose2d(32, 32, 2, 2) if up else nn.Conv2d(32, 32, 3, padding=1)
        self.d1, self.d2 = nn.Conv2d(128, 32, 3, padding=1), nn.Conv2d(64, 32, 3, padding=1)
        self.out = nn.Conv2d(32, 2, 1)

    def _up(self, x: Tensor) -> Tensor:
        return x if self.mode == "transposed" else F.interpolate(x, scale_factor=2, mode=self.mode)

    def forward(self, x: Tensor) -> Tensor:
        """The network."""
        a = F.relu(self.e1(x))
        b = F.relu(self.e2(a))
        y = F.relu(self.d1(torch.cat([self.u1(self._up(F.relu(self.e3(b)))), b], 1)))
        out: Tensor = self.out(F.relu(self.d2(torch.cat([self.u2(self._up(y)), a], 1))))
        return out


class DenseNet(nn.Module):
    """Each layer reads everything before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        sizes = [32 + 16 * k for k in range(4)]
        self.layers = nn.ModuleList(
            [nn.Sequential(nn.BatchNorm2d(n), nn.ReLU(), nn.Conv2d(n, 16, 3, padding=1, bias=False)) for n in sizes]
        )
        conv = nn.Conv2d(96, 48, 1, bias=False)
        self.transition = nn.Sequential(nn.BatchNorm2d(96), nn.ReLU(), conv, nn.AvgPool2d(2))
        self.out = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        """The network."""
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        out: Tensor = self.out(self.transition(x).mean((2, 3)))
        return out


class SqueezeExcite(nn.Module):
    """A gate per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(width, width // 4, 1), nn.Conv2d(width // 4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The gated tensor."""
        return x * F.hardsigmoid(self.b(F.relu(self.a(F.adaptive_avg_pool2d(x, 1)))))


class MobileBlock(nn.Module):
    """Expansion, depthwise convolution, gate, projection."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int, gate: bool) -> None:
        super().__init__()
        middle = [nn.Hardswish(), SqueezeExcite(inner)] if gate else [nn.Hardswish()]
        self.body = nn.Sequential(
            _conv_norm(inputs, inner, 1), nn.Hardswish(), _conv_norm(inner, inner, 3, stride, inner), *middle,
            _conv_norm(inner, outputs, 1),
        )  # fmt: skip
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """The block."""
        y: Tensor = self.body(x)
        return x + y if self.skip else y


def mobilenet() -> nn.Module:
    """Three such blocks."""
    body = [MobileBlock(32, 64, 32, 1, True), MobileBlock(32, 96, 48, 2, False), MobileBlock(48, 128, 48, 1, True)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 64), nn.Hardswish(), nn.Linear(64, 10)]
    return nn.Sequential(_conv_norm(3, 32, 3, 2), nn.Hardswish(), *body, *head)


class MixerBlock(nn.Module):
    """One MLP over tokens, one over features."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(tokens, 64), nn.GELU(), nn.Linear(64, tokens))
        self.features = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """The block."""
        x = x + self.tokens(self.n1(x).transpose(1, 2)).transpose(1, 2)
        out: Tensor = x + self.features(self.n2(x))
        return out


class Mixer(nn.Module):
    """MLP-Mixer on patches."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 64, 4, 4)
        self.blocks = nn.Sequential(*[MixerBlock(64, 64) for _ in range(3)])
        self.norm, self.out = nn.LayerNorm(64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """The network."""
        out: Tensor = self.out(self.norm(self.blocks(self.patches(x).flatten(2).transpose(1, 2))).mean(1))
        return out


def group_norm_cnn() -> nn.Module:
    """GroupNorm and SiLU."""
    layers: list[nn.Module] = []
    for k in range(5):
        conv = nn.Conv2d(64 if k else 3, 64, 3, 2 if k == 2 else 1, 1)
        layers += [conv, nn.GroupNorm(8, 64), nn.SiLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def style_network() -> nn.Module:
    """InstanceNorm, reflected borders, nearest-neighbour upsampling."""

    def norm(width: int) -> nn.Module:
        return nn.InstanceNorm2d(width, affine=True)

    down = [nn.ReflectionPad2d(1), nn.Conv2d(3, 32, 3), norm(32), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), norm(64)]
    up = [nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv2d(64, 32, 3, padding=1), norm(32), nn.ReLU()]
    return nn.Sequential(*down, *up, nn.Conv2d(32, 3, 3, padding=1), nn.Tanh())


class GatedBlock(nn.Module):
    """A dilated causal convolution, tanh · sigmoid, with a residual and a skip."""

    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.f, self.g = (nn.Conv1d(64, 64, 2, dilation=dilation) for _ in range(2))
        self.residual, self.skip = nn.Conv1d(64, 64, 1), nn.Conv1d(64, 64, 1)
        self.dilation = dilation

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The residual stream and the skip."""
        padded = F.pad(x, (self.dilation, 0))
        z = torch.tanh(self.f(padded)) * torch.sigmoid(self.g(padded))
        return x + self.residual(z), self.skip(z)


class WaveNet(nn.Module):
    """Five such blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv1d(8, 64, 1), nn.ModuleList([GatedBlock(2**k) for k in range(5)])
        self.a, self.b = nn.Conv1d(64, 64, 1), nn.Conv1d(64, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The network."""
        x, total = self.stem(x), torch.zeros(())
        for block in self.blocks:
            x, skip = block(x)
            total = skip if total.dim() == 0 else total + skip
        out: Tensor = self.b(F.relu(self.a(F.relu(total))))
        return out


class Siamese(nn.Module):
    """One network on two inputs, their difference."""

    def __init__(self, contrast: bool = False) -> None:
        super().__init__()
        self.contrast = contrast
        layers = [nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 64)]
        self.tower = nn.Sequential(*layers)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The difference, or the contrastive loss of cosines."""
        if not self.contrast:
            out: Tensor = self.tower(a) - self.tower(b)
            return out
        one, two = F.normalize(self.tower(a), dim=1), F.normalize(self.tower(b), dim=1)
        return F.cross_entropy(one @ two.T / 0.5, torch.arange(len(a), device=a.device))


def autoencoder() -> nn.Module:
    """A bottleneck of 16."""
    sizes = [256, 128, 16, 128, 256]
    layers = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


class SwiGLU(nn.Module):
    """A gated residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(64, 172), nn.Linear(64, 172), nn.Linear(172, 64)

    def forward(self, x: Tensor) -> Tensor:
        """The block."""
        return x + self.down(F.silu(self.gate(x)) * self.up(x))


class TokenBag(nn.Module):
    """The mean of embeddings, then an MLP."""

    def __init__(self, bag: bool) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(200, 64, mode="mean") if bag else nn.Embedding(200, 64)
        self.body = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
        self.bag = bag

    def forward(self, ids: Tensor) -> Tensor:
        """The network."""
        x = self.table(ids)
        out: Tensor = self.body(x if self.bag else x.mean(1))
        return out


class Tagger(nn.Module):
    """Two bidirectional LSTM layers and the mean or maximum over time."""

    def __init__(self, largest: bool) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(200, 64), nn.Linear(128, 10)
        self.lstm = nn.LSTM(64, 64, 2, batch_first=True, bidirectional=True)
        self.largest = largest

    def forward(self, ids: Tensor) -> Tensor:
        """The network."""
        states = self.lstm(self.table(ids))[0]
        out: Tensor = self.out(states.max(1).values if self.largest else states.mean(1))
        return out


class Translator(nn.Module):
    """torch's encoder and decoder with cross-attention."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.Transformer(64, 4, 2, 2, 256, dropout=0.0, batch_first=True)
        self.out = nn.Linear(64, 50)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """The network."""
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1], device=target.device)
        out: Tensor = self.out(self.transformer(source, target, tgt_mask=mask))
        return out


def t5() -> nn.Module:
    """T5 with relative positions; needs transformers."""
    import transformers as tr

    sizes = dict(vocab_size=200, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, dropout_rate=0.0)
    return tr.T5ForConditionalGeneration(tr.T5Config(decoder_start_token_id=0, use_cache=False, **sizes))


def _wrapped(wrap: Callable[[nn.Module], nn.Module], slope: float) -> Make:
    def make() -> nn.Module:
        layers = [m for _ in range(4) for m in (wrap(nn.Linear(128, 128)), nn.LeakyReLU(slope))]
        return nn.Sequential(*layers, nn.Linear(128, 10))

    return make


def super_resolution() -> nn.Module:
    """Channels become pixels."""
    inner = [nn.Conv2d(3, 64, 5, padding=2), nn.Tanh(), nn.Conv2d(64, 32, 3, padding=1), nn.Tanh()]
    return nn.Sequential(*inner, nn.Conv2d(32, 27, 3, padding=1), nn.PixelShuffle(3))


def strided_cnn() -> nn.Module:
    """64 × 64 pixels, more than are kept apart, down to 8 × 8."""
    widths = [3, 32, 64, 128]
    convs = [m for a, b in itertools.pairwise(widths) for m in (nn.Conv2d(a, b, 4, 2, 1), nn.ReLU())]
    return nn.Sequential(*convs, nn.Flatten(), nn.Linear(8192, 64), nn.ReLU(), nn.Linear(64, 10))


def generator() -> nn.Module:
    """Features laid out as pixels, transposed convolutions, BatchNorm."""
    layers: list[nn.Module] = [nn.Linear(64, 2048), nn.Unflatten(1, (128, 4, 4))]
    for a, b in ((128, 64), (64, 32)):
        layers += [nn.ConvTranspose2d(a, b, 4, 2, 1), nn.BatchNorm2d(b), nn.ReLU()]
    return nn.Sequential(*layers, nn.ConvTranspose2d(32, 3, 4, 2, 1), nn.Tanh())


def text_cnn() -> nn.Module:
    """Conv1d with max pooling, at the end over all time."""
    layers = [nn.Conv1d(16, 64, 5, padding=2), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(64, 64, 5, padding=2), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(64, 10))


class SoftMixture(nn.Module):
    """Experts weighed by a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate, self.out = nn.Linear(64, 128), nn.Linear(128, 4), nn.Linear(32, 10)
        self.experts = nn.ModuleList([nn.Linear(128, 32) for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        """The network."""
        h = F.relu(self.stem(x))
        every = torch.stack([expert(h) for expert in self.experts], 1)
        out: Tensor = self.out((F.softmax(self.gate(h), -1).unsqueeze(-1) * every).sum(1))
        return out


class GatedHalves(nn.Module):
    """GLU layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.out = nn.ModuleList([nn.Linear(64, 128) for _ in range(5)]), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """The network."""
        for layer in self.layers:
            x = F.glu(layer(x), -1)
        out: Tensor = self.out(x)
        return out


def audited() -> list[Audited]:
    """The networks, each with what it runs on.

    Returns:
        In the order of the table; T5 only where transformers is installed.
    """
    g = torch.Generator().manual_seed(11)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    labels = torch.randint(0, 10, (8,), generator=g)
    many = torch.randint(0, 10, (32,), generator=g)
    image, small = numbers(8, 3, 32, 32), numbers(8, 3, 16, 16)
    ids = torch.randint(0, 200, (8, 12), generator=g)
    entropy = F.cross_entropy
    parametrised = nn.utils.parametrizations
    uneven = "channels of a concatenation with different variances share one number"
    twice = "gradients of two uses of one weight are added as independent"
    invariant = "a BatchNorm's scale before a depthwise one has almost no gradient"
    found = [
        Audited("LeNet", LeNet, (numbers(8, 1, 28, 28), labels, entropy)),
        Audited("VGG, max pooling", vgg, (image, labels, entropy)),
        Audited("ResNet", resnet, (image, labels, entropy)),
        Audited("U-Net, transposed", lambda: UNet("transposed"), (small[:4],)),
        Audited("U-Net, nearest", lambda: UNet("nearest"), (small[:4],)),
        Audited("U-Net, bilinear", lambda: UNet("bilinear"), (small[:4],)),
        Audited("DenseNet", DenseNet, (small, labels, entropy), branches=0.15, reason=uneven),
        Audited("MobileNet, SE", mobilenet, (image, labels, entropy), 0.09, 0.17, invariant),
        Audited("MLP-Mixer", Mixer, (image, labels, entropy)),
        Audited("CNN, GroupNorm", group_norm_cnn, (small, labels, entropy)),
        Audited("style, InstanceNorm", style_network, (small[:4],), branches=0.13, reason="the last kernel's gradient"),
        Audited("WaveNet", WaveNet, (numbers(4, 8, 64),)),
        Audited("Siamese", Siamese, ((numbers(32, 64), numbers(32, 64)),), branches=0.15, reason=twice),
        Audited("contrastive", lambda: Siamese(True), ((numbers(32, 64), numbers(32, 64)),),
                reason="products between samples have no rule", known=False),
        Audited("autoencoder", autoencoder, (numbers(32, 256), numbers(32, 256), F.mse_loss)),
        Audited("SwiGLU MLP", lambda: nn.Sequential(*[SwiGLU() for _ in range(4)], nn.Linear(64, 10)),
                (numbers(32, 64), many, entropy)),
        Audited("GLU MLP", GatedHalves, (numbers(32, 64), many, entropy)),
        Audited("EmbeddingBag + MLP", lambda: TokenBag(True), (ids, labels, entropy)),
        Audited("embeddings + MLP", lambda: TokenBag(False), (ids, labels, entropy)),
        Audited("BiLSTM, mean", lambda: Tagger(False), (ids, labels, entropy)),
        Audited("BiLSTM, maximum", lambda: Tagger(True), (ids, labels, entropy)),
        Audited("nn.Transformer", Translator, ((numbers(4, 10, 64), numbers(4, 8, 64)),)),
        Audited("weight norm", _wrapped(parametrised.weight_norm, 0.0), (numbers(32, 128), many, entropy)),
        Audited("spectral norm", _wrapped(parametrised.spectral_norm, 0.2), (numbers(32, 128), many, entropy)),
        Audited("PixelShuffle", super_resolution, (small[:4, :, :12, :12],)),
        Audited("strided CNN, 64 px", strided_cnn, (numbers(8, 3, 64, 64), labels, entropy)),
        Audited("GAN generator", generator, (numbers(8, 64),)),
        Audited("text CNN, maximum", text_cnn, (numbers(8, 16, 64), labels, entropy)),
        Audited("soft mixture", SoftMixture, (numbers(32, 64), many, entropy)),
    ]  # fmt: skip
    try:
        import transformers as tr
    except ImportError:
        return found
    tr.logging.set_verbosity_error()
    language = {"input_ids": ids[:4], "labels": ids[:4]}
    biased = "a learned bias on attention scores has no rule"
    return [*found, Audited("T5", t5, (language,), reason=biased, known=False)]
