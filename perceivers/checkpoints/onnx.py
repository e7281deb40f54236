"""ONNX: a model as a graph in a file, which onnxruntime and others run without PyTorch. Needs the extra `onnx`.

Every length that the model leaves open stays open in the file: the batch, and the axes of arrays. The example that a graph is
traced with only needs more than one of each.
"""

import copy
import importlib.util
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim
from torch.utils._pytree import keystr, tree_flatten, tree_flatten_with_path, tree_leaves, tree_map, tree_unflatten

from perceivers.pretrained import Pretrained

Shapes = dict[str, list[int | str]]
TOLERANCE = 1e-4  # relative to the largest number of an output; in half precision more


def save(model: Pretrained, path: str | Path, example: Any = None, mask: Any = None) -> tuple[Shapes, Shapes]:
    """Write a model in evaluation mode as an ONNX file, and run it with onnxruntime if that is installed.

    Weights of 1.5 GB and more are written to a second file, with `.data` appended to the name. The model is not changed.

    Args:
        model: The model.
        path: The file, which ends in `.onnx`.
        example: What the model takes as `x`, of any batch size. Defaults to random numbers of the size that the model was made
            for. An axis that may have any length in the file has at least 2 in the example.
        mask: The mask of the example, for a file with an input for the mask. `True` for one of the example's axes, if the
            example is one tensor. Defaults to a file without.

    Returns:
        The shapes of the inputs, and those of the outputs, by name. A length that is left open is a name, such as "batch".

    Raises:
        ValueError: If an argument does not fit, the model cannot be exported, or onnxruntime computes something else.
        ImportError: If the extra is not installed.
    """
    if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript")):
        raise ImportError("ONNX needs its extra: pip install 'perceivers[onnx]'")
    import onnx_ir  # comes with onnxscript

    if not isinstance(model, Pretrained):
        raise ValueError(f"model is a {type(model).__name__}, not a Perceiver, PerceiverIO or Resampler")
    path = Path(path)
    if path.suffix != ".onnx" or path.is_dir():
        raise ValueError(f"path={str(path)!r} must be a file that ends in .onnx")
    arguments = _arguments(model, example, mask)
    weights = [*model.parameters(), *model.buffers()]
    copied: Any = copy.deepcopy(model, {id(tensor): tensor for tensor in weights}).eval()  # another module, the same weights
    copied.set_attention_implementation("dense")
    with torch.no_grad():
        places = [keystr(place) for place, _ in tree_flatten_with_path(copied(*arguments))[0]]
    outputs = ["output" + place.replace("['", "_").replace("']", "") for place in places]  # "['audio']" becomes "_audio"
    shapes = tree_map(lambda leaf: dict.fromkeys(range(leaf.ndim), Dim.AUTO) if isinstance(leaf, Tensor) else None, arguments)
    try:
        with torch.no_grad(), _quiet():
            graph = torch.export.export(copied, arguments, dynamic_shapes=shapes)
            program = torch.onnx.export(graph, dynamo=True, verbose=False, output_names=outputs)
    except Exception as error:  # of many kinds, by what is missing
        reason = next((line for line in str(error).splitlines() if line), type(error).__name__)
        raise ValueError(f"this {type(model).__name__} cannot be exported: {reason}") from error
    assert program is not None
    given, made = program.model.graph.inputs, program.model.graph.outputs
    program.rename_axes(_axis_names({str(value.name): _shape(value) for value in given}))
    for value in (*given, *made):
        value.shape = onnx_ir.Shape(_shape(value))
    if _shape(given[0])[0] != "batch":
        raise ValueError(f"this {type(model).__name__} cannot be exported: its code treats the batch size as a fixed number")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=path.parent) as folder:
        program.save(Path(folder) / path.name)
        inputs, results = ({str(value.name): _shape(value) for value in values} for values in (given, made))
        if importlib.util.find_spec("onnxruntime") is not None:
            _check(copied, Path(folder) / path.name, arguments, list(inputs.values()))
        for file in sorted(Path(folder).iterdir(), reverse=True):  # the weights first
            os.replace(file, path.parent / file.name)
    return inputs, results


