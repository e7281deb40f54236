"""`perceivers convert SOURCE DESTINATION`: from any known format to ours, transformers', perceiver-pytorch's, or ONNX."""

import argparse
import json
from pathlib import Path
from typing import Any

from perceivers.checkpoints import onnx
from perceivers.checkpoints.detect import from_pretrained
from perceivers.checkpoints.formats import perceiver_pytorch, transformers

FORMATS = ("perceivers", "transformers", "perceiver-pytorch", "onnx")


def main(arguments: list[str]) -> int:
    """Run the command; return the exit status.

    Raises:
        ValueError: If SOURCE cannot be loaded, DESTINATION already exists, or the format cannot express the model.
    """
    parser = argparse.ArgumentParser(prog="perceivers convert", description=__doc__)
    parser.add_argument("source", metavar="SOURCE", help="a folder, a file, or the name of a repository on the hub")
    parser.add_argument(
        "destination",
        metavar="DESTINATION",
        type=Path,
        help="folder to write; for perceiver-pytorch a .safetensors or .pt file, for ONNX a file",
    )
    parser.add_argument("--to", choices=FORMATS, default="perceivers", help="default: %(default)s")
    parser.add_argument("--mask", action="store_true", help="for ONNX: with an input for the mask")
    add_options(parser)
    chosen = vars(parser.parse_args(arguments))
    source, destination, form, mask = (chosen.pop(name) for name in ("source", "destination", "to", "mask"))
    if mask and form != "onnx":
        raise ValueError(f"--mask is for --to onnx, not {form}: leave it out")
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise ValueError(f"DESTINATION {destination} already exists: remove it, or give another folder")
    model = from_pretrained(source, **given(chosen))
    for line in save(model, destination, form, mask):
        print(line)
    print(f"{destination}: {type(model).__name__} of {sum(p.numel() for p in model.parameters()):,} parameters")
    return 0


def add_options(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the options for what files of other formats do not specify; return the parser."""
    group = parser.add_argument_group("what files of perceiver-pytorch do not specify, as the model was made there")
    group.add_argument("--max-freq", type=float)
    for name in ("num-freq-bands", "input-channels", "input-axis", "cross-heads", "latent-heads"):
        group.add_argument(f"--{name}", type=int)
    group.add_argument("--frequency-base", type=_spacing, metavar="BASE|linear")
    group.add_argument("--fourier-encode-data", action=argparse.BooleanOptionalAction)
    group = parser.add_argument_group(
        "what state_dicts of perceiver-io do not specify, as JSON, such as '{\"num_cross_attention_heads\": 1}'"
    )
    for name in ("encoder", "decoder"):
        group.add_argument(f"--{name}", type=json.loads, metavar="SETTINGS")
    group = parser.add_argument_group("what files with the resampler of a larger model do not specify")
    for name in ("heads", "head-dim"):
        group.add_argument(f"--{name}", type=int)
    return parser


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def _spacing(text: str) -> float | str:
    return text if text == "linear" else float(text)


def save(model: Any, destination: Path, form: str, mask: bool) -> list[str]:
    """Write a model in a format; return the lines to print about it."""
    match form:
        case "perceivers":
            model.save_pretrained(destination)
        case "transformers":
            transformers.save(model, destination)
        case "perceiver-pytorch":
            name, theirs = perceiver_pytorch.constructor(model)
            perceiver_pytorch.save(model, destination)
            return [f"perceiver_pytorch.{name}({', '.join(f'{key}={value!r}' for key, value in theirs.items())})"]
        case "onnx":
            try:
                inputs, results = onnx.save(model, destination, mask=mask or None)
            except ImportError as error:
                raise ValueError(str(error)) from error
            return [f"{name}: [{', '.join(map(str, shape))}]" for name, shape in {**inputs, **results}.items()]
    return []
