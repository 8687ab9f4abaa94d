"""Healthy networks for images: skips, gates, norms, GANs, flows."""

from __future__ import annotations

import math

import torch
from tests.labelled.evidence import learns
from tests.labelled.kit import bce_logits, ce, control, he, initialise, mlp, mse, pictures, standard
from torch import nn
from torch.nn import functional as F

OK = "healthy control; "


class Basic(nn.Module):
    def __init__(self, channels, zero_gamma):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        if zero_gamma:
            nn.init.zeros_(self.bn2.weight)

    def forward(self, x):
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True))))


def resnet(blocks, zero_gamma, channels=12):
    stem = [nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 6)]
    return nn.Sequential(*stem, *[Basic(channels, zero_gamma) for _ in range(blocks)], *head)


@control(OK + "ResNet with zero-initialised last gamma (Goyal et al. 2017)", learns())
def ok_resnet_zero_gamma():
    x, y = pictures(32, 3, 8)
    return resnet(6, True), standard(x), y, ce


@control(OK + "ResNet in evaluation mode with fresh running statistics", learns(lr=1e-3))
def ok_resnet_eval_mode():
    x, y = pictures(32, 3, 8)
    return resnet(3, False).eval(), standard(x), y, ce


class Inverted(nn.Module):
    def __init__(self, channels, expand=4):
        super().__init__()
        wide = channels * expand
        self.body = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(),
            nn.Conv2d(wide, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x):
        return x + self.body(x)


@control(OK + "MobileNetV2-like inverted residuals, depthwise convolutions, ReLU6", learns())
def ok_mobilenet_blocks():
    x, y = pictures(32, 3, 8)
    return (
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            *[Inverted(8) for _ in range(4)],
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 6),
        ),
        standard(x),
        y,
        ce,
    )


class UNet(nn.Module):
    def __init__(self):
        super().__init__()

        def two(i, o):
            return nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.ReLU(), nn.Conv2d(o, o, 3, padding=1), nn.ReLU())

        self.down1, self.down2, self.bottom = two(1, 8), two(8, 16), two(16, 32)
        self.up2, self.up1 = nn.ConvTranspose2d(32, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)
        self.dec2, self.dec1, self.out = two(32, 16), two(16, 8), nn.Conv2d(8, 1, 1)
        initialise(self, he)

    def forward(self, x):
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.bottom(F.max_pool2d(b, 2))
        d = self.dec2(torch.cat([self.up2(c), b], 1))
        return self.out(self.dec1(torch.cat([self.up1(d), a], 1)))


@control(OK + "U-Net with two levels and skip connections (Ronneberger et al. 2015)", learns())
def ok_unet():
    x, _ = pictures(16, 1, 16)
    return UNet(), standard(x), (x > 0.4).float(), bce_logits


class Dense(nn.Module):
    def __init__(self, layers=5, growth=8):
        super().__init__()
        self.layers = nn.ModuleList(
            [
                nn.Sequential(
                    nn.BatchNorm2d(8 + growth * i), nn.ReLU(), nn.Conv2d(8 + growth * i, growth, 3, padding=1)
                )
                for i in range(layers)
            ]
        )

    def forward(self, x):
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


@control(OK + "DenseNet block: every layer reads all earlier ones (Huang et al. 2017)", learns())
def ok_densenet_block():
    x, y = pictures(32, 3, 8)
    return (
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), Dense(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 6)),
        standard(x),
        y,
        ce,
    )


