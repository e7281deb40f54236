"""Attention among the elements of a set through latents; the cost is linear in the number of elements.

Letters: B batch, M elements of the set, D their width, N latents (the paper's inducing points).
"""

from typing import Any

import torch
from einops import repeat
from torch import Tensor, nn

from perceivers._checks import an_int
from perceivers.layers.block import BlockConfig, CrossAttentionBlock
from perceivers.layers.checks import checked_inputs
from perceivers.ops.tokens import Tokens


class InducedSetAttention(nn.Module):
    """Induced set attention block (ISAB) of the Set Transformer (Lee et al. 2019, section 3.1).

        H = block(latents, X)        block(X, Y) = norm(Z + feed_forward(Z))
        out = block'(X, H)                        Z = norm(X + attention(X, Y))

    Permuting the set permutes the result in the same way. Departure from the paper's code: attention has an output projection,
    as in the paper's text, and the residual carries the stream that is not projected.

    ```python
    import torch
    from perceivers.layers import InducedSetAttention

    block = InducedSetAttention(dim=64, num_latent_tokens=16, heads=4)
    points = torch.randn(2, 1000, 64)
    mask = torch.arange(1000) < torch.tensor([[1000], [700]])  # the second set has 700 elements
    points = block(points, mask)  # [2, 1000, 64]
    ```

    Args:
        dim: Width of the elements and of the latents, D.
        num_latent_tokens: Number of latents, N.
        **settings: Other fields of `BlockConfig`; here `heads` defaults to 4, `ff_dim` to `dim`, and `pre_norm` to False, as
            published.
    """

    def __init__(self, *, dim: int, num_latent_tokens: int, **settings: Any) -> None:
        super().__init__()
        config = BlockConfig(dim=dim, **{"heads": 4, "ff_dim_scale": 1, "pre_norm": False, **settings})
        an_int("ff_dim", config.hidden_dim)
        self.dim = config.dim
        self.latents = nn.Parameter(torch.empty(an_int("num_latent_tokens", num_latent_tokens), self.dim))
        self.read = CrossAttentionBlock(config, kv_dim=self.dim)
        self.write = CrossAttentionBlock(config, kv_dim=self.dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the latents from a normal distribution (std 0.02) truncated to [-2, 2], as in `Perceiver`."""
        nn.init.trunc_normal_(self.latents, std=0.02)

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return new elements, `[B, M, dim]`, zero where the mask is False.

        Args:
            inputs: `[B, M, dim]`, floating point.
            mask: `[B, M]`, bool, True where there is an element; masked inputs have no effect, not even NaN.
        """
        inputs_BMD = checked_inputs(inputs, mask, self.dim, self.latents.dtype)
        latents_BND = repeat(self.latents, "N D -> B N D", B=inputs.shape[0])
        latents_BND = self.read(latents_BND, [Tokens.of(inputs_BMD, mask)])
        out_BMD = self.write(inputs_BMD, [Tokens.of(latents_BND)])
        return out_BMD if mask is None else out_BMD.masked_fill(~mask.unsqueeze(-1), 0)
