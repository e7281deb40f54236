"""What is trained: a model with its loss, optimiser, schedule and metric, as a `LightningModule`."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MultilabelF1Score
from torchmetrics.regression import MeanAbsoluteError

from perceivers import losses
from perceivers.data import Preprocessing
from perceivers.perceiver_io import PerceiverIO
from perceivers.training.augment import Augmentation
from perceivers.training.datamodule import seed_of
from perceivers.training.optim import OptimizerConfig

# Arguments that are not taken over from a pretrained model: those of the decoder.
NEW = ("outputs", *(f"decoder_{name}" for name in ("heads", "qk_channels", "v_channels", "query_residual", "ff_dim")))


class TrainingModule(LightningModule):
    """What fitting and pretraining share: optimiser, schedule, and steps whose random draws are functions of their number.

    Everything random in a step is drawn from generators seeded by the run's seed, the epoch, the batch and the process, so
    that a resumed run draws what an uninterrupted one draws.

    Args:
        preprocessing: The preprocessing of the data.
        network: The arguments of the model.
        optimizer: Settings of the optimiser and its schedule.
        seed: Seed of the weights and of everything random in a step.
    """

    metric_name: str

    def __init__(
        self, preprocessing: Preprocessing, network: Mapping[str, Any], optimizer: OptimizerConfig, seed: int
    ) -> None:
        super().__init__()
        self.preprocessing, self.optimizer_config, self.seed = preprocessing, optimizer, seed
        self.mean_loss = MeanMetric()  # over samples, whatever the sizes of batches and of the shares of processes
        self.losses = (0.0, 0)  # sum and number over the steps of this epoch
        torch.manual_seed(seed_of(seed))
        self.network = PerceiverIO(**network)

    def configure_model(self) -> None:
        """Shard the weights over processes (FSDP2) if the strategy does so; called by Lightning."""
        if self.device_mesh is None:
            return
        from torch.distributed.fsdp import fully_shard

        mesh, encoder = self.device_mesh["data_parallel"], self.network.encoder
        for block in (*encoder.cross_attentions, *(layer for stack in encoder.latent_transformers for layer in stack)):  # pyright: ignore[reportGeneralTypeIssues]
            fully_shard(block, mesh=mesh)
        fully_shard(self.network, mesh=mesh)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed what is random in this step."""
        if batch_idx == 0:
            self.losses = (0.0, 0)
        torch.manual_seed(seed_of(self.seed, self.current_epoch, batch_idx, self.global_rank))

    def log_train_loss(self, loss: Tensor) -> Tensor:
        """Log the mean loss of the epoch so far; return the loss of this batch.

        Raises:
            FloatingPointError: If it is NaN or infinite.
        """
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss is {value} at step {self.global_step}: lower --model.lr, or look for NaN and infinite values in the"
                " data; the last checkpoint is kept"
            )
        self.losses = (self.losses[0] + value, self.losses[1] + 1)
        self.log("train_loss", self.losses[0] / self.losses[1], prog_bar=True, sync_dist=True)
        return loss

    def log_loss(self, stage: str, loss: Tensor, count: int) -> None:
        """Log the mean loss of `count` samples that are not trained on."""
        self.mean_loss(loss, count)
        self.log(f"{stage}_loss", self.mean_loss, prog_bar=True, batch_size=count)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the preprocessing, and the mean loss of the epoch so far."""
        checkpoint["preprocessing"], checkpoint["losses"] = self.preprocessing.describe(), self.losses

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the mean loss of the epoch so far."""
        self.losses = checkpoint["losses"]

    def configure_optimizers(self) -> Any:
        """Return the optimiser and its schedule, see `OptimizerConfig`."""
        return self.optimizer_config.make(self.network, int(self.trainer.estimated_stepping_batches))


