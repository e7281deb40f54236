"""Data of a run: splits, targets, and an order that is a function of how many batches were taken."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="the training extra is not installed")
import training_material as material
from perceivers.data import Arrays
from perceivers.training.datamodule import PathData, ResumableLoader, ShuffledBatches, prepare_targets, seed_of

pytestmark = [pytest.mark.usefixtures("elsewhere"), pytest.mark.filterwarnings("default")]


def test_the_order_is_a_function_of_how_many_batches_were_taken():
    whole = ShuffledBatches(23, 4, seed=5)
    epochs = []
    for _ in range(3):
        for batch in whole:
            epochs.append(batch)
            whole.consumed += 1
    assert len(epochs) == 15
    assert epochs[:5] != epochs[5:10]
    for consumed in range(15):
        rest = ShuffledBatches(23, 4, seed=5)
        rest.consumed = consumed
        assert next(iter(rest)) == epochs[consumed]
    shares = [ShuffledBatches(23, 4, seed=5, rank=rank, world_size=2) for rank in (0, 1)]
    assert [sorted(a + b) for a, b in zip(*shares, strict=True)] == [sorted(batch) for batch in epochs[:5]]


def test_a_loader_resumes():
    """After any number of batches, also where an epoch ends."""
    batches = lambda: ShuffledBatches(10, 3, seed=1)  # noqa: E731
    whole = ResumableLoader(range(10), batch_sampler=batches())
    taken = [[int(i) for i in batch] for _ in range(2) for batch in whole]
    for consumed in range(6):
        loader = ResumableLoader(range(10), batch_sampler=batches())
        loader.load_state_dict({"consumed": consumed})
        assert next(iter(loader)).tolist() == taken[consumed]
        assert loader.state_dict() == {"consumed": consumed + 1}


def test_shares_that_are_not_equal():
    with pytest.raises(ValueError, match="batch_size=5 must be a multiple of the 2 processes"):
        ShuffledBatches(23, 5, seed=0, world_size=2)


def test_seeds_of_several_numbers_differ():
    seeds = {seed_of(*numbers) for numbers in itertools.product(range(4), repeat=3)}
    assert len(seeds) == 64
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_share_of_each_class_is_split_off():
    np.savez("x.npz", x=np.zeros((100, 2, 9)), y=[0] * 80 + [1] * 20)
    data, other = PathData("x.npz"), PathData("x.npz", seed=1)
    targets = data.found.splits["train"].targets
    assert np.bincount(targets[data.rows["validation"]]).tolist() == [8, 2]
    assert sorted([*data.rows["train"], *data.rows["validation"]]) == list(range(100))
    assert data.rows["validation"].tolist() != other.rows["validation"].tolist()
    assert data.batch_size == 11
    assert len(data.examples("test")) == 10  # those to validate


def test_targets():
    arrays = Arrays(
        labels=["a", "b"], task="regression", target_mean=[1.0, 2.0], target_std=[2.0, 4.0], data_shape=[1], mean=[0], std=[1]
    )
    prepared = prepare_targets(np.array([[3.0, -2.0]]), arrays)
    torch.testing.assert_close(prepared, torch.tensor([[1.0, -1.0]]))
    np.savez("x.npz", x=np.zeros((50, 2, 9)), y=np.linspace(0, 1, 50))
    data = PathData("x.npz")
    standardised = torch.stack([target for _, _, target in data.examples("train")])
    assert float(standardised.mean()) == pytest.approx(0, abs=1e-6)
    assert float(standardised.std(unbiased=False)) == pytest.approx(1)


def test_the_sizes_of_another_run():
    material.images(Path("digits"), 40)
    sized = PathData("digits", image_size=6)
    description = sized.preprocessing.describe()
    assert PathData("digits", preprocessing=description).preprocessing == sized.preprocessing
    with pytest.raises(ValueError, match=r"has the labels \['0', '1'\], but the preprocessing \['a', 'b'\]"):
        PathData("digits", preprocessing={**description, "labels": ["a", "b"]})


@pytest.mark.parametrize(
    ("arguments", "message"), [({"validation": 1.5}, "validation=1.5"), ({"batch_size": 0}, "batch_size=0 must be at least 1")]
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        PathData(str(material.arrays(Path("x.npz"))), **arguments)
    np.savez("one.npz", x=np.zeros((1, 2, 9)), y=[0.5])
    with pytest.raises(ValueError, match="there is one sample"):
        PathData("one.npz")
