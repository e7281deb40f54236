"""What "auto" chooses."""

import pytest
import torch

from accuracy import Case
from perceivers.ops.cross_attention.cost import choose, costs


def chosen(dtype=torch.float32, **kwargs) -> str:
    case = Case(batch=1, **kwargs)
    return choose(case.make({name: leaf.to(dtype) for name, leaf in case.leaves.items()}))


@pytest.mark.parametrize(
    ("wanted", "sizes"),
    [
        ("separable", {"grids": ((60, 70),), "content": 3, "table": 65, "k": 133, "v": 133, "queries": 128}),
        ("absorbed", {"grids": ((4200,),), "content": 3, "table": 33, "k": 133, "v": 133, "queries": 128}),  # one axis
        ("absorbed", {"grids": ((14, 14),), "content": 16, "table": 17, "k": 128, "v": 128, "queries": 16}),  # small pictures
        ("absorbed", {"grids": ((60, 70),), "content": 64, "table": 3, "k": 128, "v": 128, "queries": 128}),  # many channels
        ("dense", {"grids": ((14, 14),), "content": 64, "table": 65, "k": 16, "v": 16, "queries": 512, "heads": 8}),
    ],
)
def test_choice(wanted, sizes):
    assert chosen(**sizes) == wanted
    assert chosen(torch.bfloat16, **sizes) == "dense"
    with torch.autocast("cpu"):
        assert chosen(**sizes) == "dense"


def test_only_what_can_do_the_call():
    case = Case(grids=((60, 70),), k=133, v=133)
    assert costs(case.make(case.leaves)).keys() == {"dense", "absorbed", "separable"}
    assert costs(case.make(case.leaves, dropout_p=0.1)).keys() == {"dense"}
    line = Case(grids=((63,),))
    assert costs(line.make(line.leaves)).keys() == {"dense", "absorbed", "separable"}
