"""Checkpoints of a run, which a crash at any moment leaves whole."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from perceivers._atomic import replacing


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints, each of which replaces the previous one only once it is complete and on the disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint."""
        with replacing(path) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint; no code in it is run.

        Raises:
            ValueError: If it is missing or damaged.
        """
        try:
            return torch.load(path, map_location=map_location, weights_only=True)
        except FileNotFoundError as error:
            raise ValueError(f"{path}: there is no checkpoint to resume from: start with perceivers fit PATH") from error
        except Exception as error:  # of many kinds, by what is damaged
            raise ValueError(f"{path} is damaged or not a checkpoint: {error}") from error


class BestCheckpoint(ModelCheckpoint):
    """Saves the best model so far, which it also finds after the folder of the run was moved."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # noqa: D102
        moved = lambda path: str(Path(self.dirpath or "") / Path(path).name) if path else path  # noqa: E731
        paths = {name: moved(state_dict[name]) for name in ("best_model_path", "kth_best_model_path", "last_model_path")}
        best = {moved(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, "dirpath": self.dirpath, **paths, "best_k_models": best})


class StepCheckpoint(ModelCheckpoint):
    """Saves every few steps, except at the last step of an epoch, after which the validation must not be missed.

    Nor does it save while gradients accumulate, because checkpoints do not hold them.
    """

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:  # noqa: D102
        if not trainer.is_last_batch and not trainer.fit_loop._should_accumulate():
            super().on_train_batch_end(trainer, *args, **kwargs)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        pass

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        pass