def _arguments(model: torch.nn.Module, example: Any, mask: Any) -> tuple[Any, ...]:
    """Return what the model is traced with: at least two samples."""
    config: Any = model.config
    if example is None:
        example = _example(model)
    if not tree_leaves(example) or not all(isinstance(leaf, Tensor) for leaf in tree_leaves(example)):
        kinds = sorted({type(leaf).__name__ for leaf in tree_leaves(example)})
        raise ValueError(f"example holds {kinds or 'nothing'}: give a tensor, or a dict of tensors, as the model takes it")
    if mask is True:
        if not isinstance(example, Tensor):
            raise ValueError(f"mask=True, but the example is a {type(example).__name__}, not one tensor: give the mask")
        mask = torch.ones(example.shape[0], *_axes(config, example), dtype=torch.bool, device=example.device)
    elif mask is False:
        raise ValueError("mask=False must be a mask, True for one of the example's axes, or None")
    arguments = (example,) if mask is None else (example, mask)
    return tree_map(lambda leaf: torch.cat([leaf, leaf]) if isinstance(leaf, Tensor) and len(leaf) == 1 else leaf, arguments)


def _example(model: Any) -> Any:
    config = model.config
    example = torch.zeros(2, 7, config["kv_dim"]) if "kv_dim" in config else model.example(2)
    if example is None:
        raise ValueError(f"example is missing: the inputs of this {type(model).__name__} have no fixed size")
    generator, first = torch.Generator().manual_seed(0), next(model.parameters())

    def draw(leaf: Tensor) -> Tensor:
        if not leaf.dtype.is_floating_point:
            return leaf.to(first.device)
        return torch.randn(leaf.shape, generator=generator).to(first)

    return tree_map(draw, example)


def _axes(config: Mapping[str, Any], example: Tensor) -> Sequence[int]:
    """Return the axes that a mask of the example has after the batch."""
    if "kv_dim" in config:  # of a Resampler
        return example.shape[1:2]
    shape = config.get("inputs", config).get("data_shape")
    if shape is not None:
        return example.shape[example.ndim + 1 - len(shape) :]
    return example.shape[2 if example.dtype.is_floating_point else 1 :]


def _shape(value: Any) -> list[int | str]:
    """Return lengths, and names or formulas of those that are open; the exporter writes some lengths as formulas."""
    lengths = [length if isinstance(length, int) else str(length.value) for length in value.shape]
    return [int(length) if isinstance(length, str) and length.isdigit() else length for length in lengths]


def _axis_names(shapes: Shapes) -> dict[Any, str]:
    """Return a name for each symbol of the exporter: "batch", or of which axis of which input it is."""
    names: dict[Any, str] = {}
    for name, shape in shapes.items():
        for axis, length in enumerate(shape):
            if isinstance(length, str) and length.isidentifier():
                names.setdefault(length, f"{name}_axis_{axis}" if axis else "batch")
    return names


def _check(model: torch.nn.Module, path: Path, arguments: tuple[Any, ...], shapes: Sequence[Sequence[int | str]]) -> None:
    """Compare onnxruntime with the model, for the example, for another batch, and for other lengths."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # a failure is raised; it need not be printed as well
    leaves, structure = tree_flatten(arguments)
    arrays = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    open_ends = {name: n for shape, x in zip(shapes, arrays, strict=True) for name, n in zip(shape, x.shape, strict=True)}
    shorter = {name: n - 1 for name, n in open_ends.items() if isinstance(name, str) and name != "batch" and n > 1}
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for sizes in ({}, {"batch": 3}, shorter):
            rest = iter(shapes)
            resized = [_resize(leaf, next(rest), sizes) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            try:
                with torch.no_grad():
                    wanted = tree_leaves(model(*tree_unflatten(resized, structure)))
            except ValueError:
                continue  # a length that the model does not take
            given = [leaf.cpu().numpy() for leaf in resized if isinstance(leaf, Tensor)]
            found = session.run(None, {i.name: array for i, array in zip(session.get_inputs(), given, strict=True)})
            for ours, theirs in zip(wanted, found, strict=True):
                difference, largest = (torch.as_tensor(theirs) - ours.cpu()).abs().max(), ours.abs().max().cpu()
                if not difference <= max(TOLERANCE, 10 * torch.finfo(ours.dtype).eps) * largest:
                    raise ValueError(f"it differs by {difference:.3g}, the largest output is {largest:.3g}, {sizes=}")
    except Exception as error:  # of onnxruntime's own kinds
        raise ValueError(
            f"onnxruntime does not compute what this {type(model).__name__} computes, no file is kept: {error}"
        ) from error


def _resize(leaf: Tensor, shape: Sequence[int | str], sizes: Mapping[Any, int]) -> Tensor:
    """Repeat or cut a tensor to other lengths of its axes."""
    for axis, name in enumerate(shape):
        if name in sizes:
            leaf = leaf.index_select(axis, torch.arange(sizes[name], device=leaf.device) % leaf.shape[axis])
    return leaf


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings and logs of the exporter; errors are raised."""
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
