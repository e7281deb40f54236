"""A checkpoint format of another project, and how a model is loaded from it: describe, configure, name, fill.

The first three steps belong to the format, and are pure: none makes a model or changes what another step returned. The last
is the same for all: every tensor of theirs is used and every one of ours filled, or nothing is loaded.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from perceivers.checkpoints.source import Source
from perceivers.checkpoints.state_dict import by_start, counterpart
from perceivers.pretrained import fill, without_storage


@dataclass(kw_only=True)
class Description:
    """What a source holds, as the tensors and settings of the other project.

    Attributes:
        weights: All tensors that must find a place, with the names and layout of the project's latest version.
        detail: What kind of model of the project it is, for people.
    """

    weights: dict[str, Tensor]
    detail: str = ""

    def shape(self, name: str, *axes: int) -> list[int]:
        """Return the shape of a tensor, which must exist and have one of these numbers of axes, none of them empty."""
        if name not in self.weights:
            raise ValueError(f"{name} is missing")
        shape = list(self.weights[name].shape)
        if len(shape) not in axes or 0 in shape:
            needed = " or ".join(map(str, axes))
            raise ValueError(f"{name} has shape {shape}, but {needed} axes are needed, none of them empty")
        return shape


def numbered(names: Iterable[str], start: str) -> int:
    """Return how many numbers follow in names with this start, which must be 0, 1, 2 and so on."""
    found = {name.removeprefix(start).split(".")[0] for name in names if name.startswith(start)}
    if missing := {str(i) for i in range(len(found))} - found:
        raise ValueError(f"{start}{min(missing)} is missing: the file is not complete")
    return len(found)


def keys_and_values(name: str, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the halves of the weight of one linear layer that makes keys and values."""
    if weight.ndim != 2 or len(weight) % 2:
        raise ValueError(f"{name} has shape {list(weight.shape)}: not keys and values")
    half = len(weight) // 2
    return weight[:half], weight[half:]


class Configuration(NamedTuple):
    """Our model for theirs: a class and the arguments of its constructor."""

    model: Callable[..., Any]
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Names:
    """Where our tensors are in theirs.

    Attributes:
        table: For each of our names, or what it starts with, theirs.
        orders: For what our names start with, their column for each of ours: a permutation of the last axis.
        rows: The same of the first axis.
        copies: For names of theirs that are stored more than once, the name they are a copy of.
    """

    table: Mapping[str, str]
    orders: Mapping[str, Sequence[int]] = field(default_factory=dict)
    rows: Mapping[str, Sequence[int]] = field(default_factory=dict)
    copies: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Format:
    """A checkpoint format: a row of the table in `perceivers.checkpoints.formats`.

    A step raises `ValueError` if something is missing or does not fit; the source is put before its message.

    Attributes:
        name: The project.
        recognises: True for a source of this format, by the names of its tensors or its `config.json`.
        describe: Step 1: return what the source holds.
        configure: Step 2: return the configuration of our model for a description. Its keyword arguments are what a source
            does not specify; users pass them to `from_pretrained`.
        names: Step 3: return where our tensors are in theirs, for a description and a configuration.
        preprocessing: Return the description of the preprocessing, or `None` if it is not known.
    """

    name: str
    recognises: Callable[[Source], bool]
    describe: Callable[[Source], Any]
    configure: Callable[..., Configuration]
    names: Callable[[Any, Configuration], Names]
    preprocessing: Callable[[Any, str], dict[str, Any] | None] = lambda description, source: None

    def load(self, source: Source, **arguments: Any) -> tuple[Any, str]:
        """Return the model of a source, in evaluation mode, and the name of what it was.

        Raises:
            ValueError: If a tensor is left over, missing, or of another shape, an argument is missing or does not fit, or the
                source is of something that this library does not have. The message names it.
            TypeError: If an argument is unknown.
        """
        known = [name for name, p in inspect.signature(self.configure).parameters.items() if p.kind is p.KEYWORD_ONLY]
        if unknown := sorted(arguments.keys() - set(known)):
            raise TypeError(f"unknown arguments {unknown}: {self.name} takes {known or 'none, its files specify everything'}")
        try:
            description = self.describe(source)
            configuration = self.configure(description, **arguments)
            names = self.names(description, configuration)
        except ValueError as error:
            raise error if str(error).startswith(source.name) else ValueError(f"{source.name}: {error}") from error
        model: Any = filled(description.weights, configuration, names, source.name)
        model.preprocessing = self.preprocessing(description, source.name)
        return model, ", ".join(filter(None, (self.name, description.detail)))


def filled(theirs: Mapping[str, Tensor], configuration: Configuration, names: Names, source: str) -> nn.Module:
    """Return a model with another project's weights, in evaluation mode.

    Raises:
        ValueError: If a tensor of theirs is left over, one of ours has no counterpart, or a shape or copy does not fit; the
            message names it.
    """
    model = without_storage(lambda: configuration.model(**configuration.arguments), len(theirs), source)
    kind, state, used = type(model).__name__, {}, set()
    for copy, original in names.copies.items():
        if original not in theirs or not torch.equal(theirs[copy], theirs[original]):
            raise ValueError(f"{source}: {copy} and {original} are one tensor stored twice, but differ: the file is damaged")
        used.add(copy)
    for name, tensor in model.state_dict().items():
        their_name = counterpart(names.table, name)
        if their_name is None or their_name not in theirs:
            raise ValueError(f"{source}: {their_name or name} is missing, which {kind} needs as {name}")
        used.add(their_name)
        value = theirs[their_name]
        if value.shape != tensor.shape:  # convolutions of size 1 and rows of one are stored with more axes
            if [n for n in value.shape if n != 1] != [n for n in tensor.shape if n != 1]:
                raise ValueError(f"{source}: {their_name} has shape {list(value.shape)}, not {list(tensor.shape)}")
            value = value.reshape(tensor.shape)
        if rows := by_start(names.rows, name):
            value = value[list(rows[1])]
        order = by_start(names.orders, name)
        state[name] = value.contiguous() if order is None else value[..., list(order[1])]
    if unused := sorted(theirs.keys() - used):
        raise ValueError(f"{source}: {len(unused)} tensors have no place in {kind}, such as {unused[:3]}")
    fill(model, state, source)
    return model.eval()
