import numpy as np
import pytest
import torch

from perceivers.data import Sizes, Table

COMMON = {"labels": ["a", "b"], "task": "classification"}
ROWS = [{"size": 1.0, "colour": "red", "same": 3, "word": "w", "name": f"n{i}", "late": None} for i in range(300)]
ROWS[0] |= {"size": 3.0, "colour": "blue"}
ROWS[1] |= {"size": None, "colour": ""}


def test_columns_are_chosen():
    """Constants and names of rows are left out; statistics skip what is missing."""
    table = Table.choose(ROWS, Sizes(), **COMMON)
    assert table.columns == ["size", "colour"]
    known = np.array([3.0, *[1.0] * 298])
    assert table.mean == pytest.approx([known.mean()])
    assert table.std == pytest.approx([known.std()])
    assert table.categorical == {"colour": ["blue", "red"]}
    with pytest.raises(ValueError, match=r"none of the columns \['a'\] differs"):
        Table.choose([{"a": 1}, {"a": 1}], Sizes(), **COMMON)


def test_rows():
    table = Table(**COMMON, numeric=["size"], mean=[1.0], std=[2.0], categorical={"colour": ["blue", "red"]})
    x, mask = table({"size": 5, "colour": "red", "other": 1})
    assert mask is None
    assert x["numeric"].tolist() == [2.0]
    assert x["categorical"].tolist() == [1]
    x, _ = table({"size": "", "colour": "green"})
    assert x["numeric"].isnan().all()
    assert x["categorical"].tolist() == [-1]
    known = table.known({name: value.unsqueeze(0) for name, value in x.items()}, None)
    assert known.tolist() == [[False, False]]
    for row, message in (
        ({"size": 1}, r"lacks the columns \['colour'\]"),
        ({"size": "x", "colour": "red"}, "'x', which is not a number"),
        ({"size": float("inf"), "colour": "red"}, "inf"),
    ):
        with pytest.raises(ValueError, match=message):
            table(row)


def test_vectors_are_rows():
    x = np.arange(6).reshape(2, 3)
    assert list(Table.from_array(x)) == [{"0": 0, "1": 1, "2": 2}, {"0": 3, "1": 4, "2": 5}]


def test_the_loss_of_columns():
    """Squared error of a number; cross-entropy over the names of that column alone, though others have more."""
    table = Table(**COMMON, numeric=["n"], mean=[0.0], std=[1.0], categorical={"u": ["a", "b"], "v": list("abcd")})
    assert table.target_channels(8) == 4
    x = {"numeric": torch.tensor([[0.5]]), "categorical": torch.tensor([[1, 2]])}
    predicted = torch.tensor([[[2.0, 0, 0, 0], [0, 0, 9, 9], [0, 0, 0, 0]]])
    loss = table.reconstruction_loss(predicted, x, None, None, torch.tensor([[0, 1, 2]]))
    torch.testing.assert_close(loss, torch.tensor([[2.25, np.log(2), np.log(4)]], dtype=torch.float32))
