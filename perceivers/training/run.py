"""A run in a folder, on Lightning's Trainer: training that can be stopped and resumed, and evaluation.

The folder holds `run.yaml` (the options, written by the command line), `last.ckpt` and `best.ckpt` (to resume from, and the
best so far), `metrics.csv`, `curves.png`, `tensorboard/`, and the model in this library's format with `preprocessing.json`.
"""

import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy

from perceivers._atomic import replacing, sweep
from perceivers.perceiver_io import PerceiverIO
from perceivers.training.checkpoint import AtomicCheckpointIO, BestCheckpoint, StepCheckpoint
from perceivers.training.datamodule import PathData
from perceivers.training.interrupt import Interrupt
from perceivers.training.module import TrainingModule
from perceivers.training.progress import History, Progress, draw_curves, read_metrics

LAST, BEST, HISTORY = "last.ckpt", "best.ckpt", "metrics.csv"
STEPS, FEWEST_EPOCHS, MOST_EPOCHS = 2000, 10, 200  # how long a run trains by default
EXPECTED = (  # warnings about what is intended here, or about Lightning's own future
    "Checkpoint directory",
    ".*does not have many workers",
    ".*isinstance.treespec, LeafSpec",
    "The number of tra",
    "FSDP2-wrapped",
    "You're using the WeightAveraging",
    "The dirpath has changed",
    ".*could not find the monitored",
)


