"""`perceivers info`: what is installed here; `perceivers info MODEL`: what a model is.

The first answers without importing PyTorch, which takes seconds.
"""

import argparse
import importlib.metadata
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from perceivers import __version__
from perceivers.kernels import IMPLEMENTATIONS, loader

LARGEST = 2**26  # numbers in a sample that is tried


def main(arguments: list[str]) -> int:
    """Runs the command; returns the exit status.

    Raises:
        ValueError: If MODEL cannot be loaded.
    """
    parser = argparse.ArgumentParser(prog="perceivers info", description="What is installed here, or what a model is.")
    parser.add_argument("model", metavar="MODEL", nargs="?", help="a folder, a file, or the name of a repository on the hub")
    parser.epilog = "What a file does not tell is given as to perceivers convert, such as --max-freq."
    if not arguments or arguments[0].startswith("-"):
        parser.parse_args(arguments)
        print("\n".join(here()))
        return 0
    from perceivers.cli.convert import told

    options = told(argparse.ArgumentParser(prog="perceivers info MODEL")).parse_args(arguments[1:])
    print("\n".join(of(arguments[0], **{name: value for name, value in vars(options).items() if value is not None})))
    return 0


def here() -> list[str]:
    """Versions, devices, and how attention is computed."""
    packages = ("torch", "einops", "numpy", "safetensors", "huggingface_hub")
    versions = {package: importlib.metadata.version(package) for package in packages}
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices = [f"{cpus} CPU{'s' if cpus != 1 else ''} ({platform.machine()})", *graphics_cards()]
    unused = ", which this torch cannot use" if len(devices) > 1 and versions["torch"].endswith("+cpu") else ""
    return [
        f"perceivers {__version__}",
        f"python {platform.python_version()} on {platform.system()} {platform.machine()}",
        *(f"{package} {version}" for package, version in versions.items()),
        f"devices: {', '.join(devices)}{unused}",
        f"attention implementations: {', '.join(IMPLEMENTATIONS)}; {loader.description()}",
    ]


def graphics_cards(drivers: Path = Path("/proc/driver/nvidia/gpus")) -> list[str]:
    """The names of NVIDIA's cards, where Linux tells them."""
    found = []
    for file in sorted(drivers.glob("*/information")):
        fields = dict(line.split(":", 1) for line in file.read_text(encoding="utf-8").splitlines() if ":" in line)
        found.append(fields.get("Model", "an NVIDIA card").strip())
    return found


def of(source: str, **options: Any) -> list[str]:
    """Describes a model in any format that `from_pretrained` knows.

    Raises:
        ValueError: If it cannot be loaded.
    """
    from perceivers.checkpoints.detect import identified

    model, form = identified(source, **options)
    state = model.state_dict().values()
    types = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in state})
    size = sum(tensor.nbytes for tensor in state)
    lines = [f"{source}: {form}", "", type(model).__name__, *_settings(model.config, 1), ""]
    if model.model_name is not None:
        lines.append(f"published as: {model.model_name}")
    lines.append(f"parameters: {sum(parameter.numel() for parameter in model.parameters()):,}")
    lines.append(
        f"memory of the weights: {size / 1e6:,.1f} MB, {', '.join(types)}; a pass needs more, which grows with the batch"
    )
    lines += _of_a_sample(model)
    known = model.preprocessing or {}
    labels = known.get("labels")
    if not isinstance(labels, list):
        return [*lines, "labels and preprocessing: none with the model"]
    shown = ", ".join(map(str, labels[:8])) + (f" and {len(labels) - 8} more" if len(labels) > 8 else "")
    lines.append(f"labels: {len(labels)}: {shown}")
    rest = {name: value for name, value in known.items() if name != "labels"}
    return [*lines, "preprocessing:", *_settings(rest, 1)]


def _of_a_sample(model: Any) -> Iterator[str]:
    """FLOPs, and how cross-attention is computed, of a sample of zeros of the model's size."""
    import torch

    from perceivers.factory import zeros
    from perceivers.perceiver import Perceiver

    config, dtype = model.config, next(model.parameters()).dtype
    with torch.device("meta"):
        sample = zeros(config.get("inputs", {"kind": "Pixels", **config}), 1, dtype) if _takes_samples(model) else None
        if sample is None:
            yield "FLOPs: they depend on the sample, whose size the model does not fix"
            return
        copy = type(model)(**config).to(dtype).eval()
        flops = copy.flops() if isinstance(copy, Perceiver) else copy.flops(sample)
    parts = sample if isinstance(sample, Mapping) else {"": sample}
    shapes = ", ".join(f"{name} {list(part.shape[1:])}".strip() for name, part in parts.items())
    yield f"FLOPs of one sample, {shapes}: {flops:,}, with dense cross-attention"
    if sum(part.numel() for part in parts.values()) <= LARGEST:
        yield "cross-attention of one sample:"
        filled = {name: torch.zeros_like(part, device="cpu") for name, part in parts.items()}
        with torch.inference_mode():
            told = model.explain(filled if isinstance(sample, Mapping) else filled[""])
        yield from (f"  {line}" for line in told.splitlines())


def _takes_samples(model: Any) -> bool:
    """Whether a model is given inputs alone, of a kind that it describes."""
    from perceivers.perceiver import Perceiver
    from perceivers.perceiver_io import PerceiverIO

    return isinstance(model, Perceiver) or (isinstance(model, PerceiverIO) and not model.outputs.takes_queries)


def _settings(values: Mapping[str, Any], depth: int) -> Iterator[str]:
    """One a line; dicts in dicts further in."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield f"{'  ' * depth}{name}:"
            yield from _settings(value, depth + 1)
        else:
            text = str(value)
            yield f"{'  ' * depth}{name}: {text if len(text) <= 100 else text[:97] + '...'}"
