"""Watch the gradients of a transformers ``Trainer``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import Module

from headwater.integrations.front_end import FrontEnd
from headwater.integrations.optimizers import bare_optimizer
from headwater.integrations.sink import library
from headwater.records.finding import Finding

__all__ = ["STATE_FILE", "GradientMonitor"]

STATE_FILE = "headwater_state.json"
"""Beside the Trainer's own files in a checkpoint folder: what a resumed run needs."""

_TrainerCallback: Any = library("transformers", "transformers", "headwater.integrations.transformers").TrainerCallback


class GradientMonitor(_TrainerCallback):  # type: ignore[misc]  # the base class has no types here
    """A callback for ``Trainer(callbacks=[…])``: rows are the Trainer's optimizer steps.

    The loss is the one the model returns: ``output["loss"]``, or the first of a tuple. A loss that the Trainer
    computes itself (``compute_loss_func``, label smoothing, an overridden ``compute_loss``) is not seen. An alert that
    stops sets ``control.should_training_stop``. The state goes into every checkpoint folder and comes back with
    ``train(resume_from_checkpoint=…)``.

    Args:
        run: folder of the run file; None writes nothing.
        every: record every that many optimizer steps, besides the first ones and the last.
        options: everything else that :func:`headwater.watch` takes.

    Raises:
        HeadwaterError: on import of this module: transformers is not installed.

    Example:
        ``Trainer(model=model, args=args, train_dataset=data, callbacks=[GradientMonitor("runs/a")]).train()``
    """

    def __init__(self, run: str | PathLike[str] | None = None, *, every: int = 10, **options: Any) -> None:
        self._front_end = FrontEnd(run, every, options)
        self._root_hook: Any = None
        self._sums = False  # whether the losses of micro-batches add up to that of the step, as the Trainer sees it

    @property
    def watch(self) -> Any:
        """The latest watch; None before training began."""
        return self._front_end.watch

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the alerts found so far."""
        return self._front_end.findings

    # ---------------------------------------------------------------- the Trainer's events

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to watch: the optimizer exists by now."""
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        saved = Path(args.output_dir, f"checkpoint-{state.global_step}", STATE_FILE)
        if state.global_step and saved.is_file():
            self._front_end.load_state_dict(json.loads(saved.read_text(encoding="utf-8")))
        self._front_end.begin(
            model, bare_optimizer(optimizer), scaler=getattr(optimizer, "scaler", None), stoppable=[optimizer]
        )
        self._unhook()
        if self._front_end.is_on:
            self._root_hook = model.register_forward_hook(self._see_loss, with_kwargs=True)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell the loss of the step that is about to be taken."""
        self._front_end.give_loss(mean=not self._sums)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the Trainer when an alert asked for it."""
        if self._front_end.should_stop:
            control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put the state beside the Trainer's own."""
        folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
        if state.is_world_process_zero and self._front_end.is_on and folder.is_dir():
            folder.joinpath(STATE_FILE).write_text(json.dumps(self._front_end.state_dict()), encoding="utf-8")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let the model go."""
        self.close()

    def close(self) -> None:
        """Let the model go now; for a training that raised (the Trainer tells its callbacks nothing of it)."""
        self._unhook()
        self._front_end.end()

    # ---------------------------------------------------------------- the loss

    def _unhook(self) -> None:
        if self._root_hook is not None:
            self._root_hook.remove()
            self._root_hook = None

    def _see_loss(self, module: Module, inputs: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        """After the model's forward; what has no gradient is an evaluation."""
        loss = output.get("loss") if isinstance(output, Mapping) else output[0] if isinstance(output, tuple) else None
        if isinstance(loss, Tensor) and loss.requires_grad and loss.numel() == 1:
            # Trainer.training_step divides by the number of micro-batches unless the model was told the number of items.
            self._sums = kwargs.get("num_items_in_batch") is not None
            self._front_end.loss.add(loss)
