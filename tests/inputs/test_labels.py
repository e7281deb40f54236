"""Labels, written out."""

import torch

from perceivers.inputs import Labels


def test_labels():
    [group] = Labels(num_classes=3)(torch.tensor([2, 0]))
    assert group.encoded().tolist() == [[[0, 0, 1]], [[1, 0, 0]]]
