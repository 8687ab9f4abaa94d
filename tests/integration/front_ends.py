"""One small training, told to five front ends: same model, data, order, optimizer, so the same steps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH, EPOCHS, SAMPLES = 8, 2, 48  # 12 batches in all
LEARNING_RATE = 0.05


class Layers:
    """The layers, for a module of whichever class: the same names everywhere."""

    def build(self) -> None:
        torch.manual_seed(1)
        self.first = nn.Linear(6, 16)
        self.squash = nn.Tanh()
        self.second = nn.Linear(16, 16)
        self.rectify = nn.ReLU()
        self.last = nn.Linear(16, 3)

    def logits(self, x: Tensor) -> Tensor:
        return self.last(self.rectify(self.second(self.squash(self.first(x)))))


class Net(nn.Module, Layers):
    """Logits for a tensor; with labels a loss as well, as transformers' models do it."""

    def __init__(self) -> None:
        super().__init__()
        self.build()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.logits(x)
        return logits if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


def samples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(SAMPLES, 6, generator=generator), torch.randint(0, 3, (SAMPLES,), generator=generator)


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    for _ in range(EPOCHS):
        yield from zip(*(part.split(BATCH) for part in samples()), strict=True)


def loader() -> torch.utils.data.DataLoader[tuple[Tensor, ...]]:
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*samples()), batch_size=BATCH)


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)


# ---------------------------------------------------------------- the five loops; each returns the trained model


def raw(watching: Any, *, accumulate: int = 1, clip: float | None = None) -> nn.Module:
    """``watching(model, optimizer)`` gives a context manager with ``record``."""
    model = Net()
    optimizer = make_optimizer(model)
    with watching(model, optimizer) as watch:
        total = 0.0
        for count, (x, y) in enumerate(batches(), start=1):
            loss = F.cross_entropy(model(x), y) / accumulate
            loss.backward()
            total += loss.item()
            if count % accumulate == 0:
                if clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                if watch is not None:
                    watch.record(loss=total)
                optimizer.step()
                optimizer.zero_grad()
                total = 0.0
    return model


def transformers_trainer(callbacks: list[Any], folder: Path, **options: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    model = Net()
    optimizer = make_optimizer(model)
    settings: dict[str, Any] = {
        "per_device_train_batch_size": BATCH, "num_train_epochs": EPOCHS, "use_cpu": True, "max_grad_norm": 0.0,
        "report_to": "none", "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True,
        "train_sampling_strategy": "sequential", "dataloader_pin_memory": False, **options,
    }  # fmt: skip
    x, y = samples()
    return Trainer(
        model=model,
        args=TrainingArguments(output_dir=str(folder), **settings),
        train_dataset=[{"x": row, "labels": label} for row, label in zip(x, y, strict=True)],  # type: ignore[arg-type]
        callbacks=callbacks,
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)),
    )


def with_transformers(callbacks: list[Any], folder: Path, *, accumulate: int = 1, clip: float | None = None) -> Any:
    """Returns the trainer."""
    trainer = transformers_trainer(callbacks, folder, gradient_accumulation_steps=accumulate, max_grad_norm=clip or 0.0)
    trainer.train()
    return trainer


def with_accelerate(watching: Any, *, accumulate: int = 1, clip: float | None = None) -> nn.Module:
    """``watching(accelerator, model, optimizer)`` gives a context manager; nothing else is told to it."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    model = Net()
    wrapped, optimizer, data = accelerator.prepare(model, make_optimizer(model), loader())
    with watching(accelerator, wrapped, optimizer):
        for _ in range(EPOCHS):
            for x, y in data:
                with accelerator.accumulate(wrapped):
                    accelerator.backward(F.cross_entropy(wrapped(x), y))
                    if clip is not None and accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(wrapped.parameters(), clip)
                    optimizer.step()
                    optimizer.zero_grad()
    return model


def lightning_module() -> Any:
    import lightning.pytorch as pl

    class LightningNet(pl.LightningModule, Layers):
        def __init__(self) -> None:
            super().__init__()
            self.build()

        def training_step(self, batch: tuple[Tensor, Tensor], _index: int) -> Tensor:
            return F.cross_entropy(self.logits(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return make_optimizer(self)

    return LightningNet()


def lightning_trainer(callbacks: list[Any], folder: Path, **options: Any) -> Any:
    import lightning.pytorch as pl

    settings = {
        "max_epochs": EPOCHS, "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder, **options,
    }  # fmt: skip
    return pl.Trainer(callbacks=callbacks, **settings)


def with_lightning(
    callbacks: list[Any], folder: Path, *, accumulate: int = 1, clip: float | None = None, **options: Any
) -> Any:
    """Returns the module."""
    module = lightning_module()
    trainer = lightning_trainer(
        callbacks, folder, accumulate_grad_batches=accumulate, gradient_clip_val=clip, **options
    )
    trainer.fit(module, loader())
    return module


def with_ignite(attach: Any, *, accumulate: int = 1, clip: float | None = None) -> nn.Module:
    """``attach(engine, model, optimizer)`` is called before the engine runs."""
    from ignite.engine import Engine

    model = Net()
    optimizer = make_optimizer(model)

    def update(engine: Engine, batch: tuple[Tensor, Tensor]) -> float:
        loss = F.cross_entropy(model(batch[0]), batch[1]) / accumulate
        loss.backward()
        if engine.state.iteration % accumulate == 0:
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
        return loss.item() * accumulate

    engine = Engine(update)
    attach(engine, model, optimizer)
    engine.run(loader(), max_epochs=EPOCHS)
    return model


@contextlib.contextmanager
def nothing(*_: Any) -> Iterator[None]:
    """In place of watching."""
    yield None
