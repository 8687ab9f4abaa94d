"""A tiny GPT-2 in transformers' Trainer, watched by one callback, with ten numbers a step in a TensorBoard file."""

import tempfile
import warnings
from pathlib import Path

import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of parts of torch that transformers imports
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import headwater as hw
from headwater.integrations.tensorboard import TensorBoardSink
from headwater.integrations.transformers import GradientMonitor

torch.manual_seed(0)
text = torch.randint(0, 64, (32, 16))
model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_layer=3, n_head=2))

with tempfile.TemporaryDirectory() as folder:
    monitor = GradientMonitor(Path(folder, "run"), every=2, sinks=[TensorBoardSink(Path(folder, "tensorboard"))])
    settings = TrainingArguments(
        output_dir=folder, max_steps=8, per_device_train_batch_size=8, use_cpu=True, report_to="none",
        save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    data = [{"input_ids": row, "labels": row} for row in text]
    Trainer(model=model, args=settings, train_dataset=data, callbacks=[monitor]).train()

    run = hw.open_run(Path(folder, "run"))
    for row in run.recorded_steps():
        clipped = (
            "" if row.clip_coefficient is None else f", clipped to {row.clip_coefficient:.2f} of the gradient's norm"
        )
        print(f"step {row.step}: loss {row.loss:.3f}{clipped}")
    print(f"alerts: {', '.join(finding.code for finding in run.findings) or 'none'}")
