"""What all input modules share: the registry, examples, and linear projections of content."""

import torch

from accuracy import assert_varies
from perceivers.inputs import (
    InputModule,
    Labels,
)


def test_kinds_by_name():
    module = InputModule.create({"kind": "Labels", "num_classes": 3})
    assert isinstance(module, Labels)
    assert InputModule.create(module) is module
    assert_varies(module(torch.tensor([0, 1]))[0].encoded())
