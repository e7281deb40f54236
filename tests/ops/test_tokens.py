"""Token groups: what their parts amount to."""

import pytest
import torch

from accuracy import IMPLEMENTATIONS
from perceivers.ops.cross_attention import cross_attention
from perceivers.ops.tokens import Positions, Tokens


@pytest.mark.parametrize("width", [2, 7, 10])
def test_constants_of_any_width(width):
    """The bias of a linear layer is as wide as the content alone; a modality's code is wider than everything."""
    content, table, constant = torch.randn(2, 3, 5), torch.randn(5, 4), torch.randn(width)
    tokens = Tokens(content, Positions([table]), constant=constant)
    wanted = torch.zeros(2, 5, max(7, width))
    wanted[..., :3] += content.mT
    wanted[..., 3:7] += table
    wanted[..., :width] += constant
    assert tokens.num_channels == max(7, width)
    torch.testing.assert_close(tokens.encoded(), wanted)


@pytest.mark.parametrize("width", [2, 7, 10])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_attention_to_constants_of_any_width(implementation, width):
    tokens = Tokens(torch.randn(2, 3, 5), Positions([torch.randn(5, 4)]), constant=torch.randn(width))
    q, w_k, w_v = torch.randn(2, 1, 4, 6), torch.randn(6, tokens.num_channels), torch.randn(8, tokens.num_channels)
    arguments = (q, [tokens], None, w_k, None, w_v, None)
    wanted = cross_attention(q, [Tokens.of(tokens.encoded())], *arguments[2:], scale=0.3, implementation="reference")
    torch.testing.assert_close(cross_attention(*arguments, scale=0.3, implementation=implementation), wanted)
