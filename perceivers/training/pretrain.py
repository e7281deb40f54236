"""Masked self-pretraining through Perceiver IO's decoder: no labels are needed, and any kind of data will do.

A share of the inputs of each sample is left out, by index list, so that the cost of reading falls with it; a learned query for
each place asks for what was left out: pixels, samples or spectra as they are, bytes and categories as classes. As in masked
autoencoders (He et al., 2021) and in the language model of Perceiver IO (section 4.1), but that hidden bytes are no inputs.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from perceivers._checks import a_probability
from perceivers.data.preprocessing import Table, Text, collate
from perceivers.inputs import ByteTokenizer, InputModule
from perceivers.inputs.ragged import packed
from perceivers.ops.tokens import Tokens
from perceivers.perceiver_io import PerceiverIO
from perceivers.training.datamodule import seed_of
from perceivers.training.module import Trained, suggest

# Shares that others found good: of patches in masked autoencoders of pictures, and of videos (Tong et al., 2022); of bytes
# more than BERT's 0.15, as nothing stands for them.
HIDDEN = {"Images": 0.75, "Videos": 0.9, "Audio": 0.75, "Arrays": 0.75, "Text": 0.3, "Table": 0.3}


class Pretraining(Trained):
    """A `PerceiverIO` that learns to say what was hidden.

    Args:
        network: Arguments of `PerceiverIO`; what is not given is chosen for the data, see `suggest`.
        preprocessing: The description of the data, see `perceivers.data.preprocessing`.
        hidden: Share of the inputs that is left out; `None` for 0.75, 0.9 of video, or 0.3 of bytes and columns.
        optimizer: See `Training`, and so for all that follow.
        lr: Highest learning rate.
        betas: Decay of the optimiser's averages.
        weight_decay: Of matrices.
        schedule: See `learning_rate_factor`.
        warm_up: Share of the steps in which the learning rate rises.
        seed: Seed of the weights and of what is hidden.

    Raises:
        ValueError: If an argument is out of range.
    """

    metric_name = "loss"

    def __init__(
        self,
        network: dict[str, Any] | None = None,
        *,
        preprocessing: dict[str, Any] | None = None,
        hidden: float | None = None,
        optimizer: str = "adamw",
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.05,
        schedule: str = "cosine",
        warm_up: float = 0.05,
        seed: int = 0,
    ) -> None:
        super().__init__(preprocessing, optimizer, lr, betas, weight_decay, schedule, warm_up, seed)
        self.kind = type(self.preprocessing).__name__
        self.hidden = a_probability("hidden", HIDDEN[self.kind] if hidden is None else hidden)
        if self.hidden in (0, 1):
            raise ValueError(f"hidden={hidden!r} must lie between 0 and 1: something is to be seen, and something to be said")
        arguments = suggest(self.preprocessing, network or {})
        self.categories = [len(names) for names in getattr(self.preprocessing, "categorical", {}).values()]
        if network is None or "outputs" not in network:
            arguments["outputs"] = self._outputs(arguments["inputs"], arguments["dim"])
        self.set_network(PerceiverIO(**arguments))

    def _outputs(self, inputs: Mapping[str, Any], dim: int) -> dict[str, Any]:
        """Describes a learned query for each input, wide enough for what is asked."""
        (group,) = InputModule.create(inputs)(*collate([self.preprocessing.example()]))
        match self.preprocessing:
            case Text():
                channels = ByteTokenizer.vocab_size
            case Table():
                channels = max(1, *self.categories, 1)
            case _:
                channels = group.content.shape[1]
        return {"kind": "LearnedQueries", "num_queries": group.num_inputs, "dim": dim, "num_channels": channels}

    def configure_model(self) -> None:
        """Says that FSDP2 is not for pretraining, which calls the parts of the model one by one."""
        if self.device_mesh is not None:
            raise ValueError("trainer.strategy=fsdp2 is for fitting: pretrain with ddp")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Returns the loss of what was hidden."""
        seed = seed_of(self.seed, self.current_epoch, batch_idx, self.global_rank, 1)
        return self.checked(self.loss(batch, seed))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Logs the loss; what is hidden is the same every time."""
        self.log_loss("val", self.loss(batch, seed_of(self.seed, batch_idx)), _size(batch[0]))

    def loss(self, batch: Any, seed: int) -> Tensor:
        """Hides inputs of a batch, and compares what the model says of them with what they are."""
        x, mask, _ = batch
        (group,) = self.network.inputs(x, mask)
        known = group.content.new_ones(len(group.content), group.num_inputs, dtype=torch.bool)
        known = known if group.mask is None else group.mask.flatten(1)
        if isinstance(self.preprocessing, Table):  # what is missing can neither be seen nor asked for
            known = torch.cat([_present(x[name]) for name in ("numeric", "categorical") if name in x], dim=1)
        rows, asked, visible = hide(known, self.hidden, seed)
        tokens = [packed(replace(group, mask=visible.unflatten(1, group.content.shape[2:])))]
        said = self.network.decode(self.network.encoder(tokens), tokens, indices=rows)  # [B, O, C]
        losses = self._compare(said, x, group, known, rows)
        return losses.masked_fill(~asked, 0).sum() / asked.sum().clamp_min(1)

    def _compare(self, said: Tensor, x: Any, group: Tokens, known: Tensor, rows: Tensor) -> Tensor:
        """The loss of each place that was asked for, `[B, O]`."""
        match self.preprocessing:
            case Text():
                return F.cross_entropy(said.mT, x.gather(1, rows), reduction="none")
            case Table():
                return self._compare_columns(said, x, rows)
            case _:
                content = group.content.flatten(2).detach()  # [B, U, M]
                seen = known.unsqueeze(1).expand_as(content)
                count = seen.sum((1, 2), keepdim=True)
                content = content.masked_fill(~seen, 0)
                mean = content.sum((1, 2), keepdim=True) / count
                variance = (content - mean).square().masked_fill(~seen, 0).sum((1, 2), keepdim=True) / count
                wanted = ((content - mean) / (variance + 1e-6).sqrt()).mT  # each sample in its own units
                wanted = wanted.gather(1, rows.unsqueeze(-1).expand(-1, -1, wanted.shape[-1]))
                return (said - wanted).square().mean(-1)

    def _compare_columns(self, said: Tensor, x: Mapping[str, Tensor], rows: Tensor) -> Tensor:
        numeric = x["numeric"].shape[1] if "numeric" in x else 0
        losses = torch.zeros_like(said[..., 0])
        if numeric:
            wanted = x["numeric"].nan_to_num().gather(1, rows.clamp_max(numeric - 1))
            losses = (said[..., 0] - wanted).square()
        if self.categories:
            columns = (rows - numeric).clamp_min(0)
            counts = torch.tensor(self.categories, device=said.device)[columns]
            logits = said.masked_fill(torch.arange(said.shape[-1], device=said.device) >= counts.unsqueeze(-1), -1e4)
            wanted = x["categorical"].clamp_min(0).gather(1, columns)
            losses = torch.where(rows < numeric, losses, F.cross_entropy(logits.mT, wanted, reduction="none"))
        return losses


def hide(known: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Chooses what is hidden: of each sample a share of what is known, of which at least one remains.

    Args:
        known: `[B, M]`, bool.
        share: Between 0 and 1.
        seed: The choice is a function of it and of the shape, whatever the device.

    Returns:
        Places `[B, O]`, O the most of any sample; whether they are hidden, or only fill the row, `[B, O]`; and what remains
        visible, `[B, M]`.
    """
    draws = torch.rand(known.shape, generator=torch.Generator().manual_seed(seed)).to(known.device)
    present = known.sum(1)
    counts = torch.minimum((present * share).round().long().clamp_min(1), (present - 1).clamp_min(0))
    most = max(1, int(counts.max()))
    rows = draws.masked_fill(~known, 2).argsort(1)[:, :most]
    asked = torch.arange(most, device=known.device) < counts.unsqueeze(1)
    hidden = torch.zeros_like(known).scatter(1, rows, asked)
    return rows, asked, known & ~hidden


def _present(column: Tensor) -> Tensor:
    return ~column.isnan() if column.is_floating_point() else column != -1


def _size(x: Any) -> int:
    return len(next(iter(x.values()))) if isinstance(x, Mapping) else len(x)
