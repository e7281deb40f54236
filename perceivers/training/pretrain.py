"""Masked self-pretraining through Perceiver IO's decoder: it needs no labels, and any kind of data will do.

A share of the inputs of each sample is left out, by index list, so that reading costs less the more is hidden; a learned query
per input asks for what was left out: pixels, samples or spectra as they are, bytes and categories as classes. As in masked
autoencoders (He et al., 2021), and in the language model of Perceiver IO (section 4.1), but hidden bytes are not inputs.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from perceivers.data import Preprocessing
from perceivers.inputs import InputModule
from perceivers.inputs.ragged import packed
from perceivers.training.datamodule import seed_of
from perceivers.training.module import TrainingModule, suggest
from perceivers.training.optim import OptimizerConfig


class Pretraining(TrainingModule):
    """Pretraining of a `PerceiverIO`, which learns to predict hidden inputs.

    Args:
        network: Arguments of `PerceiverIO`. Defaults are chosen for the data, see `suggest`.
        preprocessing: The description of the data's preprocessing, see `perceivers.data.preprocessing`.
        mask_ratio: Share of the inputs that is hidden. Defaults to 0.75, 0.9 for videos, and 0.3 for bytes and columns.
        betas: Decay of the optimiser's averages of gradients and of their squares.
        seed: Seed of the weights and of what is hidden.
        **optimizer: The other settings of `OptimizerConfig`, except layer_decay.

    Raises:
        ValueError: If an argument is out of range.
    """

    metric_name = "loss"

    def __init__(
        self,
        network: dict[str, Any] | None = None,
        *,
        preprocessing: Mapping[str, Any],
        mask_ratio: float | None = None,
        betas: tuple[float, float] = (0.9, 0.95),
        seed: int = 0,
        **optimizer: Any,
    ) -> None:
        data = Preprocessing.create(preprocessing)
        ratio = data.mask_ratio if mask_ratio is None else mask_ratio
        if ratio is None:
            raise ValueError(f"pretraining on {data.plural} is not supported")
        if not 0 < ratio < 1:
            raise ValueError(f"mask_ratio={mask_ratio!r} must be above 0 and below 1: hide some inputs, but not all")
        settings = OptimizerConfig(betas=betas, layer_decay=1.0, **optimizer)
        arguments = suggest(data, network or {})
        if network is None or "outputs" not in network:
            arguments["outputs"] = query_per_input(data, arguments["inputs"], arguments["dim"])
        super().__init__(data, arguments, settings, seed)
        self.mask_ratio = ratio

    def configure_model(self) -> None:
        """Refuse FSDP2: pretraining calls the parts of the model one by one."""
        if self.device_mesh is not None:
            raise ValueError("trainer.strategy=fsdp2 does not support pretraining: use ddp")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of the hidden inputs."""
        return self.log_train_loss(self.loss(batch, seed_of(self.seed, self.current_epoch, batch_idx, self.global_rank, 1)))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the loss; the same inputs are hidden every time."""
        x = batch[0]
        count = len(next(iter(x.values()))) if isinstance(x, Mapping) else len(x)
        self.log_loss("val", self.loss(batch, seed_of(self.seed, batch_idx)), count)

    def loss(self, batch: Any, seed: int) -> Tensor:
        """Hide inputs of a batch, and compare the model's predictions with them."""
        x, mask, _ = batch
        (group,) = self.network.inputs(x, mask)
        known = self.preprocessing.known(x, group)
        rows, asked, visible = hide(known, self.mask_ratio, seed)
        tokens = [packed(replace(group, mask=visible.unflatten(1, group.content.shape[2:])))]
        predicted = self.network.decode(self.network.encoder(tokens), tokens, indices=rows)  # [B, O, C]
        losses = self.preprocessing.reconstruction_loss(predicted, x, group, known, rows)
        return losses.masked_fill(~asked, 0).sum() / asked.sum().clamp_min(1)


def query_per_input(data: Preprocessing, inputs: Mapping[str, Any], dim: int) -> dict[str, Any]:
    """Return the description of learned queries, one per input of the data, with as many channels as are predicted."""
    (group,) = InputModule.create(inputs)(*data.collate([data.example()]))
    channels = data.target_channels(group.content.shape[1])
    return {"kind": "LearnedQueries", "num_queries": group.num_inputs, "dim": dim, "num_channels": channels}


def hide(known: Tensor, mask_ratio: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Choose which inputs are hidden: a share of what is known of each sample, of which at least one input remains.

    Args:
        known: `[B, M]`, bool.
        mask_ratio: Between 0 and 1.
        seed: The choice is a function of it and of the shape, on any device.

    Returns:
        Indices `[B, O]`, O the most of any sample; whether they are hidden, or only pad the row, `[B, O]`; and which inputs
        remain visible, `[B, M]`.
    """
    draws = torch.rand(known.shape, generator=torch.Generator().manual_seed(seed)).to(known.device)
    present = known.sum(1)
    counts = torch.minimum((present * mask_ratio).round().long().clamp_min(1), (present - 1).clamp_min(0))
    most = max(1, int(counts.max()))
    rows = draws.masked_fill(~known, 2).argsort(1)[:, :most]
    asked = torch.arange(most, device=known.device) < counts.unsqueeze(1)
    hidden = torch.zeros_like(known).scatter(1, rows, asked)
    return rows, asked, known & ~hidden
