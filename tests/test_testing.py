"""The checks for modules of your own: they accept every module of the library and name the law that a broken module breaks."""

from dataclasses import replace

import pytest
import torch
from inputs.cases import CASES
from inputs.test_conformance import spoil
from torch import nn

from perceivers import PerceiverIO, create_model
from perceivers.factory import example_inputs
from perceivers.inputs import InputModule, Pixels
from perceivers.ops.cross_attention import IMPLEMENTATIONS
from perceivers.ops.tokens import Tokens
from perceivers.outputs import GivenQueries, LearnedQueries, PerInput
from perceivers.testing import check_input, check_model


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_input_keeps_the_laws(case):
    x, mask = case.data(), case.mask()
    check_input(case.module(), x)
    check_input(case.module(), x, mask, hidden=spoil(x, mask) if case.mask_shape else None)


def test_given_queries_keep_the_laws():
    model = model_of(Pixels(data_shape=[2, 3, 4], num_bands=2), GivenQueries(dim=6, num_channels=2))
    check_model(model, torch.randn(2, 2, 3, 4), queries=torch.randn(2, 5, 6))


def test_published_model_keeps_the_laws():
    x = torch.randn_like(example_inputs("perceiver_io_imagenet_fourier_tiny", 2))
    check_model(create_model("perceiver_io_imagenet_fourier_tiny"), x)


def model_of(inputs, outputs, **changes):
    return PerceiverIO(
        inputs=inputs,
        outputs=outputs,
        **{"num_latent_tokens": 4, "dim": 8, "heads": 2, "num_latent_transformers_in_layers": [1], **changes},
    )


class Own(InputModule):
    """A linear projection of features, with a mask; each fault breaks one law."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.linear, self.unused, self.fault = nn.Linear(5, 6), nn.Linear(2, 2) if fault == "unused" else None, fault
        self.num_channels = 7 if fault == "channels" else 6
        self.config = {"fault": "" if fault == "config" else fault}
        self.scale = 2 if fault == "config" else 1

    def forward(self, x, mask=None):
        seen = x if mask is None or self.fault in ("leak", "ignored") else x.masked_fill(~mask.unsqueeze(-1), 0)
        if seen.shape[-1] != 5:
            raise ValueError("x must have 5 channels")
        if self.fault == "batch":
            seen = seen - seen.mean(0) / 2
        read = nn.functional.linear(seen, self.linear.weight, self.linear.bias)
        out = self.scale * (read if self.fault == "read" else self.linear(seen))
        if self.fault == "constant":
            out = out * 0 + 1
        if self.fault == "leak":
            out = out + out.nan_to_num().mean(1, keepdim=True)
        return [Tokens.of(out, None if self.fault == "ignored" else mask)]

    def example(self, batch_size=1):
        if self.fault == "one example":
            batch_size = 1
        return torch.zeros(batch_size, 4, 3 if self.fault == "bad example" else 5)


@pytest.mark.parametrize(
    ("fault", "law"),
    [
        ("channels", "num_channels"),
        ("unused", "gradients reach every parameter: the gradient of unused.weight is missing"),
        ("config", "re-created from its description"),
        ("read", "forward hooks are honoured: linear"),
        ("bad example", "example: the module does not accept its example: x must have 5 channels"),
        ("one example", r"example: example\(2\) does not have two samples"),
        ("batch", "a batch is its samples"),
        ("constant", "samples differ"),
        ("leak", "masked is absent"),
        ("ignored", "masked is absent: the mask has no effect"),
    ],
)
def test_a_broken_input_is_named(fault, law):
    x, mask = torch.randn(2, 9, 5), torch.arange(9) < torch.tensor([[9], [4]])
    rubbish = torch.where(mask.unsqueeze(-1), x, 1e3)
    check_input(Own(), x, mask, hidden=rubbish)
    if fault in ("batch", "constant"):
        mask = rubbish = None
    if fault == "ignored":
        rubbish = x
    with pytest.raises(AssertionError, match=law):
        check_input(Own(fault), x, mask, hidden=rubbish)


class Summed(PerInput):
    """Each result depends on the queries that are decoded with it."""

    def results(self, decoded, encoded):
        return super().results(decoded + decoded.mean(1, keepdim=True), encoded)


class NotFinite(LearnedQueries):
    """All queries are NaN."""

    def queries(self, encoded, sampled):
        queries = super().queries(encoded, sampled)
        return replace(queries, content=0 * queries.content + torch.nan)


class Reading(LearnedQueries):
    """The head's weight is read instead of calling the head."""

    def results(self, decoded, encoded):
        return nn.functional.linear(decoded, self.head.weight, self.head.bias)


def test_a_broken_output_is_named():
    x = torch.randn(2, 2, 3, 4)
    with pytest.raises(AssertionError, match="chunks are the whole"):
        check_model(model_of(Pixels(data_shape=[2, 3, 4], num_bands=2), Summed(dim=12, num_channels=2)), x)
    with pytest.raises(AssertionError, match="forward hooks are honoured: head"):
        check_model(model_of(Pixels(data_shape=[2, 3, 4], num_bands=2), Reading(dim=8, num_channels=2)), x)
    with pytest.raises(AssertionError, match="finite values"):
        check_model(model_of(Pixels(data_shape=[2, 3, 4], num_bands=2), NotFinite(dim=8, num_channels=2)), x)


def refuse(name):
    """An implementation that refuses every call."""
    return replace(IMPLEMENTATIONS[name], why_not=lambda *args: "it refuses everything")


def test_implementations_that_refuse_are_skipped(monkeypatch):
    monkeypatch.setitem(IMPLEMENTATIONS, "absorbed", refuse("absorbed"))
    check_input(Own(), torch.randn(2, 9, 5))
    check_model(
        model_of(Pixels(data_shape=[2, 3, 4], num_bands=2), LearnedQueries(dim=8, num_channels=2)), torch.randn(2, 2, 3, 4)
    )


@pytest.mark.parametrize("name", ["dense", "separable"])
def test_the_main_implementations_may_not_refuse(monkeypatch, name):
    monkeypatch.setitem(IMPLEMENTATIONS, name, refuse(name))
    with pytest.raises(AssertionError, match=rf"implementations agree \({name}\): .* it refuses everything"):
        check_input(Own(), torch.randn(2, 9, 5))


def test_the_module_given_is_left_as_it_is():
    module = Own()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    check_input(module, torch.randn(2, 9, 5))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module.training


def test_bad_input():
    with pytest.raises(ValueError, match="at least two"):
        check_input(Own(), torch.randn(1, 9, 5))
    with pytest.raises(ValueError, match="mask=None"):
        check_input(Own(), torch.randn(2, 9, 5), hidden=torch.randn(2, 9, 5))
