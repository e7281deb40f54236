"""A latent resampler maps any number of features to a fixed number of tokens, between an encoder and a larger model.

It is the module of Flamingo (Alayrac et al. 2022, section 2.1: "Perceiver Resampler"), Idefics, IP-Adapter Plus and ELLA.
A block is

    latents = latents + attention(norm(latents), [norm(inputs), norm(latents)])
    latents = latents + feed_forward(norm(latents))

`Resampler` is the public module; the classes before it are its parts. Differences from Flamingo:

- The activation of the feed-forward is GELU, as in the public reimplementations; Flamingo squares a ReLU.
- The learned embedding that Flamingo adds to the features of each video frame is optional (`num_embeddings`).

Letters:
    B  batch      N  latents                   M  inputs               E  width of the condition
    D  their width                             C  channels of an input
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from perceivers._checks import a_bool, a_number, a_probability, an_int, one_of
from perceivers.layers.attention import resolve_head_dim
from perceivers.layers.checks import checked_inputs
from perceivers.layers.feed_forward import ACTIVATIONS, FeedForward, SwiGLU
from perceivers.layers.grouped_attention import GroupedCrossAttention
from perceivers.layers.linear import Linear
from perceivers.layers.norm import NORMS, AdaptiveNorm, make_norm
from perceivers.ops.tokens import Tokens, check_ids
from perceivers.pretrained import Pretrained


class MeanPooledLatents(nn.Module):
    """Latents from the mean of the inputs, by a norm and a linear layer (IP-Adapter Plus)."""

    def __init__(self, *, num_latent_tokens: int, dim: int, kv_dim: int, norm: str, norm_eps: float | None) -> None:
        super().__init__()
        self.num_latent_tokens = num_latent_tokens
        self.norm = make_norm(norm, kv_dim, norm_eps)
        self.linear = Linear(kv_dim, num_latent_tokens * dim)

    def forward(self, inputs_BMC: Tensor, mask_BM: Tensor | None) -> Tensor:
        """Map inputs `[B, M, C]` to `[B, N, D]`; the mean of a sample without inputs is zero."""
        if mask_BM is None:
            mean_BC = inputs_BMC.mean(dim=1)
        else:
            kept_BMC = inputs_BMC.masked_fill(~mask_BM.unsqueeze(-1), 0)
            mean_BC = kept_BMC.sum(dim=1) / mask_BM.sum(dim=1, keepdim=True).clamp(min=1)
        return rearrange(self.linear(self.norm(mean_BC)), "B (N D) -> B N D", N=self.num_latent_tokens)


class ResamplerBlock(nn.Module):
    """Attention from latents to inputs, or to both, then feed-forward.

    Args:
        config: That of `Resampler`, checked.
        kv_dim: Channels of an input after the projection of inputs, if there is one.
    """

    def __init__(self, config: Mapping[str, Any], kv_dim: int) -> None:
        super().__init__()
        dim, ff_dim, dropout, activation = (config[name] for name in ("dim", "ff_dim", "ff_dropout", "activation"))
        norm = {"kind": config["norm"], "eps": config["norm_eps"], "condition_dim": config["condition_dim"]}
        self.attend_latents = config["attend_latents"]
        self.inputs_norm = AdaptiveNorm(dim=kv_dim, **norm)
        self.attention_norm = AdaptiveNorm(dim=dim, **norm)
        self.attention = GroupedCrossAttention(
            **{name: config[name] for name in ("dim", "heads", "kv_heads", "head_dim", "bias", "norm_eps")},
            kv_dim=kv_dim,
            qk_norm=config["norm"] if config["qk_norm"] else None,
            dropout=config["attention_dropout"],
        )
        self.feed_forward_norm = AdaptiveNorm(dim=dim, **norm)
        if activation == "swiglu":
            self.feed_forward = SwiGLU(dim=dim, hidden_dim=ff_dim, dropout=dropout)
        else:
            self.feed_forward = FeedForward(dim=dim, hidden_dim=ff_dim, activation=activation, dropout=dropout)

    def forward(self, latents_BND: Tensor, inputs_BMC: Tensor, mask_BM: Tensor | None, condition_BE: Tensor | None) -> Tensor:
        """Return new latents, `[B, N, D]`."""
        queries_BND = self.attention_norm(latents_BND, condition_BE)
        read = [Tokens.of(self.inputs_norm(inputs_BMC, condition_BE), mask_BM)]
        if self.attend_latents:
            read.append(Tokens.of(queries_BND))
        latents_BND = latents_BND + self.attention(queries_BND, read)
        return latents_BND + self.feed_forward(self.feed_forward_norm(latents_BND, condition_BE))


class Resampler(Pretrained):
    """Resampler of any number of features to `num_latent_tokens` tokens.

    ```python
    import torch
    from perceivers.layers import Resampler

    resampler = Resampler(dim=64, kv_dim=96, num_latent_tokens=16, depth=2, heads=4)
    features = torch.randn(2, 300, 96)  # the features of two images
    mask = torch.arange(300) < torch.tensor([[300], [200]])  # the second has 200 features; the others have no effect
    tokens = resampler(features, mask)  # [2, 16, 64]

    # Grouped-query attention, RMS norm and SwiGLU as in Idefics2, mean-pooled latents as in IP-Adapter Plus, and a condition
    resampler = Resampler(
        dim=64, heads=8, kv_heads=2, norm="rms_norm", activation="swiglu", num_latents_mean_pooled=4, condition_dim=32
    )
    conditioned = resampler(torch.randn(2, 50, 64), condition=torch.randn(2, 32))  # [2, 68, 64]
    ```

    Args:
        dim: Width of the latents, D.
        kv_dim: Channels of an input, C. Defaults to `dim`. If it differs and latents are attended to, a linear layer projects
            the inputs to `dim` first, because both share one projection to keys.
        output_dim: Width of an output token. If it is given, a linear layer comes before the final norm (IP-Adapter Plus).
            Defaults to `dim`.
        num_latent_tokens: Number of learned latents.
        num_latents_mean_pooled: Number of latents made from the mean of the inputs, which come before the learned ones.
        depth: Number of blocks.
        heads: Heads of queries.
        kv_heads: Heads of keys and values, a divisor of `heads` (grouped-query attention). Defaults to `heads`.
        head_dim: Width of a head. Defaults to `dim // heads`.
        attend_latents: Whether keys and values come from inputs and latents, which share one softmax (Flamingo, Idefics,
            IP-Adapter Plus, ELLA), or from inputs alone (Perceiver).
        ff_dim: Hidden width of the feed-forward. Defaults to `4 * dim`.
        activation: "gelu" (exact), "gelu_tanh", "geglu", "relu", or "swiglu", whose linear layers have no bias.
        norm: "layer_norm" (eps 1e-5) or "rms_norm" (eps 1e-6), for all norms.
        norm_eps: Epsilon of all norms, instead of the default of `norm`.
        qk_norm: Whether queries and keys are normalised over the width of a head.
        condition_dim: Width of a condition of all norms in the blocks, such as the embedding of a diffusion time step; `None`
            for no condition. Each norm becomes norm(x) * (1 + scale) + shift, see `AdaptiveNorm`.
        final_norm: Whether the output tokens are normalised.
        project_inputs: Whether the linear layer of `kv_dim` is used even if `kv_dim` is `dim` (IP-Adapter Plus).
        num_embeddings: Number of learned embeddings, one of which is added to each input, such as that of its video frame
            (Flamingo) or of its position; `None` for none. They are selected by `indices` in `forward`.
        bias: Whether the linear layers of the attention have a bias.
        ff_dropout: Dropout probability of the feed-forward.
        attention_dropout: Dropout probability of the attention weights.

    Attributes:
        config: All arguments with their defaults resolved, ready for JSON.
    """

    def __init__(
        self,
        *,
        dim: int,
        kv_dim: int | None = None,
        output_dim: int | None = None,
        num_latent_tokens: int = 64,
        num_latents_mean_pooled: int = 0,
        depth: int = 6,
        heads: int = 8,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        attend_latents: bool = True,
        ff_dim: int | None = None,
        activation: str = "gelu",
        norm: str = "layer_norm",
        norm_eps: float | None = None,
        qk_norm: bool = False,
        condition_dim: int | None = None,
        final_norm: bool = True,
        project_inputs: bool = False,
        num_embeddings: int | None = None,
        bias: bool = False,
        ff_dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        dim, heads = an_int("dim", dim), an_int("heads", heads)
        self.kv_dim = dim if kv_dim is None else an_int("kv_dim", kv_dim)
        self.condition_dim = None if condition_dim is None else an_int("condition_dim", condition_dim)
        project = a_bool("project_inputs", project_inputs) or (a_bool("attend_latents", attend_latents) and self.kv_dim != dim)
        width = dim if project else self.kv_dim
        norm_eps = None if norm_eps is None else a_number("norm_eps", norm_eps)
        self.config: dict[str, Any] = {
            "dim": dim,
            "kv_dim": self.kv_dim,
            "output_dim": None if output_dim is None else an_int("output_dim", output_dim),
            "num_latent_tokens": an_int("num_latent_tokens", num_latent_tokens),
            "num_latents_mean_pooled": an_int("num_latents_mean_pooled", num_latents_mean_pooled, 0),
            "depth": an_int("depth", depth),
            "attend_latents": a_bool("attend_latents", attend_latents),
            "ff_dim": 4 * dim if ff_dim is None else an_int("ff_dim", ff_dim),
            "heads": heads,
            "kv_heads": heads if kv_heads is None else an_int("kv_heads", kv_heads),
            "head_dim": resolve_head_dim("head_dim", dim, heads, head_dim),
            "bias": a_bool("bias", bias),
            "norm": one_of("norm", norm, NORMS),
            "norm_eps": norm_eps,
            "qk_norm": a_bool("qk_norm", qk_norm),
            "activation": one_of("activation", activation, (*ACTIVATIONS, "swiglu")),
            "condition_dim": self.condition_dim,
            "ff_dropout": a_probability("ff_dropout", ff_dropout),
            "attention_dropout": a_probability("attention_dropout", attention_dropout),
            "final_norm": a_bool("final_norm", final_norm),
            "project_inputs": project_inputs,
            "num_embeddings": None if num_embeddings is None else an_int("num_embeddings", num_embeddings),
        }
        self.model_name: str | None = None

        self.embeddings = None if num_embeddings is None else nn.Parameter(torch.empty(num_embeddings, self.kv_dim))
        self.project_inputs = Linear(self.kv_dim, dim) if project else None
        self.latents = nn.Parameter(torch.empty(num_latent_tokens, dim))
        self.mean_pooled_latents = None
        if num_latents_mean_pooled:
            self.mean_pooled_latents = MeanPooledLatents(
                num_latent_tokens=num_latents_mean_pooled, dim=dim, kv_dim=width, norm=norm, norm_eps=norm_eps
            )
        self.blocks = nn.ModuleList(ResamplerBlock(self.config, width) for _ in range(depth))
        self.project_outputs = None if output_dim is None else Linear(dim, output_dim)
        self.norm = make_norm(norm, dim if output_dim is None else output_dim, norm_eps) if final_norm else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise latents and embeddings from a normal distribution (std 0.02) truncated to [-2, 2], as in `Perceiver`."""
        nn.init.trunc_normal_(self.latents, std=0.02)
        if self.embeddings is not None:
            nn.init.trunc_normal_(self.embeddings, std=0.02)

    def forward(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        condition: Tensor | None = None,
        indices: Tensor | None = None,
    ) -> Tensor:
        """Return tokens, `[B, num_latents_mean_pooled + num_latent_tokens, output_dim]`.

        Args:
            inputs: `[B, M, kv_dim]`, floating point.
            mask: `[B, M]`, bool, True where an input may be attended to; masked inputs have no effect, not even NaN.
                A sample with nothing to attend to reads its latents alone, or with `attend_latents=False` nothing: its
                attention is zero before the output projection.
            condition: `[B, condition_dim]`, if the module was built with `condition_dim`.
            indices: Index of the embedding that is added to each input, integers `[B, M]` below `num_embeddings`, if the
                module was built with `num_embeddings`.
        """
        inputs_BMC = checked_inputs(inputs, mask, self.kv_dim, self.latents.dtype)
        condition_BE = self._checked_condition(condition, inputs.shape[0])
        inputs_BMC = self._embedded(inputs_BMC, mask, indices)
        if self.project_inputs is not None:
            inputs_BMC = self.project_inputs(inputs_BMC)
        latents_BND = repeat(self.latents, "N D -> B N D", B=inputs.shape[0])
        if self.mean_pooled_latents is not None:
            latents_BND = torch.cat([self.mean_pooled_latents(inputs_BMC, mask), latents_BND], dim=1)
        for block in self.blocks:
            latents_BND = block(latents_BND, inputs_BMC, mask, condition_BE)
        if self.project_outputs is not None:
            latents_BND = self.project_outputs(latents_BND)
        return latents_BND if self.norm is None else self.norm(latents_BND)

    def set_attention_implementation(self, name: str) -> None:
        """Choose how attention is computed, see `PerceiverBase.set_attention_implementation`."""
        for block in self.blocks:
            cast(ResamplerBlock, block).attention.set_attention_implementation(name)

    def _embedded(self, inputs_BMC: Tensor, mask_BM: Tensor | None, indices_BM: Tensor | None) -> Tensor:
        if self.embeddings is None:
            if indices_BM is not None:
                raise ValueError("indices is given, but num_embeddings=None: leave it out, or build with num_embeddings")
            return inputs_BMC
        shape = list(inputs_BMC.shape[:2])
        if not isinstance(indices_BM, Tensor) or list(indices_BM.shape) != shape:
            given = list(indices_BM.shape) if isinstance(indices_BM, Tensor) else indices_BM
            raise ValueError(f"indices has shape {given}, but {shape} is needed: [B, M], the embedding of each input")
        indices_BM = check_ids("indices", indices_BM, "[B, M]", 2, len(self.embeddings), "num_embeddings", mask_BM)
        return inputs_BMC + F.embedding(indices_BM, self.embeddings)

    def _checked_condition(self, condition: Tensor | None, batch: int) -> Tensor | None:
        if self.condition_dim is None:
            if condition is not None:
                raise ValueError("condition is given, but condition_dim=None: leave it out, or build with condition_dim")
            return None
        shape = list(condition.shape) if isinstance(condition, Tensor) else condition
        if not isinstance(condition, Tensor) or shape != [batch, self.condition_dim]:
            raise ValueError(f"condition has shape {shape}, but {[batch, self.condition_dim]} is needed: [B, condition_dim]")
        return condition.to(self.latents.dtype)
