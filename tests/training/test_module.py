import pytest
import torch

pytest.importorskip("lightning", reason="the training extra is not installed")
from perceivers.data import Arrays
from perceivers.training.module import Training, suggest
from training_material import SMALL

SHAPE = {"data_shape": [1, 6], "mean": [0.0], "std": [1.0]}


def training(task, labels, **arguments):
    statistics = {"target_mean": [0.0], "target_std": [2.0]} if task == "regression" else {}
    arrays = Arrays(labels=labels, task=task, **statistics, **SHAPE)
    return Training(SMALL, preprocessing=arrays.describe(), **arguments)


def test_suggest():
    arrays = Arrays(labels=["a", "b", "c"], task="classification", **SHAPE)
    arguments = suggest(arrays, {"dim": 32, "heads": 8})
    assert (arguments["dim"], arguments["heads"], arguments["num_latent_tokens"]) == (32, 8, 32)
    assert arguments["outputs"] == {"kind": "LearnedQueries", "dim": 32, "num_channels": 3}


def test_weights_are_a_function_of_the_seed():
    first, same, other = (training("classification", ["a", "b"], seed=seed).network.encoder.latents for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_losses():
    outputs = torch.tensor([[2.0, -1.0]])
    classes = training("classification", ["a", "b"]).loss(outputs, torch.tensor([1]))
    assert float(classes) == pytest.approx(float(-outputs.log_softmax(1)[0, 1]))
    labels = training("multi_label", ["a", "b"]).loss(outputs, torch.tensor([[1.0, 0.0]]))
    assert float(labels) == pytest.approx(float(-torch.nn.functional.logsigmoid(torch.tensor([2.0, 1.0])).mean()))
    numbers = training("regression", ["a"]).loss(outputs[:, :1], torch.tensor([[0.5]]))
    assert float(numbers) == pytest.approx(2.25)


@pytest.mark.parametrize(("task", "metric"), [("classification", "accuracy"), ("multi_label", "f1"), ("regression", "mae")])
@torch.no_grad()
def test_metrics_are_in_the_units_of_the_targets(task, metric, monkeypatch):
    module = training(task, ["a"] if task == "regression" else ["a", "b"])
    logged = {}
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: value}))
    targets = {
        "classification": torch.zeros(3, dtype=torch.int64),
        "multi_label": torch.ones(3, 2),
        "regression": torch.ones(3, 1),
    }[task]
    module.evaluation_step((torch.randn(3, 1, 6), None, targets), "val")
    assert set(logged) == {"val_loss", f"val_{metric}"}
    if task == "regression":
        outputs = module.network(torch.zeros(1, 1, 6))  # any: the error of one sample is twice as large in its own units
        module.metric.reset()
        module.evaluation_step((torch.zeros(1, 1, 6), None, torch.ones(1, 1)), "val")
        assert float(module.metric.compute()) == pytest.approx(2 * float((outputs - 1).abs()))


def test_a_loss_that_is_nan(monkeypatch):
    module = training("classification", ["a", "b"])
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step 0: lower --model\.lr"):
        module.log_train_loss(torch.tensor(float("nan")))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"optimizer": "sgdx"}, "optimizer='sgdx'"), ({"lr": -1.0}, "lr=-1.0"), ({"augment": "spin"}, "augment='spin'")],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        training("classification", ["a", "b"], **arguments)
