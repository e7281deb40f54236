"""Perceiver: General Perception with Iterative Attention (Jaegle et al., 2021, arXiv 2103.03206).

A small array of latents attends to an array of any kind and length (cross-attention), then to itself (latent transformers),
and repeats. The cost grows with inputs x latents, not with inputs squared.

`Perceiver` is `inputs.Pixels`, which adds Fourier features of the positions, then a `LatentEncoder`, then the mean of the
latents and a linear layer. The encoder applies one `PerceiverBlock` after another (`layers/block.py`, `layers/encoder.py`).
Departures from the paper, all of them settings:

- `Perceiver(data_shape=...)` is the model of this project's first README, not a published one: frequency bands spaced
  geometrically from 2, a feed-forward 4 times as wide, one sharing list for both kinds of layers. `create_model` has the
  published models.
- GELU is exact; DeepMind's code uses the tanh approximation (`activation="gelu_tanh"`).
- Positions span -1 to 1 over the array that is passed; in the paper's ImageNet training they were relative to the crop.
- Initial latents are drawn with mean 0 and standard deviation 0.02, truncated to [-2, 2], as the paper says; its authors'
  code truncates at two standard deviations.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from perceivers._checks import a_bool, an_int
from perceivers.base import PerceiverBase
from perceivers.inputs import Pixels
from perceivers.layers.attention import resolve_head_dim
from perceivers.layers.block import BlockConfig, PerceiverBlock
from perceivers.layers.encoder import EncoderConfig, LatentEncoder
from perceivers.layers.linear import Linear


class Perceiver(PerceiverBase):
    """Perceiver for arrays with 1 to 4 axes: signals, images, video, volumes.

    ```python
    model = Perceiver(data_shape=[3, 64, 64], num_latent_tokens=128, dim=256, heads=8, num_classes=10)
    logits = model(images)  # [B, 3, 64, 64] -> [B, 10]
    ```

    Args:
        data_shape: Channels and axis lengths, `[C, *axes]`. `forward` accepts other lengths, but not another number of axes.
        cross_heads: Heads of the cross-attention.
        num_latent_tokens: Number of latents, N.
        dim: Width of the latents.
        heads: Heads of the latent transformers.
        layers_indice: For each layer, the index of the cross-attention it uses: `[0, 1, 1]` shares one between the second
            and third layer. `None` in the list is a layer without cross-attention.
        latent_layers_indice: For each layer, the index of the stack of latent transformers it uses. Defaults to
            `layers_indice`.
        num_latent_transformers_in_layers: Depth of each unique stack; 0 is allowed.
        num_bands: Number of frequencies of the position features per axis; 0 keeps only the coordinate.
        resolution: Sampling rate whose half is the highest frequency: a scalar, or one value per axis. Defaults to the axis
            lengths.
        frequency_base: Lowest frequency of geometrically spaced bands; `None` for linear spacing from 1, as published.
        pre_norm: Whether norms come before each step and on the inputs (as published), or after each residual.
        ff_dim: Hidden width of the feed-forward. Defaults to `ff_dim_scale * dim`.
        ff_dim_scale: See `ff_dim`.
        ff_dropout: Dropout probability after the activation and after the second linear layer of the feed-forward.
        attention_dropout: Dropout probability of the attention weights.
        cross_kv_dim: Channels of an encoded input, C + axes * (1 + 2 * num_bands). It follows from the other arguments; if
            it is given, it is checked.
        head_dim: Width of a head everywhere. Defaults to `dim // heads` in the latents, `dim // cross_heads` across.
        cross_head_dim: Width of a head of the cross-attention. Defaults to `head_dim`.
        num_classes: Number of classes; 0 or `None` for no classifier: the model returns the mean of the latents.
        bias: Whether the linear layers of the attentions have a bias; "out" for the output projections alone.
        final_norm: Whether the mean of the latents is layer-normalised.
        activation: "gelu" (exact), "gelu_tanh", "geglu" or "relu".
        attention_implementation: How cross-attention is computed, see `set_attention_implementation`. Not saved in
            checkpoints.

    Attributes:
        config: All arguments with their defaults resolved, ready for JSON.
        model_name: The name that was given to `create_model`, or `None`.
    """

    def __init__(
        self,
        *,
        data_shape: Sequence[int],
        cross_heads: int = 1,
        num_latent_tokens: int = 1024,
        dim: int = 512,
        heads: int = 16,
        layers_indice: Sequence[int | None] = (0, 1, 1, 1, 1, 1, 1, 1),
        latent_layers_indice: Sequence[int] | None = None,
        num_latent_transformers_in_layers: Sequence[int] = (6, 6),
        num_bands: int = 64,
        resolution: float | Sequence[float] | None = None,
        frequency_base: float | None = 2,
        pre_norm: bool = True,
        ff_dim: int | None = None,
        ff_dim_scale: float = 4,
        ff_dropout: float = 0.0,
        attention_dropout: float = 0.0,
        cross_kv_dim: int | None = None,
        head_dim: int | None = None,
        cross_head_dim: int | None = None,
        num_classes: int | None = None,
        bias: bool | str = True,
        final_norm: bool = False,
        activation: str = "gelu",
        attention_implementation: str = "auto",
    ) -> None:
        super().__init__()
        self.inputs = Pixels(data_shape=data_shape, num_bands=num_bands, resolution=resolution, frequency_base=frequency_base)
        if cross_kv_dim is not None and an_int("cross_kv_dim", cross_kv_dim) != self.inputs.num_channels:
            channels = self.inputs.config["data_shape"][0]
            raise ValueError(
                f"cross_kv_dim={cross_kv_dim} must be {self.inputs.num_channels}, the {channels} channels of data_shape and"
                f" {self.inputs.num_channels - channels} of the position features: change num_bands, or leave it out"
            )
        dim, heads, cross_heads = an_int("dim", dim), an_int("heads", heads), an_int("cross_heads", cross_heads)
        cross_head_dim = head_dim if cross_head_dim is None else cross_head_dim
        cross_head_dim = resolve_head_dim("cross_head_dim", dim, cross_heads, cross_head_dim, "cross_heads")
        head_dim = resolve_head_dim("head_dim", dim, heads, head_dim)
        latent = BlockConfig(
            dim=dim,
            heads=heads,
            head_dim=head_dim,
            ff_dim=ff_dim,
            ff_dim_scale=ff_dim_scale,
            bias=bias,
            pre_norm=pre_norm,
            activation=activation,
            ff_dropout=ff_dropout,
            attention_dropout=attention_dropout,
        )
        self.encoder = LatentEncoder(
            EncoderConfig(
                kv_dim=self.inputs.num_channels,
                num_latent_tokens=num_latent_tokens,
                latent=latent,
                cross=replace(latent, heads=cross_heads, head_dim=cross_head_dim),
                layers_indice=layers_indice,
                latent_layers_indice=latent_layers_indice,
                num_latent_transformers_in_layers=num_latent_transformers_in_layers,
            )
        )
        self.decoder = None
        self.config: dict[str, Any] = {
            **self.inputs.config,
            "num_classes": None,
            "final_norm": a_bool("final_norm", final_norm),
            "head_dim": head_dim,
            "cross_head_dim": cross_head_dim,
            **self.encoder.config.arguments,
        }
        self.model_name: str | None = None
        self.norm = nn.LayerNorm(dim) if final_norm else None
        self.reset_classifier(0 if num_classes is None else num_classes)
        self.set_attention_implementation(attention_implementation)

    @property
    def layers(self) -> list[PerceiverBlock]:
        """The layers in the order they are applied, as views: layers that share modules share parameters."""
        return [
            PerceiverBlock(cross_attention=cross_attention, latent_transformers=latent_transformers)
            for cross_attention, latent_transformers in self.encoder.layers()
        ]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return logits `[B, num_classes]`, or the mean of the latents `[B, dim]` if there is no classifier.

        Args:
            x: `[B, C, *axes]`, floating point; see `inputs.Pixels` for what else is accepted.
            mask: `[B, *axes]`, bool, True where x may be attended to; masked values have no effect, not even NaN.
        """
        return self.forward_head(self.encode(x, mask))

    def forward_head(self, latents: Tensor, pre_logits: bool = False) -> Tensor:
        """Return what `forward` returns, from the latents.

        Args:
            latents: `[B, num_latent_tokens, dim]`, from `forward_features`.
            pre_logits: Whether to return the mean of the latents (after `norm`) also if there is a classifier.
        """
        pooled = latents.mean(dim=1)
        if self.norm is not None:
            pooled = self.norm(pooled)
        return pooled if self.head is None or pre_logits else self.head(pooled)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a newly initialised one, whose weights are zero.

        Args:
            num_classes: Number of classes; 0 for no classifier.

        Raises:
            ValueError: If `num_classes` is negative or not a whole number.
        """
        num_classes = an_int("num_classes", num_classes, 0)
        self.config["num_classes"] = num_classes or None
        self.head = None
        if num_classes > 0:
            self.head = Linear(self.num_features, num_classes).to(self.encoder.latents)
            nn.init.zeros_(self.head.weight)

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 if there is no classifier."""
        return self.config["num_classes"] or 0
