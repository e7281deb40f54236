"""Self-attention of the latents, by PyTorch's own kernel.

Letters: B batch, H heads, N latents, K width of queries and keys, V width of values.
"""

from torch import Tensor
from torch.nn import functional as F


def self_attention(q_BHNK: Tensor, k_BHNK: Tensor, v_BHNV: Tensor, *, scale: float, dropout_p: float = 0.0) -> Tensor:
    """Return softmax(scale q k^T) v, `[B, H, N, V]`, with dropout on the probabilities."""
    return F.scaled_dot_product_attention(q_BHNK, k_BHNK, v_BHNV, dropout_p=dropout_p, scale=scale)
