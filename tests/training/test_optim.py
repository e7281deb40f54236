import math

import pytest
import torch
from torch import nn

pytest.importorskip("lightning", reason="the training extra is not installed")
from perceivers.training.optim import Lamb, OptimizerConfig, learning_rate_factor, parameter_groups

# Three steps of optax 0.2.8's lamb(0.01, b1=0.9, b2=0.999, eps=1e-6, weight_decay=0.1) in float64, "a" alone with decay.
START = {"a": [[0.5, -1.0, 2.0], [0.25, 0.0, -3.0]], "b": [0.1, -0.2], "c": [0.0, 0.0]}
OPTAX = [
    {
        "a": [
            [0.4826519818977994, -1.0148697888083094, 2.013217608409513],
            [0.24958694801615852, -0.01652204630956636, -2.9785213629282965],
        ],
        "b": [0.09841925620770621, -0.19841846623079853],
        "c": [0.0, 0.0],
    },
    {
        "a": [
            [0.4652309374204771, -1.0295125763767743, 2.024348047466804],
            [0.23680563227397922, -0.03240716224422677, -2.9593505033479324],
        ],
        "b": [0.09685366402211298, -0.19685176750998604],
        "c": [-0.0074413577146320645, 0.0074413471936240596],
    },
    {
        "a": [
            [0.446714791948026, -1.045133244737049, 2.03267460184747],
            [0.2217360230241666, -0.048951162317071986, -2.9431659780327157],
        ],
        "b": [0.09840449933589293, -0.198403551931278],
        "c": [-0.007515771267982031, 0.00751576068935668],
    },
]


def test_lamb_makes_optaxs_steps():
    parameters = {name: nn.Parameter(torch.tensor(value, dtype=torch.float64)) for name, value in START.items()}
    optimizer = Lamb(
        [
            {"params": [parameters["a"]], "weight_decay": 0.1},
            {"params": [parameters["b"], parameters["c"]], "weight_decay": 0.0},
        ],
        lr=0.01,
    )
    gradient = torch.tensor([[0.1, 0.2, -0.3], [0.0, 0.5, -0.25]], dtype=torch.float64)
    for k, wanted in enumerate(OPTAX):
        parameters["a"].grad = gradient / (k + 1) + 0.05 * k
        parameters["b"].grad = torch.tensor([1e-3, -2e-3], dtype=torch.float64) * (1 - k)
        parameters["c"].grad = torch.tensor([1.0, -0.5], dtype=torch.float64) * k
        optimizer.step()
        for name, parameter in parameters.items():
            torch.testing.assert_close(parameter.data, torch.tensor(wanted[name], dtype=torch.float64), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("arguments", [{"lr": -1.0}, {"eps": math.inf}, {"weight_decay": -0.1}, {"betas": (0.9, 1.0)}])
def test_wrong_arguments_of_lamb(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        Lamb([nn.Parameter(torch.zeros(2))], **arguments)


class Model(nn.Module):
    """A model of two layers with latents, which knows what does not decay and how deep its parameters are."""

    def __init__(self):
        super().__init__()
        self.latents = nn.Parameter(torch.zeros(2, 3))
        self.layers = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        self.head = nn.Linear(3, 2)

    def no_weight_decay(self):
        return {"latents"}

    def parameter_depths(self):
        depths = {"latents": 0, "layers": 0, "head": 3}
        names = dict(self.named_parameters())
        return {n: int(n[7]) + 1 if n.startswith("layers") else depths[n.split(".")[0]] for n in names}


def settings(model, **arguments):
    """Learning rate and weight decay by the name of each parameter."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, **{"lr": 1.0, "weight_decay": 0.5, **arguments})
    return {names[parameter]: (group["lr"], group["weight_decay"]) for group in groups for parameter in group["params"]}


def test_vectors_and_what_the_model_names_do_not_decay():
    plain = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    assert {name: decay for name, (_, decay) in settings(plain).items()} == {
        "0.weight": 0.5,
        "0.bias": 0.0,
        "1.weight": 0.0,
        "1.bias": 0.0,
    }
    assert settings(Model())["latents"] == (1.0, 0.0)
    assert settings(Model())["head.weight"] == (1.0, 0.5)
    frozen = Model()
    frozen.head.requires_grad_(False)
    assert not any(name.startswith("head") for name in settings(frozen))


def test_layer_decay():
    found = settings(Model(), lr=0.1, layer_decay=0.5)
    rates = {name: pytest.approx(0.1 * 0.5**below) for name, below in [("latents", 3), ("head.weight", 0), ("head.bias", 0)]}
    rates |= {f"layers.{i}.{kind}": pytest.approx(0.1 * 0.5 ** (2 - i)) for i in (0, 1) for kind in ("weight", "bias")}
    assert {name: rate for name, (rate, _) in found.items()} == rates
    assert found["latents"][1] == found["layers.0.bias"][1] == 0
    with pytest.raises(ValueError, match=r"layer_decay=0\.5 needs a model with the method parameter_depths"):
        parameter_groups(nn.Linear(2, 2), lr=1.0, weight_decay=0.0, layer_decay=0.5)


@pytest.mark.parametrize("warmup_steps", [0.25, 2.0])
@pytest.mark.parametrize("optimizer", ["adamw", "lamb"])
def test_the_optimiser_and_its_schedule(optimizer, warmup_steps):
    """A share of the steps, or their number; each group keeps its own rate."""
    config = OptimizerConfig(optimizer=optimizer, lr=0.1, layer_decay=0.5, schedule="constant", warmup_steps=warmup_steps)
    made = config.make(Model(), 8)
    scheduler = made["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(3):
        rates.append((scheduler.get_last_lr()[0], scheduler.get_last_lr()[-1]))
        made["optimizer"].step()
        scheduler.step()
    assert rates == [pytest.approx(one) for one in ((0.1 / 16, 0.05), (0.1 / 8, 0.1), (0.1 / 8, 0.1))]


@pytest.mark.parametrize(
    "wrong",
    [
        {"optimizer": "sgdx"},
        {"schedule": "linear"},
        {"lr": math.nan},
        {"betas": (0.9, 1.0)},
        {"weight_decay": -1.0},
        {"layer_decay": 0.0},
        {"warmup_steps": -0.1},
    ],
)
def test_wrong_settings(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        OptimizerConfig(**wrong)


@pytest.mark.parametrize(
    ("schedule", "step", "factor"),
    [
        ("cosine", 0, 1.0),
        ("cosine", 50, 0.5),
        ("cosine", 100, 0.0),
        ("flat_cosine", 50, 1.0),
        ("flat_cosine", 75, 0.5),
        ("steps", 69, 1.0),
        ("steps", 70, 0.1),
        ("steps", 95, 0.001),
        ("constant", 99, 1.0),
    ],
)
def test_schedules(schedule, step, factor):
    assert learning_rate_factor(schedule, step, 100, 0.0) == pytest.approx(factor)


def test_the_learning_rate_rises_in_the_warmup():
    assert [learning_rate_factor("constant", step, 100, 4) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
