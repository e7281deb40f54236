"""What is trained: a model with its loss, optimiser, schedule and metric, as a `LightningModule`."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy, MultilabelF1Score
from torchmetrics.regression import MeanAbsoluteError

from perceivers import losses
from perceivers._checks import a_probability, one_of
from perceivers.data.preprocessing import Preprocessing, Videos
from perceivers.perceiver_io import PerceiverIO
from perceivers.training.augment import augmented, changes_of
from perceivers.training.datamodule import seed_of
from perceivers.training.optim import SCHEDULES, learning_rate_factor, make_optimizer

METRICS = {"classification": "accuracy", "multi_label": "f1", "regression": "mae", "pretraining": "loss"}
# What of a pretrained model is not taken over.
NEW = ("outputs", *(f"decoder_{name}" for name in ("heads", "qk_channels", "v_channels", "query_residual", "ff_dim")))


class Trained(LightningModule):
    """What fitting and pretraining share: optimiser, schedule, and steps whose random draws are functions of their number.

    All that is random in a step is drawn from generators seeded by the run's seed, the epoch, the batch and the process: so a
    resumed run draws what one never stopped draws.
    """

    network: PerceiverIO
    metric_name: str

    def __init__(
        self,
        preprocessing: Mapping[str, Any] | None,
        optimizer: str,
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        schedule: str,
        warm_up: float,
        seed: int,
    ) -> None:
        super().__init__()
        if preprocessing is None:
            raise ValueError("preprocessing is missing: give that of PathData, or use perceivers fit PATH")
        self.preprocessing = Preprocessing.create(preprocessing)
        self.optimizer_settings = {"name": optimizer, "lr": lr, "betas": betas, "weight_decay": weight_decay}
        self.schedule = one_of("schedule", schedule, SCHEDULES)
        self.warm_up, self.seed = a_probability("warm_up", warm_up), seed
        self.mean_loss = MeanMetric()  # of samples, whatever their shares of batches and processes
        self.losses = (0.0, 0)  # sum and number, of the steps of this epoch
        torch.manual_seed(seed_of(seed))

    def set_network(self, network: PerceiverIO) -> None:
        """Takes the model, and says now whether a setting of its optimiser is wrong."""
        self.network = network
        make_optimizer(model=network, **self.optimizer_settings)

    def configure_model(self) -> None:
        """Shares the weights out over processes (FSDP2) where the strategy is made for it; called by Lightning."""
        if self.device_mesh is None:
            return
        from torch.distributed.fsdp import fully_shard

        mesh, encoder = self.device_mesh["data_parallel"], self.network.encoder
        for block in (*encoder.cross_attentions, *(layer for stack in encoder.latent_transformers for layer in stack)):  # pyright: ignore[reportGeneralTypeIssues]
            fully_shard(block, mesh=mesh)
        fully_shard(self.network, mesh=mesh)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seeds what is random in this step."""
        if batch_idx == 0:
            self.losses = (0.0, 0)
        torch.manual_seed(seed_of(self.seed, self.current_epoch, batch_idx, self.global_rank))

    def checked(self, loss: Tensor) -> Tensor:
        """Returns the loss of a batch to train on, and logs the mean of the epoch so far.

        Raises:
            FloatingPointError: If it is not a number.
        """
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss is {value} at step {self.global_step}: lower --model.lr, or look for values"
                " that are no numbers; the last checkpoint is kept"
            )
        self.losses = (self.losses[0] + value, self.losses[1] + 1)
        self.log("train_loss", self.losses[0] / self.losses[1], prog_bar=True, sync_dist=True)
        return loss

    def log_loss(self, stage: str, loss: Tensor, count: int) -> None:
        """Logs the mean loss of `count` samples that are not trained on."""
        self.mean_loss(loss, count)
        self.log(f"{stage}_loss", self.mean_loss, prog_bar=True, batch_size=count)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the mean of the epoch so far."""
        checkpoint["losses"] = self.losses

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes it up."""
        self.losses = checkpoint["losses"]

    def configure_optimizers(self) -> Any:
        """The optimiser, and its schedule by steps."""
        optimizer = make_optimizer(model=self.network, **self.optimizer_settings)
        total = int(self.trainer.estimated_stepping_batches)
        factor = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(self.schedule, step, total, self.warm_up)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": factor, "interval": "step"}}


