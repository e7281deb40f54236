"""The progress of a run: a bar to its end and one line per epoch, `metrics.csv`, and curves of it."""

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from perceivers._atomic import replacing


class Progress(ProgressBar):
    """A bar over all steps of the run, with the epoch, the loss and the time left, and after each epoch a line that stays.

    If the output is not a terminal, only the lines are shown.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bar: tqdm | None = None
        self.enabled = True

    def disable(self) -> None:
        """Show nothing; called in all processes but the first."""
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


class History(Callback):
    """Writes `metrics.csv`, one row per epoch; a resumed run replaces rows that it computes again.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add a row."""
        if trainer.sanity_checking or not trainer.is_global_zero or trainer.state.fn != "fit":
            return
        row = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        row |= {name: f"{float(value):.6g}" for name, value in sorted(trainer.callback_metrics.items())}
        rows = [old for old in read_metrics(self.path) if int(old["step"]) < trainer.global_step] + [row]
        with replacing(self.path) as file:
            names = list(dict.fromkeys(name for one in rows for name in one))
            lines = [",".join(names), *(",".join(str(one.get(name, "")) for name in names) for one in rows)]
            file.write(("\n".join(lines) + "\n").encode())


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Return the rows of `metrics.csv`; none if there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def draw_curves(history: Path, figure_file: Path) -> None:
    """Draw the losses and the metric of `metrics.csv` by step."""
    from matplotlib.figure import Figure

    rows = read_metrics(history)
    if not rows:
        return
    metrics = [name for name in rows[0] if name.startswith("val_") and name != "val_loss"]
    panels = [[name for name in ("train_loss", "val_loss") if name in rows[0]], *([metrics] if metrics else [])]
    figure = Figure(figsize=(4.5 * len(panels), 3.4), layout="constrained")
    for axes, names in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name in names:
            points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
            axes.plot(*zip(*points, strict=True), marker=".", label=name)
        axes.set_xlabel("step")
        axes.legend()
        axes.grid(alpha=0.3)
    with replacing(figure_file) as file:
        figure.savefig(file, dpi=120)
