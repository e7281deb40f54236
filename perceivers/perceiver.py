"""Perceiver: General Perception with Iterative Attention (Jaegle et al., 2021, arXiv 2103.03206).

A small array of latents attends to an array of any kind and length (cross-attention), refines what it read among itself
(latent transformers), and repeats. Cost grows with inputs x latents, not with inputs squared.

Read top to bottom: `PerceiverBlock` is one layer, `Perceiver` the model. Departures from the paper, all of them settings:

- `Perceiver()` with nothing but a shape is the model of this project's first README, not a published one: bands spaced
  geometrically from 2, feed-forward 4 times as wide, one sharing list for both kinds of layers. `create_model` has the
  published ones.
- GELU is exact; DeepMind's code uses the tanh approximation (`activation="gelu_tanh"`).
- Positions span -1 to 1 over the array that is passed, where the paper's ImageNet training used crop-relative ones.
- Initial latents are drawn in [-2, 2] around zero with standard deviation 0.02, as the paper says; its authors' code cuts
  at two standard deviations.
"""

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from perceivers._checks import a_bool, an_int
from perceivers.inputs.base import a_shape
from perceivers.layers.attention import resolve_head_dim
from perceivers.layers.block import CrossAttentionBlock, LatentTransformer, block_settings
from perceivers.layers.encoder import LatentEncoder
from perceivers.layers.linear import Linear
from perceivers.ops.tokens import Positions, Tokens, check_array, check_grid, check_mask
from perceivers.position import FourierFeatures
from perceivers.pretrained import Pretrained


