"""Cross-attention whose heads share keys and values in groups, and whose queries and keys may be normalised.

Letters:
    B  batch                        N  latents (queries)               D  width of the latents
    H  heads of keys and values     M  inputs                          C  channels of an encoded input
    G  heads of queries for each    Q  queries of a group, G * N       K  width of a head (V = K)
"""

from collections.abc import Sequence

from einops import rearrange
from torch import Tensor, nn

from perceivers._checks import a_bool, a_probability, an_int, one_of
from perceivers.layers.attention import resolve_head_dim
from perceivers.layers.linear import Linear
from perceivers.layers.norm import make_norm
from perceivers.ops.cross_attention import CHOICES, cross_attention
from perceivers.ops.cross_attention.call import Call
from perceivers.ops.cross_attention.dense import attend
from perceivers.ops.tokens import Tokens


class GroupedCrossAttention(nn.Module):
    """Attention from latents to inputs, without norm of either, residual or feed-forward.

    The heads of a group read the same keys and values (grouped-query attention, Ainslie et al. 2023, section 2.2), so that
    to the operation they are one head with G times as many queries: every implementation takes them, and no key is
    repeated. Normalised keys are no linear map of the inputs; they have to be made, and only fused attention is left.

    Args:
        dim: Width of the latents, D.
        kv_dim: Channels of an input, C.
        heads: Heads of queries, H * G.
        kv_heads: Heads of keys and values, H, a divisor of `heads`; `None` for `heads`.
        head_dim: Width of a head; `None` for `dim // heads`.
        bias: Whether the four linear maps have a bias.
        qk_norm: `None`, or the norm over the width of a head that queries and keys pass, "layer_norm" or "rms_norm"
            (Dehghani et al. 2023, section 2); its weights are shared among heads.
        norm_eps: Added to the variance in that norm; `None` for what is usual.
        dropout: Probability of dropping an attention weight in training.

    Raises:
        ValueError: If an argument is out of range; the message names it.
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
        """Maps latents `[B, N, D]` and token groups that share one softmax to `[B, N, D]`.

        A sample with nothing to attend to gets zero before the output projection.
        """
        q_BHGNK = rearrange(self.to_q(latents_BND), "B N (H G K) -> B H G N K", H=self.kv_heads, K=self.head_dim)
        out_BHQK = self._attend(q_BHGNK.flatten(2, 3), inputs, self.dropout if self.training else 0.0)
        return self.to_out(rearrange(out_BHQK, "B H (G N) K -> B N (H G K)", N=latents_BND.shape[1]))

    def set_attention_implementation(self, name: str) -> None:
        """Chooses how the attention is computed; with `qk_norm` only "auto" is possible."""
        one_of("attention_implementation", name, CHOICES)
        if self.k_norm is not None and name != "auto":
            raise ValueError(
                f"attention_implementation={name!r} cannot do this: qk_norm normalises keys after their projection; use 'auto'"
            )
        self.attention_implementation = name

    def _attend(self, q_BHQK: Tensor, inputs: Sequence[Tokens], dropout_p: float) -> Tensor:
        maps = (self.to_k.weight, self.to_k.bias, self.to_v.weight, self.to_v.bias)
        if self.q_norm is None or self.k_norm is None:
            how = self.attention_implementation
            return cross_attention(q_BHQK, inputs, None, *maps, scale=self.scale, dropout_p=dropout_p, implementation=how)
        call = Call(q_BHQK, inputs, None, *maps, self.scale, dropout_p)
        k_BHMK, v_BHMK = call.keys_and_values(call.encoded())
        q_BHQK, k_BHMK = self.q_norm(q_BHQK).to(v_BHMK.dtype), self.k_norm(k_BHMK).to(v_BHMK.dtype)
        return attend(q_BHQK, k_BHMK, v_BHMK, call.mask(), scale=self.scale, dropout_p=dropout_p)[0]
