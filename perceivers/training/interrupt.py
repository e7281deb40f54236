"""Ctrl-C in a run: one context manager that handles it, and restores the previous handler."""

import logging
import signal
from pathlib import Path
from typing import Any, Self

from lightning.pytorch import Callback, LightningModule, Trainer

log = logging.getLogger(__name__)
STARTING, TRAINING, SAVING = range(3)


class Interrupt(Callback):
    """Stops a run after the current step at the first Ctrl-C, with a checkpoint, and at once at the second.

    As a context manager around `Trainer.fit` it also handles SIGINT while the run starts, when one Ctrl-C stops it at once,
    and while it is saved, when Ctrl-C is ignored.

    Args:
        checkpoint: The file to save to.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint, self.phase, self.requested = checkpoint, STARTING, False

    def __enter__(self) -> Self:
        self.before = signal.signal(signal.SIGINT, self._handle)
        self.phase, self.requested = STARTING, False
        return self

    def __exit__(self, *_: Any) -> None:
        signal.signal(signal.SIGINT, self.before)

    def _handle(self, *_: Any) -> None:
        if self.phase == STARTING or (self.phase == TRAINING and self.requested):
            raise KeyboardInterrupt
        if self.phase == TRAINING:
            self.requested = True
            log.warning("Stopping after this step; press Ctrl-C again to stop now.")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self.phase = TRAINING

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:  # noqa: D102
        if self._agreed(trainer) and not trainer.is_last_batch and not trainer.fit_loop._should_accumulate():
            trainer.save_checkpoint(self.checkpoint)
            raise KeyboardInterrupt

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        if self._agreed(trainer):
            raise KeyboardInterrupt

    def _agreed(self, trainer: Trainer) -> bool:
        """Return whether any process was interrupted: all must stop at the same step."""
        return trainer.strategy.reduce_boolean_decision(self.requested, all=False)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: D102
        self.phase = SAVING
