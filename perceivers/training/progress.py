"""What a run shows while it trains: one bar to the end of the run, and a line an epoch."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm


class Progress(ProgressBar):
    """A bar over all steps of the run, with the epoch, the loss and the time left; and after each epoch a line that stays.

    Where the output is no terminal there are only the lines.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bar: tqdm | None = None
        self.enabled = True

    def disable(self) -> None:
        """Shows nothing: called in all processes but the first."""
        self.enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        if not self.enabled:
            return
        self.batches = int(trainer.num_training_batches)
        epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
        total = None if epochs is None else epochs * self.batches
        if trainer.max_steps > 0:  # of the optimiser
            most = trainer.max_steps * trainer.accumulate_grad_batches
            total = most if total is None else min(total, most)
        self.epochs = "" if epochs is None else f"/{epochs}"
        done = trainer.fit_loop.epoch_loop.batch_progress.total.completed
        self.bar = tqdm(total=total, initial=done, unit="step", disable=None, dynamic_ncols=True, leave=False)

    def on_train_batch_end(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.bar is None:
            return
        self.bar.set_description_str(f"epoch {trainer.current_epoch + 1}{self.epochs}", refresh=False)
        self.bar.set_postfix_str(_words(trainer.progress_bar_metrics), refresh=False)
        self.bar.update(trainer.current_epoch * self.batches + batch_idx + 1 - self.bar.n)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        if self.bar is not None and not trainer.sanity_checking:
            place = f"epoch {trainer.current_epoch + 1}{self.epochs}  step {trainer.global_step}"
            tqdm.write(f"{place}  {_words(trainer.callback_metrics)}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: D102
        self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def _words(metrics: Any) -> str:
    order = sorted(metrics, key=lambda name: (not name.startswith("train"), not name.endswith("loss"), name))
    return "  ".join(f"{name} {float(metrics[name]):.4g}" for name in order if name != "v_num")
