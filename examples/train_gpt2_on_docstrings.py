"""A small GPT-2 reads the documentation strings of Python's standard library, byte by byte, watched and broken on purpose.

python examples/train_gpt2_on_docstrings.py                       the sound run, 40 steps
python examples/train_gpt2_on_docstrings.py all --steps 150 --folder runs
headwater report runs/sound --html sound.html
"""

import argparse
import ast
import sysconfig
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of parts of torch that transformers imports
    from transformers import GPT2Config, GPT2LMHeadModel

import headwater as hw

BATCH, LENGTH, WARM_UP = 8, 64, 20
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


# ---------------------------------------------------------------- the text


def docstrings(limit: int = 400_000) -> Iterator[str]:
    """Yield documentation strings of the standard library's modules, in order of file names, about ``limit`` bytes of them."""
    count = 0
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
                yield text
                count += len(text.encode())
        if count >= limit:
            return


def tokens() -> Tensor:
    """Return the text as bytes (N,), each a token from 0 to 255."""
    return torch.tensor(list("\n\n".join(docstrings()).encode()), dtype=torch.long)


# ---------------------------------------------------------------- the cases


@dataclass(frozen=True)
class Case:
    """One training of the same network.

    Attributes:
        about: what it is.
        learning_rate: of AdamW, after the warm-up.
        initial_std: standard deviation of the initial weights; 0.02 is GPT-2's.
        warm_up: steps over which the learning rate rises; 0 starts with all of it.
        scale: what a gradient scaler multiplies the loss by at first, for a forward in float16; None for float32.
        clip: largest norm of the gradient; None does not clip.
    """

    about: str
    learning_rate: float = 1e-3
    initial_std: float = 0.02
    warm_up: int = WARM_UP
    scale: float | None = None
    clip: float | None = 1.0


CASES = {
    "sound": Case("GPT-2's own settings"),
    "hundredfold": Case("the learning rate times 100", learning_rate=0.1),
    "wide_init": Case("weights drawn with a standard deviation of 1 in place of 0.02", initial_std=1.0),
    "scaled": Case("float16 under a gradient scaler that starts too high, no warm-up", warm_up=0, scale=2.0**24),
}


def make(initial_std: float = 0.02) -> GPT2LMHeadModel:
    """Four blocks of width 96 over bytes, from a configuration: nothing is downloaded."""
    settings = GPT2Config(
        vocab_size=256, n_positions=LENGTH, n_embd=96, n_layer=4, n_head=4, initializer_range=initial_std,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None, loss_type="ForCausalLM",
    )  # fmt: skip
    return GPT2LMHeadModel(settings)


def train(case: Case, steps: int, run: Path | None, *, seed: int = 0, every: int = 5) -> tuple[list[float], hw.watch]:
    """Train one case; the losses of all steps, and the watch."""
    text = tokens()
    torch.manual_seed(seed)
    model = make(case.initial_std)
    optimizer = torch.optim.AdamW(model.parameters(), lr=case.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / max(1, case.warm_up)))
    scaler = torch.amp.GradScaler("cpu", init_scale=case.scale or 1.0, enabled=case.scale is not None)
    order = torch.Generator().manual_seed(seed)
    losses = []
    with hw.watch(model, optimizer, run, every=every) as watch:
        for _ in range(steps):
            starts = torch.randint(len(text) - LENGTH, (BATCH,), generator=order)
            batch = torch.stack([text[start : start + LENGTH] for start in starts])
            with torch.autocast("cpu", dtype=torch.float16, enabled=case.scale is not None):
                loss = model(batch, labels=batch).loss
            watch.record(loss=loss)
            scaler.scale(loss).backward()
            if case.clip is not None:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), case.clip)
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return losses, watch


def main() -> None:
    """Train the cases named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", nargs="*", default=["sound"], help=f"of {', '.join(CASES)}; or all")
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps  [default: 40]")
    parser.add_argument("--folder", type=Path, help="where the runs are kept; else they are thrown away")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # a network this small is not faster on two
    names = list(CASES) if arguments.case == ["all"] else arguments.case
    unknown = [name for name in names if name not in CASES]
    if unknown:
        parser.error(f"no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            losses, watch = train(CASES[name], arguments.steps, (arguments.folder or Path(scratch)) / name)
            print(f"{name} ({CASES[name].about}): loss {losses[0]:.2f} -> {losses[-1]:.2f}")
            print("\n".join(f"  {line}" for line in watch.summary().splitlines()))


if __name__ == "__main__":
    main()
