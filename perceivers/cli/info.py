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
    """Run the command; return the exit status.

    Raises:
        ValueError: If MODEL cannot be loaded.
    """
    parser = argparse.ArgumentParser(prog="perceivers info", description="Print what is installed here, or describe a model.")
    parser.add_argument("model", metavar="MODEL", nargs="?", help="a folder, a file, or the name of a repository on the hub")
    parser.epilog = "Files of some formats need options, such as --max-freq: see perceivers info MODEL --help."
    if not arguments or arguments[0].startswith("-"):
        parser.parse_args(arguments)
        print("\n".join(here()))
        return 0
    from perceivers.cli.convert import add_options, given

    parser = argparse.ArgumentParser(prog="perceivers info MODEL", description="Describe a model.")
    options = add_options(parser).parse_args(arguments[1:])
    print("\n".join(of(arguments[0], **given(vars(options)))))
    return 0


def here() -> list[str]:
    """Return versions, devices, and how attention is computed."""
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
    """Return the names of NVIDIA's cards, as the driver on Linux lists them."""
    found = []
    for file in sorted(drivers.glob("*/information")):
        fields = dict(line.split(":", 1) for line in file.read_text(encoding="utf-8").splitlines() if ":" in line)
        found.append(fields.get("Model", "an NVIDIA card").strip())
    return found


def of(source: str, **options: Any) -> list[str]:
    """Return a description of a model in any format that `from_pretrained` knows.

    Raises:
        ValueError: If it cannot be loaded.
    """
    from perceivers.checkpoints.detect import identified

    model, form = identified(source, **options)
    state = model.state_dict().values()
    types = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in state})
    size = sum(tensor.nbytes for tensor in state)
    lines = [source, f"format: {form}", "", type(model).__name__, *_settings(model.config, 1), ""]
    if model.model_name is not None:
        lines.append(f"published as: {model.model_name}")
    lines.append(f"parameters: {sum(parameter.numel() for parameter in model.parameters()):,}")
    lines.append(
        f"memory of the weights: {size / 1e6:,.1f} MB, {', '.join(types)} (activations need more, depending on the batch size)"
    )
    lines += _of_a_sample(model)
    known = model.preprocessing or {}
    labels = known.get("labels")
    if not isinstance(labels, list):
        return [*lines, "labels and preprocessing: not saved with this model"]
    shown = ", ".join(map(str, labels[:8])) + (f" and {len(labels) - 8} more" if len(labels) > 8 else "")
    lines.append(f"labels: {len(labels)}: {shown}")
    rest = {name: value for name, value in known.items() if name != "labels"}
    return [*lines, "preprocessing:", *_settings(rest, 1)]


def _of_a_sample(model: Any) -> Iterator[str]:
    """Yield the FLOPs and how cross-attention is computed, for a sample of zeros of the model's size."""
    import torch
    from torch.utils._pytree import tree_map

    with torch.device("meta"):  # the sample may be too large to be made
        sample = type(model)(**model.config).example(1)
    if sample is None:
        yield "FLOPs: unknown, because the model does not fix the size of a sample"
        return
    parts = sample if isinstance(sample, Mapping) else {"": sample}
    shapes = ", ".join(f"{name} {list(part.shape[1:])}".strip() for name, part in parts.items())
    yield f"FLOPs of one sample of shape {shapes}: {model.flops(sample):,} with dense cross-attention"
    if sum(part.numel() for part in parts.values()) <= LARGEST:
        yield "how cross-attention is computed for one sample:"
        dtype = next(model.parameters()).dtype
        zeros = lambda x: torch.zeros_like(x, dtype=dtype if x.is_floating_point() else None, device="cpu")  # noqa: E731
        with torch.inference_mode():
            explained = model.explain(tree_map(zeros, sample))
        yield from (f"  {line}" for line in explained.splitlines())


def _settings(values: Mapping[str, Any], depth: int) -> Iterator[str]:
    """Yield a line per setting; dicts in dicts are indented."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield f"{'  ' * depth}{name}:"
            yield from _settings(value, depth + 1)
        else:
            text = str(value)
            yield f"{'  ' * depth}{name}: {text if len(text) <= 100 else text[:97] + '...'}"
