"""`perceivers convert SOURCE DESTINATION`: from any known format to ours, transformers', perceiver-pytorch's, or ONNX."""

import argparse
import json
from pathlib import Path
from typing import Any

from perceivers.checkpoints import onnx
from perceivers.checkpoints.detect import from_pretrained
from perceivers.checkpoints.formats import perceiver_pytorch, transformers


def main(arguments: list[str]) -> int:
    """Run the command; return the exit status.

    Raises:
        ValueError: If SOURCE cannot be loaded, DESTINATION already exists, or the format cannot express the model.
    """
    parser = argparse.ArgumentParser(
        prog="perceivers convert",
        description="Convert a model of any known format to this library's, transformers', perceiver-pytorch's, or ONNX.",
        epilog="Examples: perceivers convert deepmind/vision-perceiver-fourier folder;"
        " perceivers convert model.pt folder --max-freq 10; perceivers convert folder model.onnx --to onnx",
    )
    parser.add_argument("source", metavar="SOURCE", help="a folder, a file, or the name of a repository on the hub")
    destination = "the new folder; for perceiver-pytorch a .safetensors or .pt file, for ONNX a .onnx file"
    parser.add_argument("destination", metavar="DESTINATION", type=Path, help=destination)
    parser.add_argument("--to", choices=SAVERS, default="perceivers", help="the format to write (default: %(default)s)")
    parser.add_argument("--mask", action="store_true", help="add an input for the mask, with --to onnx only")
    add_options(parser)
    chosen = vars(parser.parse_args(arguments))
    source, destination, form, mask = (chosen.pop(name) for name in ("source", "destination", "to", "mask"))
    if mask and form != "onnx":
        raise ValueError(f"--mask is for --to onnx, not {form}: leave it out")
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise ValueError(f"DESTINATION {destination} already exists: remove it, or give another folder")
    model = from_pretrained(source, **given(chosen))
    for line in SAVERS[form](model, destination, mask):
        print(line)
    print(f"wrote {destination}: {type(model).__name__} with {sum(p.numel() for p in model.parameters()):,} parameters")
    return 0


def add_options(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the options for what files of other formats do not specify; return the parser."""
    group = parser.add_argument_group(
        "perceiver-pytorch", "Its files do not specify these: give the arguments that the model was made with."
    )
    group.add_argument("--max-freq", type=float)
    for name in ("num-freq-bands", "input-channels", "input-axis", "cross-heads", "latent-heads"):
        group.add_argument(f"--{name}", type=int)
    group.add_argument("--frequency-base", type=_spacing, metavar="BASE|linear")
    group.add_argument("--fourier-encode-data", action=argparse.BooleanOptionalAction)
    group = parser.add_argument_group(
        "perceiver-io", "A state_dict does not specify these settings, which are JSON: '{\"num_cross_attention_heads\": 1}'."
    )
    for name in ("encoder", "decoder"):
        group.add_argument(f"--{name}", type=json.loads, metavar="SETTINGS")
    group = parser.add_argument_group("resamplers", "Files with the resampler of a larger model do not specify one of these.")
    for name in ("heads", "head-dim"):
        group.add_argument(f"--{name}", type=int)
    return parser


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def _spacing(text: str) -> float | str:
    return text if text == "linear" else float(text)


def _perceivers(model: Any, destination: Path, mask: bool) -> list[str]:
    model.save_pretrained(destination)
    return []


def _transformers(model: Any, destination: Path, mask: bool) -> list[str]:
    transformers.save(model, destination)
    return []


def _perceiver_pytorch(model: Any, destination: Path, mask: bool) -> list[str]:
    name, theirs = perceiver_pytorch.constructor(model)
    perceiver_pytorch.save(model, destination)
    return [f"perceiver_pytorch.{name}({', '.join(f'{key}={value!r}' for key, value in theirs.items())})"]


def _onnx(model: Any, destination: Path, mask: bool) -> list[str]:
    try:
        inputs, results = onnx.save(model, destination, mask=mask or None)
    except ImportError as error:
        raise ValueError(str(error)) from error
    return [f"{name}: [{', '.join(map(str, shape))}]" for name, shape in {**inputs, **results}.items()]


# For each format a function that writes a model, and returns what to print.
SAVERS = {
    "perceivers": _perceivers,
    "transformers": _transformers,
    "perceiver-pytorch": _perceiver_pytorch,
    "onnx": _onnx,
}
