"""Real trainings on handwritten digits, healthy and broken, and what the alerts say of each.

python examples/train_digits.py                       the deep sigmoid network beside a sound one
python examples/train_digits.py --list                the cases
python examples/train_digits.py spike dying_relu      some of them
python examples/train_digits.py all --steps 300 --folder runs
python examples/train_digits.py cnn --cost --steps 2000
"""

import argparse
import copy
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import headwater as hw
from headwater.records import Finding

BATCH = 64


# ---------------------------------------------------------------- the data: 1,797 images of 8 by 8 pixels


def load() -> tuple[Tensor, Tensor]:
    """Return pixels (N, 64) between 0 and 1, and digits (N,)."""
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)


# ---------------------------------------------------------------- sound networks


def mlp() -> nn.Module:
    """Three hidden ReLU layers, He initialisation."""
    model = nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    )
    for module in model:
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    return model


def cnn() -> nn.Module:
    """Two convolutions with batch norm, torch's default initialisation."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


class PixelTransformer(nn.Module):
    """Two pre-norm blocks over the 64 pixels as a sequence."""

    def __init__(self, width: int = 16) -> None:
        """Make the embedding, the blocks and the head."""
        super().__init__()
        self.pixel = nn.Linear(1, width)
        self.place = nn.Parameter(torch.randn(64, width))
        block = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.ModuleList(copy.deepcopy(block) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Classify pixels (B, 64)."""
        h = self.pixel(x[:, :, None]) + self.place
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h).mean(1))


class RowReader(nn.Module):
    """An LSTM over the eight rows; the head reads its last step."""

    def __init__(self) -> None:
        """Make the LSTM and the head."""
        super().__init__()
        self.lstm = nn.LSTM(8, 48, batch_first=True)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Classify pixels (B, 64)."""
        output, _ = self.lstm(x.view(-1, 8, 8))
        return self.head(output[:, -1])


# ---------------------------------------------------------------- broken networks


def deep_sigmoid() -> nn.Module:
    """Twelve sigmoid layers: each lets at most a quarter of the gradient through."""
    return nn.Sequential(*[m for _ in range(12) for m in (nn.Linear(64, 64), nn.Sigmoid())], nn.Linear(64, 10))


def standard_normal() -> nn.Module:
    """Eight ReLU layers whose weights are drawn from N(0, 1): the signal grows by about sqrt(64 / 2) per layer."""
    model = nn.Sequential(*[m for _ in range(8) for m in (nn.Linear(64, 64), nn.ReLU())], nn.Linear(64, 10))
    for module in model:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight)
            nn.init.zeros_(module.bias)
    return model


class Whiten(nn.Module):
    """Divide each row by its length: 0 / 0 for a row of zeros."""

    def forward(self, x: Tensor) -> Tensor:
        """Scale rows (B, D) to length 1."""
        return x / x.norm(dim=1, keepdim=True)


def whitened() -> nn.Module:
    """The sound network behind a division that an empty image turns into NaN."""
    return nn.Sequential(Whiten(), *mlp())


class LowRank(nn.Module):
    """A frozen layer plus a trained product of two factors, the second of which starts at zero (LoRA)."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        """Adapt ``base``."""
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Apply both."""
        return self.base(x) + self.up(self.down(x))


def adapted() -> nn.Module:
    """The sound network with low-rank factors beside each layer; only they are trained."""
    return nn.Sequential(*[LowRank(m) if isinstance(m, nn.Linear) else m for m in mlp()])


# ---------------------------------------------------------------- the cases


def adam(learning_rate: float) -> Callable[[nn.Module], torch.optim.Optimizer]:
    """Adam over what is trained."""
    return lambda model: torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=learning_rate)


def sgd(learning_rate: float) -> Callable[[nn.Module], torch.optim.Optimizer]:
    """Plain gradient descent."""
    return lambda model: torch.optim.SGD(model.parameters(), lr=learning_rate)


usual = adam(1e-3)


@dataclass(frozen=True)
class Case:
    """One training.

    Attributes:
        about: what it is.
        model: makes the network.
        optimizer: makes its optimizer.
        fault_step: the step whose batch ``spoil`` changes; None for none.
        spoil: changes the pixels of that batch.
        clip: largest norm of the gradient; None does not clip.
        every: steps between two recorded ones.
        activations: on which of them layers are looked at.
    """

    about: str
    model: Callable[[], nn.Module]
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = usual
    fault_step: int | None = None
    spoil: Callable[[Tensor], Tensor] = torch.Tensor.clone
    clip: float | None = None
    every: int = 10
    activations: Literal["sampled", "recorded"] = "sampled"


def one_empty_image(x: Tensor) -> Tensor:
    """The batch with its first image black."""
    return torch.cat([torch.zeros_like(x[:1]), x[1:]])


