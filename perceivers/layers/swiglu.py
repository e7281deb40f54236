"""The gated MLP of Llama-like models and of Idefics2's resampler."""

from torch import Tensor, nn
from torch.nn import functional as F

from perceivers._checks import a_probability, an_int
from perceivers.layers.linear import Linear


class SwiGLU(nn.Module):
    """Linear to values and gates, values * silu(gates), dropout, linear, dropout; no biases (Shazeer 2020, section 2).

    Args:
        dim: Width of input and output.
        hidden_dim: Width between the linear layers.
        dropout: Probability of dropping an element after the gate and after the second linear layer.
    """

    def __init__(self, *, dim: int, hidden_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = a_probability("dropout", dropout)
        dim, hidden_dim = an_int("dim", dim), an_int("hidden_dim", hidden_dim)
        self.linear_in = Linear(dim, 2 * hidden_dim, bias=False)
        self.linear_out = Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the MLP to `[..., dim]`."""
        values, gates = self.linear_in(x).chunk(2, dim=-1)
        x = F.dropout(values * F.silu(gates), self.dropout, self.training)
        return F.dropout(self.linear_out(x), self.dropout, self.training)