class PerceiverBlock(nn.Module):
    """One layer: the latents attend to the inputs, then to themselves.

    Args:
        cross_attention: A `CrossAttentionBlock`, or `None` for a layer that reads no input.
        latent_transformers: The `LatentTransformer`s that follow, any number.
    """

    def __init__(self, *, cross_attention: nn.Module | None, latent_transformers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.cross_attention = cross_attention
        self.latent_transformers = nn.Sequential(*latent_transformers)

    @classmethod
    def from_dims(
        cls,
        *,
        cross_kv_dim: int,
        dim: int,
        depth: int,
        cross_heads: int = 1,
        heads: int = 8,
        cross_head_dim: int | None = None,
        head_dim: int | None = None,
        ff_dim: int | None = None,
        ff_dim_scale: float = 4,
        bias: bool | str = True,
        pre_norm: bool = True,
        activation: str = "gelu",
        ff_dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> "PerceiverBlock":
        """Builds a block from widths; the arguments mean what they mean in `Perceiver`.

        Args:
            cross_kv_dim: Channels of an input.
            dim: Width of the latents.
            depth: Number of latent transformers.
            cross_heads: Heads of the cross-attention.
            heads: Heads of the latent transformers.
            cross_head_dim: Width of a head of the cross-attention; `None` for `head_dim`.
            head_dim: Width of a head; `None` for `dim // heads` and `dim // cross_heads`.
            ff_dim: Hidden width of the feed-forward; `None` for `ff_dim_scale * dim`.
            ff_dim_scale: See `ff_dim`.
            bias: Whether the linear maps of the attentions have a bias; "out" for the last of each alone.
            pre_norm: Norm before the steps or after the residuals.
            activation: "gelu", "gelu_tanh", "geglu" or "relu".
            ff_dropout: Dropout of the feed-forward.
            attention_dropout: Dropout of the attention weights.
        """
        shared = block_settings(
            dim=dim,
            ff_dim=ff_dim,
            ff_dim_scale=ff_dim_scale,
            bias=bias,
            pre_norm=pre_norm,
            activation=activation,
            ff_dropout=ff_dropout,
            attention_dropout=attention_dropout,
        )
        return cls(
            cross_attention=CrossAttentionBlock(
                kv_dim=cross_kv_dim,
                heads=cross_heads,
                head_dim=head_dim if cross_head_dim is None else cross_head_dim,
                **shared,
            ),
            latent_transformers=[
                LatentTransformer(heads=heads, head_dim=head_dim, **shared) for _ in range(an_int("depth", depth, 0))
            ],
        )

    def forward(self, latents: Tensor, inputs: Tensor | Sequence[Tokens], mask: Tensor | None = None) -> Tensor:
        """Applies the layer.

        Args:
            latents: `[B, N, dim]`.
            inputs: `[B, M, cross_kv_dim]`, or token groups.
            mask: `[B, M]`, bool, True where an input may be attended; token groups carry their own.

        Returns:
            New latents, `[B, N, dim]`.

        Raises:
            ValueError: If a shape or dtype does not fit.
        """
        if isinstance(inputs, Tensor):
            check_array("inputs", inputs, 3, "[B, M, cross_kv_dim]")
            check_mask(mask, inputs.shape[:2], "[B, M]")
            inputs = [Tokens.of(inputs, mask)]
        elif mask is not None:
            raise ValueError("mask is given beside token groups, which carry their own: put it into the Tokens")
        if self.cross_attention is not None:
            latents = self.cross_attention(latents, inputs)
        return self.latent_transformers(latents)


class Perceiver(Pretrained):
    """Perceiver for arrays with 1 to 4 axes: signals, pictures, video, volumes.

    ```python
    model = Perceiver(data_shape=[3, 64, 64], num_latent_tokens=128, dim=256, heads=8, num_classes=10)
    logits = model(pictures)  # [B, 3, 64, 64] -> [B, 10]
    ```

    Args:
        data_shape: Channels and axis lengths, `[C, *axes]`. Other lengths are accepted later, other numbers of axes not.
        cross_heads: Heads of the cross-attention.
        num_latent_tokens: Number of latents, N.
        dim: Width of the latents.
        heads: Heads of the latent transformers.
        layers_indice: For each layer, which of the unique cross-attentions it uses; `[0, 1, 1]` shares one between the
            second and third layer. `None` in the list is a layer without cross-attention.
        latent_layers_indice: For each layer, which of the unique stacks of latent transformers it uses; `None` for the
            same as `layers_indice`.
        num_latent_transformers_in_layers: Depth of each unique stack, 0 allowed.
        num_bands: Frequencies of the position features of each axis; 0 leaves the coordinate alone.
        resolution: Sampling rate whose half is the highest frequency, one number or one an axis; `None` for the lengths.
        frequency_base: Lowest frequency of bands spaced geometrically; `None` for linear spacing from 1, as published.
        pre_norm: Norms before each step and on the inputs (as published), or after each residual.
        ff_dim: Hidden width of the feed-forward; `None` for `ff_dim_scale * dim`.
        ff_dim_scale: See `ff_dim`.
        ff_dropout: Dropout after the activation and after the second linear map of the feed-forward.
        attention_dropout: Dropout of the attention weights.
        cross_kv_dim: Channels of an encoded input, C + axes * (1 + 2 * num_bands). It follows from the others; where it
            is given, it is checked.
        head_dim: Width of a head everywhere; `None` for `dim // heads` in the latents, `dim // cross_heads` across.
        cross_head_dim: Width of a head of the cross-attention, where it differs.
        num_classes: Size of the logits; `None` for pooled latents instead.
        bias: Whether the linear maps of the attentions have a bias; "out" for the last of each alone.
        final_norm: Whether pooled latents pass a layer norm.
        activation: "gelu" (exact), "gelu_tanh", "geglu" or "relu".
        attention_implementation: How cross-attention is computed, see `set_attention_implementation`. In no checkpoint.

    Attributes:
        config: All arguments, every default resolved, ready for JSON.
        model_name: The name given to `create_model`, or `None`.

    Raises:
        ValueError: If an argument is out of range or does not fit the others; the message names it, its value and the
            remedy.
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
        channels, *axes = a_shape(data_shape)
        self.positions = FourierFeatures.of(num_bands, resolution, frequency_base, axes)
        kv_dim = channels + self.positions.num_channels
        if cross_kv_dim is not None and an_int("cross_kv_dim", cross_kv_dim) != kv_dim:
            raise ValueError(
                f"cross_kv_dim={cross_kv_dim} must be {kv_dim}, the {channels} channels of data_shape and"
                f" {self.positions.num_channels} of the position features: change num_bands, or leave it out"
            )
        dim, heads, cross_heads = an_int("dim", dim), an_int("heads", heads), an_int("cross_heads", cross_heads)
        if cross_head_dim is None:
            cross_head_dim = head_dim
        cross_head_dim = resolve_head_dim("cross_head_dim", dim, cross_heads, cross_head_dim, "cross_heads")
        head_dim = resolve_head_dim("head_dim", dim, heads, head_dim)
        self.encoder = LatentEncoder(
            kv_dim=kv_dim,
            num_latent_tokens=num_latent_tokens,
            dim=dim,
            cross_heads=cross_heads,
            heads=heads,
            layers_indice=layers_indice,
            latent_layers_indice=latent_layers_indice,
            num_latent_transformers_in_layers=num_latent_transformers_in_layers,
            pre_norm=pre_norm,
            ff_dim=ff_dim,
            ff_dim_scale=ff_dim_scale,
            ff_dropout=ff_dropout,
            attention_dropout=attention_dropout,
            qk_channels=heads * head_dim,
            v_channels=heads * head_dim,
            cross_qk_channels=cross_heads * cross_head_dim,
            cross_v_channels=cross_heads * cross_head_dim,
            bias=bias,
            activation=activation,
        )
        self.config: dict[str, Any] = {
            "data_shape": [channels, *axes],
            **self.positions.config,
            "num_classes": None if num_classes is None else an_int("num_classes", num_classes),
            "final_norm": a_bool("final_norm", final_norm),
            "head_dim": head_dim,
            "cross_head_dim": cross_head_dim,
            **self.encoder.config,
        }
        self.model_name: str | None = None
        self.norm = nn.LayerNorm(dim) if final_norm else None
        self.head = None if num_classes is None else Linear(dim, num_classes)
        if self.head is not None:
            nn.init.zeros_(self.head.weight)
        self.set_attention_implementation(attention_implementation)

    @property
    def layers(self) -> list[PerceiverBlock]:
        """The layers in the order they are applied, as views: layers that share modules share parameters."""
        return [
            PerceiverBlock(cross_attention=cross_attention, latent_transformers=latent_transformers)
            for cross_attention, latent_transformers in self.encoder.layers()
        ]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Maps arrays to logits, or to pooled latents.

        Args:
            x: `[B, C, *axes]`, floating point.
            mask: `[B, *axes]`, bool, True where x may be attended to. What lies under False, even NaN, has no effect.

        Returns:
            Logits `[B, num_classes]`, or the mean of the latents, `[B, dim]`, where `num_classes` is `None`.

        Raises:
            ValueError: If a shape or dtype does not fit.
        """
        pooled = self.encode(x, mask).mean(dim=1)
        if self.norm is not None:
            pooled = self.norm(pooled)
        return pooled if self.head is None else self.head(pooled)

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Maps arrays to latents.

        Args:
            x: As in `forward`.
            mask: As in `forward`.

        Returns:
            `[B, num_latent_tokens, dim]`.

        Raises:
            ValueError: If a shape or dtype does not fit.
        """
        return self.encoder([self.tokens(x, mask)])

    def attention_maps(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        layer: int = -1,
        latents: Sequence[int] | None = None,
        log_scores: bool = False,
    ) -> Tensor:
        """Shows where the latents look.

        Only the maps themselves are held, never keys or the encoded array; choose few `latents` for very large arrays.
        Gradients are not recorded, and dropout acts as the mode of the model says.

        Args:
            x: As in `forward`.
            mask: As in `forward`.
            layer: Which of the layers with a cross-attention, in the order they are applied; -1 is the last.
            latents: Indices of the latents to show; `None` for all.
            log_scores: Return logarithms: the scores that the paper's figures show, less one constant a row.

        Returns:
            `[B, cross_heads, N, *axes]`; each map sums to 1, or is 0 where the mask leaves nothing to attend to.

        Raises:
            ValueError: If a shape, dtype or index does not fit.
        """
        maps = self.encoder.attention_maps([self.tokens(x, mask)], layer, latents, a_bool("log_scores", log_scores))
        return maps.unflatten(-1, x.shape[2:])

    def set_attention_implementation(self, name: str) -> None:
        """Chooses how cross-attention is computed, at run time; parameters and results stay the same.

        Args:
            name: "auto", or one of `perceivers.ops.cross_attention.IMPLEMENTATIONS`: "reference", "dense", "absorbed",
                "separable". A named one runs or raises with the reason when the model is called; only "auto" chooses.

        Raises:
            ValueError: If the name is unknown.
        """
        self.encoder.set_attention_implementation(name)

    def set_grad_checkpointing(self, enabled: bool) -> None:
        """Chooses whether a training step saves memory for time; results, gradients and checkpoints stay the same.

        Args:
            enabled: Whether each block is computed anew in the backward pass, so that of its activations the latents alone
                are kept: about a third more time.

        Raises:
            ValueError: If it is no bool.
        """
        self.encoder.set_grad_checkpointing(enabled)

    @torch.no_grad()
    def explain(self, x: Tensor, mask: Tensor | None = None) -> str:
        """Tells how cross-attention would be computed for these arrays, and why: a table of what each implementation costs.

        Args:
            x: As in `forward`.
            mask: As in `forward`.

        Raises:
            ValueError: If a shape or dtype does not fit.
        """
        return self.encoder.explain([self.tokens(x, mask)])

    def flops(self, axes: Sequence[int] | None = None) -> int:
        """Counts multiplications and additions apart, of the matrix products of one sample, with dense cross-attention.

        Args:
            axes: Axis lengths of the sample; `None` for those of `data_shape`.
        """
        lengths = self.config["data_shape"][1:] if axes is None else axes
        return self.encoder.flops(prod(lengths)) + (0 if self.head is None else 2 * self.head.weight.numel())

    def tokens(self, x: Tensor, mask: Tensor | None = None) -> Tokens:
        """What the cross-attentions read: inputs, as in `forward`, as a token group."""
        dtype = self.encoder.latents.dtype
        check_grid(x, mask, self.config["data_shape"], dtype)
        return Tokens(x, Positions(self.positions.tables(x.shape[2:], dtype=dtype, device=x.device)), mask)