CASES: dict[str, Case] = {
    "mlp": Case("sound: three ReLU layers", mlp),
    "cnn": Case("sound: two convolutions with batch norm", cnn),
    "transformer": Case("sound: attention over the 64 pixels", PixelTransformer, adam(3e-3)),
    "lstm": Case("sound: an LSTM over the 8 rows", RowReader),
    "lora": Case("sound: zero-initialised low-rank factors", adapted),
    "deep_sigmoid": Case("twelve sigmoid layers", deep_sigmoid, sgd(0.1)),
    "exploding": Case("weights from N(0, 1)", standard_normal),
    "overflowing": Case("weights from N(0, 1), and a step that such gradients do not bear", standard_normal, sgd(1e-3)),
    "dying_relu": Case("a learning rate that kills the ReLUs", mlp, sgd(1.0)),
    "nan": Case("0 / 0 at step 120", whitened, fault_step=120, spoil=one_empty_image, activations="recorded"),
    "spike": Case("a batch of raw pixels, times 16, at step 150", mlp, fault_step=150, spoil=lambda x: 16 * x),
    "clip_starved": Case("the gradient clipped to a norm of 1e-6 under Adam", mlp, clip=1e-6),
    "slow": Case("a learning rate of 1e-9", mlp, sgd(1e-9)),
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What came of a training.

    Attributes:
        losses: of every step.
        accuracy: on all images, at the end.
        findings: of the alerts.
        watch: the watch, detached; None when nothing watched.
        model: the trained network.
    """

    losses: tuple[float, ...]
    accuracy: float
    findings: tuple[Finding, ...]
    watch: object
    model: nn.Module


def train(
    case: Case, steps: int = 300, run: Path | None = None, *, seed: int = 0, watched: bool = True, alerts: object = None
) -> Outcome:
    """Train one case for ``steps`` optimizer steps; only the line with ``hw.watch`` knows of headwater."""
    pixels, digits = load()
    torch.manual_seed(seed)
    model = case.model()
    optimizer = case.optimizer(model)
    order = torch.Generator().manual_seed(seed)
    losses = []
    watching = hw.watch(model, optimizer, run, every=case.every, activations=case.activations, alerts=alerts)
    with watching if watched else nullcontext() as watch:
        for step in range(steps):
            batch = torch.randint(len(pixels), (BATCH,), generator=order)
            x, y = pixels[batch], digits[batch]
            if step == case.fault_step:
                x = case.spoil(x)
            loss = nn.functional.cross_entropy(model(x), y)
            if watch is not None:
                watch.record(loss=loss)  # optional: without it the rows have no loss
            loss.backward()
            if case.clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), case.clip)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    with torch.no_grad():
        accuracy = float((model(pixels).argmax(1) == digits).float().mean())
    return Outcome(tuple(losses), accuracy, () if watch is None else watch.findings, watch, model)


def tell(name: str, case: Case, outcome: Outcome) -> None:
    """Print what happened, in a few lines."""
    print(
        f"{name} ({case.about}): loss {outcome.losses[0]:.3g} -> {outcome.losses[-1]:.3g}, "
        f"{outcome.accuracy:.0%} of the digits right"
    )
    for finding in outcome.findings:
        print(f"  {finding}")
    if not outcome.findings:
        print("  no alert")


def tell_cost(name: str, case: Case, steps: int, folder: Path, times: int = 3) -> None:
    """Train without and with watching, in turn, and print processor seconds (of all threads) and the last watch's summary."""
    spent: dict[bool, list[float]] = {False: [], True: []}
    for i in range(times):
        for watched in (False, True):
            began = time.process_time()
            outcome = train(case, steps, folder / f"{name}-{i}", watched=watched)
            spent[watched].append(time.process_time() - began)
    bare, watched_seconds = (sorted(spent[key])[times // 2] for key in (False, True))
    print(
        f"{name}, {steps} steps: {bare:.2f} s bare, {watched_seconds:.2f} s watched "
        f"({100 * (watched_seconds / bare - 1):+.1f} %, medians of {times} in turn)"
    )
    print("\n".join(f"  {line}" for line in outcome.watch.summary().splitlines()))


def main() -> None:
    """Train the cases named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", nargs="*", default=["mlp", "deep_sigmoid"], help="names of cases, or all")
    parser.add_argument("--steps", type=int, help="optimizer steps  [default: 60, or 300 for named cases]")
    parser.add_argument("--every", type=int, help="steps between two recorded ones  [default: 10]")
    parser.add_argument("--folder", type=Path, help="where the runs are kept; else they are thrown away")
    parser.add_argument("--list", action="store_true", help="list the cases")
    parser.add_argument("--cost", action="store_true", help="train without and with watching, and compare the time")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # networks this small are not faster on two
    if arguments.list:
        for name, case in CASES.items():
            print(f"{name:>14}  {case.about}")
        return
    names = list(CASES) if arguments.case == ["all"] else arguments.case
    unknown = [name for name in names if name not in CASES]
    if unknown:
        parser.error(f"no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    steps = arguments.steps or (60 if arguments.case == ["mlp", "deep_sigmoid"] else 300)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        for name in names:
            case = CASES[name] if arguments.every is None else replace(CASES[name], every=arguments.every)
            if arguments.cost:
                tell_cost(name, case, steps, folder)
            else:
                tell(name, case, train(case, steps, folder / name))


if __name__ == "__main__":
    main()
