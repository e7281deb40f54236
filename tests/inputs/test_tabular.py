"""Tabular, written out."""

import math

import pytest
import torch
from inputs.definitions import close

from accuracy import draw_parameters
from perceivers.inputs import Tabular


@pytest.mark.parametrize("missing", ["mask", "token"])
def test_tabular(missing):
    module = draw_parameters(Tabular(num_numeric=2, categories=[3, 2], dim=4, missing=missing))
    x = {"numeric": torch.tensor([[2.0, math.nan]]), "categorical": torch.tensor([[1, -1]])}
    [group] = module(x)
    wanted = [module.slopes[0] * 2 + module.offsets[0], None, module.embeddings.weight[1], None]
    if missing == "token":
        assert group.mask is None
        wanted[1], wanted[3] = module.missing_tokens[1], module.missing_tokens[3]
    else:
        assert group.mask.tolist() == [[True, False, True, False]]
    for m, column in enumerate(wanted):
        if column is not None:
            close(group.encoded()[0, m], column)
    x["categorical"][0, 1] = 1
    close(module(x)[0].encoded()[0, 3], module.embeddings.weight[3 + 1])
    mask = torch.tensor([[True, False, False, True]])
    assert module(x, mask)[0].mask.tolist() == [[True, False, False, True]]
