"""The steps of every format: each tensor finds its place, or one error names it; and they are pure."""

import inspect

import pytest
import torch
from checkpoints.formats.test_resamplers import flamingo
from checkpoints.hostile import their_state
from torch import nn

from perceivers.checkpoints.format import Configuration, Description, Format, Names
from perceivers.checkpoints.formats import FORMATS, perceiver_pytorch, resamplers
from perceivers.checkpoints.source import Source

TABLE = {"0": "first", "1": "second", "1.bias": "second_bias"}
THEIRS = {"first.weight": torch.randn(2, 3), "first.bias": torch.randn(1, 2), "second.weight": torch.randn(2, 2)}
THEIRS |= {"second_bias": torch.randn(2), "copy": THEIRS["first.weight"]}


def toy(**names) -> Format:
    return Format(
        "toy",
        lambda source: True,
        lambda source: Description(weights=source.weights(), detail="of two layers"),
        configure,
        lambda description, configuration: Names(**{"table": TABLE, "copies": {"copy": "first.weight"}, **names}),
    )


def configure(description: Description, *, width: int = 3) -> Configuration:
    if width > 9:
        raise ValueError(f"width={width} is too large")
    return Configuration(lambda width: nn.Sequential(nn.Linear(width, 2), nn.Linear(2, 2)), {"width": width})


def test_every_tensor_is_filled_and_used():
    model, name = toy(orders={"0.weight": [2, 0, 1]}, rows={"1": [1, 0]}).load(Source.of(THEIRS))
    assert name == "toy, of two layers"
    assert not model.training
    assert torch.equal(model[0].weight, THEIRS["first.weight"][:, [2, 0, 1]])
    assert torch.equal(model[0].bias, THEIRS["first.bias"][0])  # rows of one are stored with more axes
    assert torch.equal(model[1].weight, THEIRS["second.weight"][[1, 0]])
    assert torch.equal(model[1].bias, THEIRS["second_bias"][[1, 0]])


BAD = {
    "missing": ({"second_bias": None}, {}, "model.pt: second_bias is missing, which Sequential needs as 1.bias"),
    "left over": ({"more": torch.zeros(1)}, {}, r"model.pt: 1 tensors have no place in Sequential, such as \['more'\]"),
    "shape": ({"second_bias": torch.zeros(3)}, {}, r"model.pt: second_bias has shape \[3\], not \[2\]"),
    "type": ({"second_bias": torch.zeros(2, dtype=torch.int64)}, {}, "not floating point"),
    "copy": ({"copy": torch.zeros(2, 3)}, {}, "model.pt: copy and first.weight are one tensor stored twice, but differ"),
    "argument": ({}, {"width": 10}, "^model.pt: width=10 is too large"),
    "model": ({}, {"width": -1}, "^model.pt: .*negative dimension"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_named(case):
    change, arguments, message = BAD[case]
    state = {name: tensor for name, tensor in {**THEIRS, **change}.items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        toy().load(Source.of(state, "model.pt"), **arguments)


def test_unknown_arguments():
    with pytest.raises(TypeError, match=r"unknown arguments \['depth'\]: toy takes \['width'\]"):
        toy().load(Source.of(THEIRS), depth=3)


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_arguments_of_formats_are_documented_and_keyword_only(form):
    parameters = list(inspect.signature(form.configure).parameters.values())[1:]
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters)
    assert all(f"{parameter.name}: " in form.configure.__doc__ for parameter in parameters)


STATES = [(perceiver_pytorch.FORMAT, their_state(), {"max_freq": 10.0}), (resamplers.FILE, flamingo(), {"heads": 3})]


@pytest.mark.parametrize(("form", "state", "arguments"), STATES, ids=lambda value: getattr(value, "name", ""))
def test_steps_do_not_change_what_they_get(form, state, arguments):
    """The other formats are compared with their projects, which they need, in tests/against_peers."""
    source = Source.of(state)
    assert form.recognises(source)
    description = form.describe(source)
    before = {name: tensor.clone() for name, tensor in description.weights.items()}
    configuration = form.configure(description, **arguments)
    names = form.names(description, configuration)
    assert configuration == form.configure(description, **arguments)
    assert names == form.names(description, configuration)
    assert description.weights.keys() == before.keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in description.weights.items())
    assert source.weights().keys() == state.keys()
