"""Cross-attention whose heads share keys and values in groups, and whose queries and keys may be normalised.

Letters:
    B  batch                        N  latents (queries)               D  width of the latents
    H  heads of keys and values     M  inputs                          C  channels of an encoded input
    G  heads of queries for each    Q  queries of a group, G * N       K  width of a head (V = K)
"""

from collections.abc import Sequence
from typing import Any

from einops import rearrange
from torch import Tensor, nn

from perceivers._checks import a_bool, a_probability, an_int, one_of
from perceivers.layers.attention import resolve_head_dim
from perceivers.layers.linear import Linear
from perceivers.layers.norm import make_norm
from perceivers.layers.projections import key_value_projections, parameter_dtype
from perceivers.ops.cross_attention import OpaqueProjections, choices, cross_attention
from perceivers.ops.tokens import Tokens


class GroupedCrossAttention(nn.Module):
    """Attention from latents to inputs, without norm of either, residual or feed-forward.

    The heads of a group attend to the same keys and values (grouped-query attention, Ainslie et al. 2023, section 2.2), so
    to the operation they are one head with G times as many queries: every implementation can compute them, and no key is
    repeated. Normalised keys are not a linear projection of the inputs; they have to be made, by "dense" or "reference".

    Args:
        dim: Width of the latents, D.
        kv_dim: Channels of an input, C.
        heads: Heads of queries, H * G.
        kv_heads: Heads of keys and values, H, a divisor of `heads`. Defaults to `heads`.
        head_dim: Width of a head. Defaults to `dim // heads`.
        bias: Whether the four linear layers have a bias.
        qk_norm: The norm of queries and keys over the width of a head, "layer_norm" or "rms_norm" (Dehghani et al. 2023,
            section 2), or `None`; its weights are shared among heads.
        norm_eps: Added to the variance in that norm. Defaults to the usual value for the kind.
        dropout: Probability of dropping an attention weight in training.
    """

    def __init__(
        self,
        *,
        dim: int,
        kv_dim: int,
        heads: int = 8,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        bias: bool = True,
        qk_norm: str | None = None,
        norm_eps: float | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        dim, kv_dim, heads = an_int("dim", dim), an_int("kv_dim", kv_dim), an_int("heads", heads)
        self.kv_heads = heads if kv_heads is None else an_int("kv_heads", kv_heads)
        if heads % self.kv_heads:
            raise ValueError(f"kv_heads={self.kv_heads} does not divide heads={heads}: choose one that does")
        self.head_dim = head_dim = resolve_head_dim("head_dim", dim, heads, head_dim)
        self.dropout = a_probability("dropout", dropout)
        self.scale = head_dim**-0.5
        self.attention_implementation = "auto"

        self.to_q = Linear(dim, heads * head_dim, bias=a_bool("bias", bias))
        self.to_k = Linear(kv_dim, self.kv_heads * head_dim, bias=bias)
        self.to_v = Linear(kv_dim, self.kv_heads * head_dim, bias=bias)
        self.to_out = Linear(heads * head_dim, dim, bias=bias)
        self.q_norm = None if qk_norm is None else make_norm(qk_norm, head_dim, norm_eps)
        self.k_norm = None if qk_norm is None else make_norm(qk_norm, head_dim, norm_eps)

    def forward(self, latents_BND: Tensor, inputs: Sequence[Tokens]) -> Tensor:
        """Attend from latents `[B, N, D]` to token groups that share one softmax; returns `[B, N, D]`.

        A sample with nothing to attend to gets zero before the output projection.
        """
        q_BHGNK = rearrange(self.to_q(latents_BND), "B N (H G K) -> B H G N K", H=self.kv_heads, K=self.head_dim)
        q_BHQK = q_BHGNK.flatten(2, 3)
        out_BHQK = cross_attention(
            q_BHQK if self.q_norm is None else self.q_norm(q_BHQK),
            inputs,
            **self._projections(),
            scale=self.scale,
            dropout_p=self.dropout if self.training else 0.0,
            implementation=self.attention_implementation,
        )
        return self.to_out(rearrange(out_BHQK, "B H (G N) K -> B N (H G K)", N=latents_BND.shape[1]))

    def set_attention_implementation(self, name: str) -> None:
        """Set how the attention is computed: "auto", or a name; with `qk_norm` only implementations that make keys."""
        self.attention_implementation = one_of("attention_implementation", name, choices())

    def _projections(self) -> dict[str, Any]:
        width = self.kv_heads * self.head_dim
        if self.k_norm is None:
            return key_value_projections(None, self.to_k, self.to_v, self.kv_heads, (width, width))
        reason = "qk_norm normalises keys after their projection"
        arguments: dict[str, Any] = dict.fromkeys(("norm", "w_k", "b_k", "w_v", "b_v"))
        return arguments | {
            "project": OpaqueProjections(self._normalised_keys, reason, width, width, parameter_dtype(self.to_k))
        }

    def _normalised_keys(self, x_BMC: Tensor) -> tuple[Tensor, Tensor]:
        assert self.k_norm is not None
        k_BHMK, v_BHMK = (rearrange(to(x_BMC), "B M (H K) -> B H M K", H=self.kv_heads) for to in (self.to_k, self.to_v))
        return self.k_norm(k_BHMK).to(v_BHMK.dtype), v_BHMK
