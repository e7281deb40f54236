"""Checkpoints of a run that a crash at any moment leaves whole."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from perceivers._atomic import replacing


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints, each of which replaces the one before only when it is whole and on the disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes a checkpoint."""
        with replacing(path) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """Reads a checkpoint; nothing in it is run.

        Raises:
            ValueError: If it is missing or damaged.
        """
        try:
            return torch.load(path, map_location=map_location, weights_only=True)
        except FileNotFoundError as error:
            raise ValueError(f"{path}: there is no checkpoint to go on from: begin with perceivers fit PATH") from error
        except Exception as error:  # of many kinds, by what is damaged
            raise ValueError(f"{path} is damaged or no checkpoint: {error}") from error
