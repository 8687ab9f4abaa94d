"""A training run that is watched: twelve sigmoid layers on handwritten digits, and which alert says why it does not learn."""

import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import headwater as hw

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)

torch.manual_seed(0)
model = nn.Sequential(*[m for _ in range(12) for m in (nn.Linear(64, 64), nn.Sigmoid())], nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "digits")
    with hw.watch(model, optimizer, run=path, every=5) as watch:
        for step in range(30):
            batch = torch.arange(64) + 64 * (step % 28)
            loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
            watch.record(loss=loss)  # optional: without it the rows have no loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    run = hw.open_run(path)
    print(f"recorded steps: {', '.join(map(str, run.steps))}")
    for name in ("0.weight", "24.weight"):
        (first, at_first), *_, (last, at_last) = run.series(name, "gradient.rms")
        print(f"gradient of {name:>9}: {at_first:.1e} at step {first}, {at_last:.1e} at step {last}")
    for finding in run.findings:
        print(f"step {finding.step}: {finding.code} {finding.defect}: {finding.cause}")
