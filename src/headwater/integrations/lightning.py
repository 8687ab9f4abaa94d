"""Watch the gradients of a Lightning ``Trainer``."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from os import PathLike
from typing import Any

from torch import Tensor

from headwater.capture.training.loss_scale import current_scale
from headwater.integrations.front_end import FrontEnd
from headwater.integrations.optimizers import bare_optimizer, pairs
from headwater.integrations.sink import library
from headwater.records.finding import Finding

__all__ = ["GradientMonitor"]

# The same code under two names: `lightning`, and `pytorch-lightning` alone.
_NAME = "lightning.pytorch" if importlib.util.find_spec("lightning") else "pytorch_lightning"
_Callback: Any = library(_NAME, "lightning", "headwater.integrations.lightning").Callback


class GradientMonitor(_Callback):  # type: ignore[misc]  # the base class has no types here
    """A callback for ``Trainer(callbacks=[…])``: rows are the optimizer's steps, in automatic and manual optimization.

    The loss is what Lightning differentiates (``accumulate_grad_batches`` taken into account), without the loss scale.
    With several optimizers each is a group of its own, named for the smallest module that holds what it trains
    (``generator``, ``discriminator``). An alert that stops sets ``trainer.should_stop``. The state goes into
    Lightning's checkpoints.

    Args:
        run: folder of the run file; None writes nothing.
        every: record every that many optimizer steps, besides the first ones and the last.
        options: everything else that :func:`headwater.watch` takes.

    Raises:
        HeadwaterError: on import of this module: Lightning is not installed.

    Example:
        ``Trainer(callbacks=[GradientMonitor("runs/a")]).fit(module, loader)``
    """

    def __init__(self, run: str | PathLike[str] | None = None, *, every: int = 10, **options: Any) -> None:
        super().__init__()
        self._front_end = FrontEnd(run, every, options)
        self._groups: dict[int, str] = {}

    @property
    def watch(self) -> Any:
        """The latest watch; None before training began."""
        return self._front_end.watch

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the alerts found so far."""
        return self._front_end.findings

    # ---------------------------------------------------------------- Lightning's hooks

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to watch: optimizers exist and checkpoints are restored by now."""
        optimizers = [bare_optimizer(optimizer) for optimizer in trainer.optimizers]
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if len(optimizers) > 1:
            grouped = pairs(pl_module, optimizers)
            self._groups = {id(optimizer): name for name, (_, optimizer) in grouped.items()}
            self._front_end.begin(grouped, scaler=scaler, stoppable=optimizers)
        elif optimizers:
            self._front_end.begin(pl_module, optimizers[0], scaler=scaler, stoppable=optimizers)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """See the loss of a (micro-)batch."""
        if self._front_end.is_on:
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            scale = 1.0 if scaler is None else current_scale(scaler)
            self._front_end.loss.add(loss.detach() / scale if scaler is not None else loss)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Tell the loss of the step that is about to be taken."""
        self._front_end.give_loss(group=self._groups.get(id(bare_optimizer(optimizer))))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop the Trainer when an alert asked for it."""
        if self._front_end.should_stop:
            trainer.should_stop = True

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Let the model go."""
        self._front_end.end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Let the model go after an error as well."""
        self._front_end.end()

    def state_dict(self) -> dict[str, Any]:
        """For Lightning's checkpoint."""
        return self._front_end.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """From Lightning's checkpoint."""
        self._front_end.load_state_dict(state_dict)
