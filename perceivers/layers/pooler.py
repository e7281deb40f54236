"""Attention pooling: learned queries read any number of features into one or several vectors.

Letters: B batch, M inputs, C channels of an input, N queries, D their width.
"""

from typing import Any

import torch
from einops import repeat
from torch import Tensor, nn

from perceivers._checks import a_bool, an_int
from perceivers.layers.attention import CrossAttention
from perceivers.layers.block import BlockConfig
from perceivers.layers.checks import checked_inputs
from perceivers.layers.feed_forward import FeedForward
from perceivers.ops.tokens import Tokens


class Pooler(nn.Module):
    """Attention pooling of features.

        y = attention(queries, norm(inputs))
        out = y + feed_forward(norm(y))

    This is the head of SigLIP, whose encoder ends in the norm of the inputs (multi-head attention pooling: Zhai et al.
    2022, "Scaling Vision Transformers", section 3.2). With `query_residual` it is Perceiver IO's decoder for classification
    (Jaegle et al. 2022, section 3.2): y = queries + attention(norm(queries), norm(inputs)).

    ```python
    import torch
    from perceivers.layers import Pooler

    pooler = Pooler(dim=64, kv_dim=96, heads=4)
    features = torch.randn(2, 300, 96)
    mask = torch.arange(300) < torch.tensor([[300], [200]])  # the second has 200 features; the others have no effect
    vector = pooler(features, mask)  # [2, 64]

    vectors = Pooler(dim=64, kv_dim=96, heads=4, num_queries=5)(features, mask)  # [2, 5, 64]
    ```

    Args:
        dim: Width of queries and result, D.
        kv_dim: Channels of an input, C. Defaults to `dim`.
        num_queries: Number of pooled vectors; `None` for one, and a result without that axis.
        query_residual: Whether queries are layer-normalised and added to what they read.
        norm_inputs: Whether inputs are layer-normalised; False for features whose encoder ends in a norm.
        **settings: Other fields of `BlockConfig`, such as `heads`, `head_dim`, `ff_dim` or `activation`, except `pre_norm`.
    """

    def __init__(
        self,
        *,
        dim: int,
        kv_dim: int | None = None,
        num_queries: int | None = None,
        query_residual: bool = False,
        norm_inputs: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__()
        config = BlockConfig(dim=dim, pre_norm=True, **settings)
        an_int("ff_dim", config.hidden_dim)
        self.kv_dim = config.dim if kv_dim is None else an_int("kv_dim", kv_dim)
        self.num_queries = None if num_queries is None else an_int("num_queries", num_queries)
        self.queries = nn.Parameter(torch.empty(self.num_queries or 1, config.dim))
        self.queries_norm = nn.LayerNorm(config.dim) if a_bool("query_residual", query_residual) else None
        self.attention = CrossAttention(kv_dim=self.kv_dim, norm_inputs=norm_inputs, **config.attention)
        self.feed_forward_norm = nn.LayerNorm(config.dim)
        self.feed_forward = FeedForward(**config.feed_forward)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the queries from a normal distribution (std 0.02) truncated to [-2, 2], as the latents of `Perceiver`."""
        nn.init.trunc_normal_(self.queries, std=0.02)

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return pooled vectors, `[B, dim]`, or `[B, num_queries, dim]` if `num_queries` is given.

        Args:
            inputs: `[B, M, kv_dim]`, floating point.
            mask: `[B, M]`, bool, True where an input may be attended to; masked inputs have no effect, not even NaN.
                For a sample with nothing to attend to, the attention is zero before its output projection.
        """
        inputs_BMC = checked_inputs(inputs, mask, self.kv_dim, self.queries.dtype)
        queries_BND = repeat(self.queries, "N D -> B N D", B=inputs.shape[0])
        read = [Tokens.of(inputs_BMC, mask)]
        if self.queries_norm is None:
            pooled_BND = self.attention(queries_BND, read)
        else:
            pooled_BND = queries_BND + self.attention(self.queries_norm(queries_BND), read)
        pooled_BND = pooled_BND + self.feed_forward(self.feed_forward_norm(pooled_BND))
        return pooled_BND.squeeze(1) if self.num_queries is None else pooled_BND