class Training(Trained):
    """A `PerceiverIO` in training.

    Args:
        network: Arguments of `PerceiverIO`, also one by one, such as --model.network.dim 64; what is not given is chosen
            for the data, see `suggest`.
        preprocessing: The description of the data, see `perceivers.data.preprocessing`.
        start: Folder of a pretrained model whose inputs and encoder are begun with, see `Pretraining`; `None` for none.
        optimizer: "adamw" or "lamb".
        lr: Highest learning rate.
        betas: Decay of the optimiser's averages of gradients and of their squares.
        weight_decay: Of matrices; biases and norms do not decay.
        schedule: "cosine", "flat_cosine", "steps" or "constant"; see `learning_rate_factor`.
        warm_up: Share of the steps in which the learning rate rises.
        label_smoothing: Part of the probability that goes to all classes evenly.
        pictures: Augmentation of pictures and videos: "none", or several of "light" (turned, moved and scaled a little),
            "flip", "crop" and "randaugment" with "+" between, such as crop+flip+randaugment.
        time_spans: Spans of a tenth of a sound that are left out.
        mixup: Parameter of the Beta distribution that two samples are mixed by; 0 for none.
        cutmix: The same for rectangles put into another picture.
        compile: Whether to run the model through `torch.compile`.
        grad_checkpointing: Whether to save memory for time, see `PerceiverIO.set_grad_checkpointing`.
        seed: Seed of the weights and of all that is random in a step.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        network: dict[str, Any] | None = None,
        *,
        preprocessing: dict[str, Any] | None = None,
        start: str | None = None,
        optimizer: str = "adamw",
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.05,
        schedule: str = "cosine",
        warm_up: float = 0.05,
        label_smoothing: float = 0.1,
        pictures: str = "light",
        time_spans: int = 2,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        compile: bool = False,
        grad_checkpointing: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(preprocessing, optimizer, lr, betas, weight_decay, schedule, warm_up, seed)
        self.label_smoothing = label_smoothing
        if "randaugment" in changes_of(pictures) and isinstance(self.preprocessing, Videos):
            raise ValueError(f"pictures={pictures!r}: randaugment is for pictures only, videos take light, flip and crop")
        self.augmentation = {"pictures": pictures, "time_spans": time_spans, "mixup": mixup, "cutmix": cutmix}
        pretrained = None if start is None else PerceiverIO.from_pretrained(start)
        given = {} if pretrained is None else {key: value for key, value in pretrained.config.items() if key not in NEW}
        self.set_network(PerceiverIO(**suggest(self.preprocessing, {**given, **(network or {})})))
        if pretrained is not None:
            self.network.inputs.load_state_dict(pretrained.inputs.state_dict())
            self.network.encoder.load_state_dict(pretrained.encoder.state_dict())
        self.network.set_grad_checkpointing(grad_checkpointing)
        if compile:
            self.network.compile()
        self.task, classes = self.preprocessing.task, len(self.preprocessing.labels)
        self.classes = classes if self.task == "classification" else 0
        self.metric_name = METRICS[self.task]
        self.metric: Metric
        match self.task:
            case "classification":
                self.metric = MulticlassAccuracy(num_classes=classes, average="micro")
            case "multi_label":
                self.metric = MultilabelF1Score(num_labels=classes)
            case _:
                self.metric = MeanAbsoluteError()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Returns the loss of a batch."""
        kind = type(self.preprocessing).__name__
        x, mask, targets = augmented(*batch, kind=kind, classes=self.classes, **self.augmentation)
        loss = self.loss(self.network(x, mask), targets, self.label_smoothing)
        return self.checked(loss)

    def loss(self, outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Cross-entropy, binary cross-entropy of labels, or squared error, by the task."""
        match self.task:
            case "classification":
                return losses.classification(outputs, targets, label_smoothing=label_smoothing)
            case "multi_label":
                return losses.multi_label(outputs, targets)
            case _:
                return F.mse_loss(outputs, targets)

    def evaluation_step(self, batch: Any, stage: str) -> None:
        """Logs loss and metric of a batch that is not trained on."""
        x, mask, targets = batch
        outputs = self.network(x, mask)
        count = len(targets)
        self.log_loss(stage, self.loss(outputs, targets), count)
        if self.task == "regression":  # in the units of the targets
            std = torch.tensor(self.preprocessing.target_std, device=outputs.device)
            outputs, targets = outputs * std, targets * std
        self.metric(outputs, targets.int() if self.task == "multi_label" else targets)
        self.log(f"{stage}_{self.metric_name}", self.metric, prog_bar=True, batch_size=count)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """See `evaluation_step`."""
        self.evaluation_step(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """See `evaluation_step`."""
        self.evaluation_step(batch, "test")


def suggest(preprocessing: Preprocessing, network: Mapping[str, Any]) -> dict[str, Any]:
    """Completes the arguments of a small `PerceiverIO` for data: two cross-attentions, four latent layers, 32 latents.

    Args:
        preprocessing: That of the data.
        network: Arguments that are given; they replace what is suggested.
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