class SEBlock(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv, self.down, self.up, self.sigmoid = (
            nn.Conv2d(c, c, 3, padding=1),
            nn.Linear(c, c // 2),
            nn.Linear(c // 2, c),
            nn.Sigmoid(),
        )

    def forward(self, x):
        u = F.relu(self.conv(x))
        return x + u * self.sigmoid(self.up(F.relu(self.down(u.mean((2, 3))))))[:, :, None, None]


@control(OK + "squeeze-and-excitation: sigmoid gates near a half, on branches", learns())
def ok_squeeze_excite():
    x, y = pictures(32, 3, 8)
    return (
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            SEBlock(8),
            SEBlock(8),
            SEBlock(8),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 6),
        ),
        standard(x),
        y,
        ce,
    )


@control(OK + "GroupNorm after every convolution", learns())
def ok_group_norm():
    x, y = pictures(24, 3, 8)
    layers = []
    for i in range(6):
        layers += [nn.Conv2d(3 if i == 0 else 16, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 6)), standard(x), y, ce


@control(OK + "InstanceNorm without affine parameters, a style-transfer-like generator", learns(0.05))
def ok_instance_norm_generator():
    x, _ = pictures(12, 3, 12)
    net = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.InstanceNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1),
        nn.InstanceNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 3, 3, padding=1),
        nn.Tanh(),
    )
    return net, standard(x), 2 * x - 1, mse


@control(OK + "DCGAN-like discriminator: LeakyReLU 0.2, N(0, 0.02), batch norm (Radford et al. 2016)", learns())
def ok_dcgan_discriminator():
    x, y = pictures(32, 1, 16, 2)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(16, 32, 4, 2, 1, bias=False),
        nn.BatchNorm2d(32),
        nn.LeakyReLU(0.2),
        nn.Conv2d(32, 64, 4, 2, 1, bias=False),
        nn.BatchNorm2d(64),
        nn.LeakyReLU(0.2),
        nn.Conv2d(64, 1, 2),
        nn.Flatten(),
    )
    for m in net:
        if isinstance(m, nn.Conv2d):
            nn.init.normal_(m.weight, std=0.02)
    return net, 2 * x - 1, y[:, None].float(), bce_logits


