"""The two-layer MLPs after every attention."""

from torch import Tensor, nn
from torch.nn import functional as F

from perceivers._checks import a_probability, an_int, one_of
from perceivers.layers.linear import Linear

ACTIVATIONS = ("gelu", "gelu_tanh", "geglu", "relu")


class FeedForward(nn.Module):
    """Linear, activation, dropout, linear, dropout.

    Args:
        dim: Width of input and output.
        hidden_dim: Width between the linear layers.
        activation: "gelu" (exact), "gelu_tanh" (the approximation DeepMind's code uses), "geglu" (the first linear layer
            makes values and gates, value * gelu(gate); Shazeer 2020) or "relu".
        dropout: Probability of dropping an element after the activation and after the second linear layer.
    """

    def __init__(self, *, dim: int, hidden_dim: int, activation: str = "gelu", dropout: float = 0.0) -> None:
        super().__init__()
        self.activation = one_of("activation", activation, ACTIVATIONS)
        self.dropout = a_probability("dropout", dropout)
        dim, hidden_dim = an_int("dim", dim), an_int("hidden_dim", hidden_dim)
        self.linear_in = Linear(dim, hidden_dim * (2 if activation == "geglu" else 1))
        self.linear_out = Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the MLP to `[..., dim]`."""
        x = self.linear_in(x)
        if self.activation == "geglu":
            values, gates = x.chunk(2, dim=-1)
            x = values * F.gelu(gates)
        elif self.activation == "relu":
            x = F.relu(x)
        else:
            x = F.gelu(x, approximate="tanh" if self.activation == "gelu_tanh" else "none")
        x = F.dropout(x, self.dropout, self.training)
        return F.dropout(self.linear_out(x), self.dropout, self.training)


class SwiGLU(nn.Module):
    """The gated MLP of Llama-like models and of Idefics2's resampler (Shazeer 2020, section 2).

    Linear to values and gates, values * silu(gates), dropout, linear, dropout; without biases.

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
