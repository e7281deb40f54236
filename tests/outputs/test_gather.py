"""Gathered inputs are those of the encoded array."""

import torch

from perceivers import inputs
from perceivers.ops.tokens import Tokens
from perceivers.outputs.gather import gather_tokens, unravel


def test_rows_of_a_grid():
    i = torch.arange(24).reshape(4, 6)
    rows = torch.tensor([5, 23, 0])
    assert torch.equal(i[tuple(unravel(rows, [4, 6]))], rows)
    (tokens,) = inputs.Pixels(data_shape=[2, 4, 6], num_bands=2)(torch.randn(2, 2, 4, 6), torch.rand(2, 4, 6) > 0.5)
    for chosen in (rows, torch.stack([rows, rows + 0 * 1])):
        torch.testing.assert_close(gather_tokens(tokens, chosen).encoded(), tokens.encoded()[:, rows])
    again = gather_tokens(gather_tokens(tokens, rows), torch.tensor([2, 1]))  # of a list of indices
    torch.testing.assert_close(again.encoded(), tokens.encoded()[:, [0, 23]])
    plain = Tokens.of(torch.randn(2, 5, 3))
    torch.testing.assert_close(gather_tokens(plain, torch.tensor([4])).encoded(), plain.encoded()[:, 4:])