class Run:
    """A run in a folder.

    Only the first of several processes writes to the folder, so only its folder matters.

    Args:
        folder: The folder.
        module: The model with its loss and optimiser.
        data: The data.
        every: Steps between checkpoints.
        ema: Decay of an exponential moving average of the weights, such as 0.999. Defaults to none.
        trainer: Arguments of Lightning's `Trainer`; `None` is the default, which for `max_epochs` depends on the data.

    Raises:
        ValueError: If options exclude each other.
        MisconfigurationException: If arguments of the trainer do.
    """

    def __init__(
        self,
        folder: Path,
        module: TrainingModule,
        data: PathData,
        *,
        every: int = 200,
        ema: float | None = None,
        trainer: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.module, self.data = folder, module, data
        self.interrupt = Interrupt(folder / LAST)
        given = {name: value for name, value in (trainer or {}).items() if value is not None}
        batches = len(data.train_dataloader())
        if "max_epochs" not in given and given.get("max_steps", -1) == -1 and "max_time" not in given:
            given["max_epochs"] = min(MOST_EPOCHS, max(FEWEST_EPOCHS, math.ceil(STEPS / batches)))
        if given.get("strategy") == "fsdp2":
            if ema:
                raise ValueError(f"ema={ema} averages whole weights, which fsdp2 shards: leave one of them out")
            given["strategy"] = ModelParallelStrategy(_num_processes(given), 1, save_distributed_checkpoint=False)
        defaults = {
            "logger": TensorBoardLogger(folder, name="tensorboard", version=""),
            "gradient_clip_val": 1.0,
            "default_root_dir": folder,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": min(20, batches),
        }
        ours = {
            "use_distributed_sampler": False,  # each process takes its own share
            "plugins": [*_as_list(given.get("plugins")), AtomicCheckpointIO()],
            "callbacks": [
                *_as_list(given.get("callbacks")),
                *self._callbacks(min(every, max(1, batches - 1)), ema, given.get("enable_progress_bar") is not False),
            ],
        }
        with quiet():
            self.trainer = Trainer(**{**defaults, **given, **ours})

    def _callbacks(self, every: int, ema: float | None, bar: bool) -> list[Any]:
        metric = self.module.metric_name
        best: dict[str, Any] = {"monitor": f"val_{metric}", "mode": "min" if metric in ("mae", "loss") else "max"}
        common: dict[str, Any] = {
            "dirpath": self.folder,
            "enable_version_counter": False,
            "auto_insert_metric_name": False,
        }
        last: dict[str, Any] = {**common, "filename": LAST.removesuffix(".ckpt")}
        return [
            History(self.folder / HISTORY),
            *([EMAWeightAveraging(decay=ema)] if ema else []),
            *([Progress()] if bar else []),
            self.interrupt,
            BestCheckpoint(**common, filename=BEST.removesuffix(".ckpt"), **best),
            StepCheckpoint(**last, every_n_train_steps=every),
            ModelCheckpoint(**last, every_n_epochs=1, save_on_train_epoch_end=True),
        ]

    @property
    def saved(self) -> bool:
        """Whether the folder holds a checkpoint."""
        return (self.folder / LAST).exists()

    def fit(self, *, resume: bool = False) -> bool:
        """Train to the end, or until Ctrl-C, then save the best model, the curves and a model card.

        Args:
            resume: Whether to start from the last checkpoint.

        Returns:
            Whether the run came to its end.

        Raises:
            FloatingPointError: If the loss is NaN or infinite.
            OSError: If the disk is full.
            ValueError: If a record cannot be read, or the checkpoint is damaged.
        """
        checkpoint = str(self.folder / LAST) if resume else None
        if self.trainer.is_global_zero:
            sweep(self.folder)
        with quiet(), self.interrupt:
            try:
                self.trainer.fit(self.module, self.data, ckpt_path=checkpoint, weights_only=True)
                finished = True
            except (KeyboardInterrupt, SystemExit):  # Lightning exits after a KeyboardInterrupt
                finished = False
            if self.trainer.is_global_zero and self.saved:
                draw_curves(self.folder / HISTORY, self.folder / "curves.png")
                self.export()
                self.write_card()
        return finished

    def evaluate(self, stage: Literal["validate", "test"]) -> dict[str, float]:
        """Return the metrics of the saved model on the samples to validate or to test."""
        self.module.network.load_state_dict(PerceiverIO.from_pretrained(self.folder).state_dict())
        with quiet():
            run = self.trainer.validate if stage == "validate" else self.trainer.test
            (found,) = run(self.module, self.data, verbose=False)
        return dict(found)

    def export(self) -> None:
        """Save the model with the best weights so far, or the last if none was validated yet, in this library's format."""
        best = self.folder / BEST
        checkpoint = AtomicCheckpointIO().load_checkpoint(best if best.exists() else self.folder / LAST)
        prefix = "network."
        state = {name.removeprefix(prefix): x for name, x in checkpoint["state_dict"].items() if name.startswith(prefix)}
        network = PerceiverIO(**self.module.network.config)  # a new one: the weights of the run may be sharded
        network.load_state_dict(state)
        network.preprocessing = self.module.preprocessing.describe()
        network.save_pretrained(self.folder)

    def best_metric(self) -> tuple[str, float] | None:
        """Return the name and the best value of the metric so far."""
        rows, name = read_metrics(self.folder / HISTORY), f"val_{self.module.metric_name}"
        values = [float(row[name]) for row in rows if row.get(name)]
        return (name, (min if name in ("val_mae", "val_loss") else max)(values)) if values else None

    def write_card(self) -> None:
        """Write `README.md`, which says what the model is to those who receive the folder."""
        preprocessing, rows = self.module.preprocessing, self.data.rows
        size = sum(parameter.numel() for parameter in self.module.network.parameters())
        labels, best = ", ".join(preprocessing.labels[:50]), self.best_metric()
        lines = [
            "---",
            "library_name: perceivers",
            "tags:",
            "- perceiver",
            "---",
            "",
            f"A Perceiver IO of {size:,} parameters for {preprocessing.plural},"
            f" {preprocessing.task.replace('_', ' ')}{f' ({labels})' if labels else ''}.",
            f"Trained on {len(rows['train']):,} samples, validated on {len(rows['validation']):,}"
            f"{f', {best[0]} {best[1]:.4g}' if best else ''}.",
            "",
            "```bash",
            "pip install 'perceivers[train]'",
            "perceivers predict FOLDER FILES..." if labels else "perceivers fit PATH --from FOLDER",
            "```",
        ]
        with replacing(self.folder / "README.md") as file:
            file.write(("\n".join(lines) + "\n").encode())


@contextmanager
def quiet() -> Iterator[None]:
    """Turn off, within a block, what Lightning says about itself, about absent devices, and about what is intended here."""
    names = ("utilities.rank_zero", "trainer.connectors.checkpoint_connector")
    loggers = [logging.getLogger(f"lightning.pytorch.{name}") for name in names]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message in EXPECTED:
            warnings.filterwarnings("ignore", message=message)
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _num_processes(trainer: Mapping[str, Any]) -> int:
    """Return how many processes the arguments of a trainer ask for."""
    devices = {name: trainer[name] for name in ("accelerator", "devices") if name in trainer}
    probe = Trainer(**devices, logger=False, enable_checkpointing=False)
    return probe.num_devices * trainer.get("num_nodes", 1)