class GAN(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = nn.Sequential(
            nn.ConvTranspose2d(8, 32, 4, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.ConvTranspose2d(32, 16, 4, 2, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.ConvTranspose2d(16, 1, 4, 2, 1),
            nn.Tanh(),
        )
        self.discriminator = nn.Sequential(
            nn.Conv2d(1, 16, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(16, 32, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(512, 1),
        )
        for p in self.discriminator.parameters():
            p.requires_grad_(False)

    def forward(self, z):
        return self.discriminator(self.generator(z))


@control(OK + "generator step of a GAN at its start: the discriminator is frozen and undecided", learns(0.05))
def ok_gan_generator_step():
    return GAN(), torch.randn(32, 8, 1, 1), torch.ones(32, 1), bce_logits


@control(OK + "discriminator with spectral norm on its three layers (Miyato et al. 2018)", learns(0.05))
def ok_spectral_norm_three_layers():
    x, y = pictures(48, 1, 12, 2)
    net = nn.Sequential(nn.Flatten(), *mlp([144, 64, 64, 1], lambda: nn.LeakyReLU(0.2)))
    for i in (1, 3, 5):
        nn.utils.parametrizations.spectral_norm(net[i], n_power_iterations=5)
    return net, standard(x), y[:, None].float(), bce_logits


@control(OK + "weight norm on every layer (Salimans & Kingma 2016)", learns())
def ok_weight_norm():
    x, y = pictures(48, 1, 12)
    net = nn.Sequential(nn.Flatten(), *mlp([144, 64, 64, 6], nn.ReLU, he))
    for i in (1, 3, 5):
        nn.utils.parametrizations.weight_norm(net[i])
    return net, standard(x), y, ce


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode, self.mu, self.logvar = (
            mlp([144, 64], nn.ReLU, he, out=nn.ReLU()),
            nn.Linear(64, 4),
            nn.Linear(64, 4),
        )
        self.decode = mlp([4, 64, 144], nn.ReLU, he)

    def forward(self, x):
        h = self.encode(x)
        mu, logvar = self.mu(h), self.logvar(h)
        return self.decode(mu + torch.exp(logvar / 2) * torch.randn_like(mu)), mu, logvar


@control(OK + "variational autoencoder with the usual loss (Kingma & Welling 2014)", learns(0.05))
def ok_vae():
    x, _ = pictures(48, 1, 12)
    x = x.flatten(1)

    def elbo(out, t):
        logits, mu, logvar = out
        kl = -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum(1).mean()
        return F.binary_cross_entropy_with_logits(logits, t, reduction="none").sum(1).mean() + kl

    return VAE(), x, x, elbo


class Coupling(nn.Module):
    def __init__(self, flip):
        super().__init__()
        self.net, self.flip = mlp([2, 32, 4], nn.ReLU, he), flip
        nn.init.zeros_(self.net[2].weight)

    def forward(self, state):
        x, logdet = state
        a, b = x.chunk(2, 1)
        if self.flip:
            a, b = b, a
        s, t = self.net(a).chunk(2, 1)
        s = torch.tanh(s)
        b = b * torch.exp(s) + t
        return torch.cat([b, a] if self.flip else [a, b], 1), logdet + s.sum(1)


class Flow(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(*[Coupling(i % 2 == 1) for i in range(6)])

    def forward(self, x):
        return self.layers((x, torch.zeros(len(x))))


@control(
    OK + "affine coupling flow that starts as the identity: its last layers are zero (Dinh et al. 2017)",
    learns(0.02),
)
def ok_coupling_flow():
    x = torch.randn(96, 4) * torch.tensor([2.0, 0.5, 1.0, 3.0]) + 1.0
    return Flow(), x, x, lambda out, _: (0.5 * out[0].square().sum(1) - out[1]).mean() + 2 * math.log(2 * math.pi)


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = mlp([144, 64, 16], nn.ReLU, he)

    def forward(self, pair):
        return F.pairwise_distance(self.embed(pair[:, 0]), self.embed(pair[:, 1]))


@control(
    OK + "Siamese net: one tower called twice, contrastive loss (Hadsell et al. 2006); the last bias cancels",
    learns(0.05, quiet="embed.2.bias"),
)
def ok_siamese():
    x, _ = pictures(48, 1, 12, 4)
    pair = torch.stack([x.flatten(1), x.flatten(1).roll(4, 0)], 1)
    pair[::2, 1] = pair[::2, 1].roll(1, 0)
    same = (torch.arange(48) % 2).float()
    return Siamese(), pair, same, lambda d, t: (t * d.square() + (1 - t) * F.relu(4 - d).square()).mean()


class Denoiser(nn.Module):
    """A time-conditioned net with FiLM, whose output convolution starts at zero as in diffusion models."""

    def __init__(self):
        super().__init__()
        self.time = mlp([16, 32, 32], nn.SiLU)
        self.a, self.norm, self.b, self.out = (
            nn.Conv2d(1, 16, 3, padding=1),
            nn.GroupNorm(4, 16),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.Conv2d(16, 1, 3, padding=1),
        )
        nn.init.zeros_(self.out.weight), nn.init.zeros_(self.out.bias)

    def forward(self, xt):
        x, t = xt[:, :1], xt[:, 1, 0, 0]
        e = self.time(
            torch.cat([(t[:, None] * 2.0 ** torch.arange(8)).sin(), (t[:, None] * 2.0 ** torch.arange(8)).cos()], 1)
        )
        scale, shift = e[:, :, None, None].chunk(2, 1)
        h = F.silu(self.a(x))
        return self.out(h + F.silu(self.b(self.norm(h) * (1 + scale) + shift)))


@control(OK + "diffusion denoiser with a zero-initialised output convolution (Ho et al. 2020)", learns(0.02, quiet=""))
def ok_diffusion_denoiser():
    x, _ = pictures(24, 1, 10)
    t, noise = torch.rand(24), torch.randn(24, 1, 10, 10)
    noisy = (1 - t)[:, None, None, None] * standard(x) + t[:, None, None, None] * noise
    return Denoiser(), torch.cat([noisy, t[:, None, None, None].expand(24, 1, 10, 10)], 1), noise, mse


@control(OK + "frozen pre-trained backbone, fresh zero-initialised head", learns(0.05, lr=0.02))
def ok_frozen_backbone_zero_head():
    x, y = pictures(32, 3, 8)
    net = resnet(3, False)
    net.requires_grad_(False)
    net[-1] = nn.Linear(12, 6)
    nn.init.zeros_(net[-1].weight), nn.init.zeros_(net[-1].bias)
    return net, standard(x), y, ce