class Training(TrainingModule):
    """Training of a `PerceiverIO`.

    Args:
        network: Arguments of `PerceiverIO`, also one by one, such as --model.network.dim 64. Defaults are chosen for the data,
            see `suggest`.
        preprocessing: The description of the data's preprocessing, see `perceivers.data.preprocessing`.
        init_from: Folder of a pretrained model whose inputs and encoder to start from, see `Pretraining`.
        label_smoothing: Share of the probability that is spread evenly over all classes.
        augment: Augmentation of images and videos: "none", or several of "light" (small rotations, translations and scalings),
            "flip", "crop" and "randaugment" joined by "+", such as crop+flip+randaugment.
        time_masks: Spans of at most a tenth of an audio clip that are masked.
        mixup: Parameter of the Beta distribution of mixup; 0 turns it off.
        cutmix: Parameter of the Beta distribution of cutmix; 0 turns it off.
        compile: Whether to run the model through `torch.compile`.
        grad_checkpointing: Whether to trade time for memory, see `PerceiverIO.set_grad_checkpointing`.
        seed: Seed of the weights and of everything random in a step.
        **optimizer: Settings of `OptimizerConfig`.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        network: dict[str, Any] | None = None,
        *,
        preprocessing: Mapping[str, Any],
        init_from: str | None = None,
        label_smoothing: float = 0.1,
        augment: str = "light",
        time_masks: int = 2,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        compile: bool = False,
        grad_checkpointing: bool = False,
        seed: int = 0,
        **optimizer: Any,
    ) -> None:
        data, settings = Preprocessing.create(preprocessing), OptimizerConfig(**optimizer)
        num_classes = len(data.labels) if data.task == "classification" else 0
        augmentation = Augmentation(
            type(data), num_classes=num_classes, augment=augment, time_masks=time_masks, mixup=mixup, cutmix=cutmix
        )
        pretrained = None if init_from is None else PerceiverIO.from_pretrained(init_from)
        given = {} if pretrained is None else {key: value for key, value in pretrained.config.items() if key not in NEW}
        super().__init__(data, suggest(data, {**given, **(network or {})}), settings, seed)
        self.augmentation = augmentation
        if pretrained is not None:
            self.network.inputs.load_state_dict(pretrained.inputs.state_dict())
            self.network.encoder.load_state_dict(pretrained.encoder.state_dict())
        self.network.set_grad_checkpointing(grad_checkpointing)
        if compile:
            self.network.compile()
        self.label_smoothing = label_smoothing
        self.metric_name, self.metric = {
            "classification": lambda: ("accuracy", MulticlassAccuracy(num_classes, average="micro")),
            "multi_label": lambda: ("f1", MultilabelF1Score(len(data.labels))),
            "regression": lambda: ("mae", MeanAbsoluteError()),
        }[data.task]()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        x, mask, targets = self.augmentation(*batch)
        return self.log_train_loss(self.loss(self.network(x, mask), targets, self.label_smoothing))

    def loss(self, outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Return the cross-entropy, the binary cross-entropy of labels, or the squared error, by the task."""
        match self.preprocessing.task:
            case "classification":
                return losses.classification(outputs, targets, label_smoothing=label_smoothing)
            case "multi_label":
                return losses.multi_label(outputs, targets)
            case _:
                return F.mse_loss(outputs, targets)

    def evaluation_step(self, batch: Any, stage: str) -> None:
        """Log loss and metric of a batch that is not trained on."""
        x, mask, targets = batch
        outputs = self.network(x, mask)
        count = len(targets)
        self.log_loss(stage, self.loss(outputs, targets), count)
        if self.preprocessing.task == "regression":  # in the units of the targets
            std = torch.tensor(self.preprocessing.target_std, device=outputs.device)
            outputs, targets = outputs * std, targets * std
        self.metric(outputs, targets.int() if self.preprocessing.task == "multi_label" else targets)
        self.log(f"{stage}_{self.metric_name}", self.metric, prog_bar=True, batch_size=count)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """See `evaluation_step`."""
        self.evaluation_step(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """See `evaluation_step`."""
        self.evaluation_step(batch, "test")


def suggest(preprocessing: Preprocessing, network: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a small `PerceiverIO` for data: two cross-attentions, four latent layers, 32 latents.

    Args:
        preprocessing: The preprocessing of the data.
        network: Arguments that replace these.
    """
    dim = int(network.get("dim", 128))
    return {
        "inputs": preprocessing.inputs(dim),
        "outputs": {"kind": "LearnedQueries", "dim": dim, "num_channels": len(preprocessing.labels)},
        "num_latent_tokens": 32,
        "dim": dim,
        "heads": 4,
        "layers_indice": [0, 1],
        "num_latent_transformers_in_layers": [2, 2],
        "ff_dim_scale": 2,
        **network,
    }
