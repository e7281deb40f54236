"""`perceivers convert SOURCE DESTINATION`: from any known format to ours, transformers', perceiver-pytorch's, or ONNX."""

import argparse
import json
from pathlib import Path
from typing import Any

from perceivers.checkpoints import onnx
from perceivers.checkpoints.detect import from_pretrained
from perceivers.checkpoints.formats import perceiver_pytorch, transformers
from perceivers.layers import Resampler
from perceivers.perceiver_io import PerceiverIO


def main(arguments: list[str]) -> int:
    """Runs the command; returns the exit status.

    Raises:
        ValueError: If SOURCE cannot be loaded, DESTINATION is there already, or the format cannot express the model.
    """
    parser = argparse.ArgumentParser(prog="perceivers convert", description=__doc__)
    parser.add_argument("source", metavar="SOURCE", help="a folder, a file, or the name of a repository on the hub")
    parser.add_argument(
        "destination",
        metavar="DESTINATION",
        type=Path,
        help="folder to write; for perceiver-pytorch a .safetensors or .pt file, for ONNX a file",
    )
    parser.add_argument(
        "--to",
        choices=("perceivers", "transformers", "perceiver-pytorch", "onnx"),
        default="perceivers",
        help="default: %(default)s",
    )
    parser.add_argument("--mask", action="store_true", help="of ONNX: with an input for the mask")
    told(parser)
    chosen = vars(parser.parse_args(arguments))
    source, destination, form, mask = (chosen.pop(name) for name in ("source", "destination", "to", "mask"))
    if mask and form != "onnx":
        raise ValueError(f"--mask is for --to onnx, not {form}: leave it out")
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise ValueError(f"DESTINATION {destination} is there already: remove it, or give another folder")
    options: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    model = from_pretrained(source, **options)
    if form == "perceivers":
        model.save_pretrained(destination)
    elif form == "perceiver-pytorch" and not isinstance(model, Resampler):
        name, theirs = perceiver_pytorch.constructor(model)
        perceiver_pytorch.save(model, destination)
        print(f"perceiver_pytorch.{name}({', '.join(f'{key}={value!r}' for key, value in theirs.items())})")
    elif form == "onnx":
        try:
            inputs, results = onnx.save(model, destination, mask=mask or None)
        except ImportError as error:
            raise ValueError(str(error)) from error
        for name, shape in {**inputs, **results}.items():
            print(f"{name}: [{', '.join(map(str, shape))}]")
    elif form == "transformers" and isinstance(model, PerceiverIO):
        transformers.save(model, destination)
    else:
        raise ValueError(f"{source} is a {type(model).__name__}, which {form} does not have")
    print(f"{destination}: {type(model).__name__} of {sum(p.numel() for p in model.parameters()):,} parameters")
    return 0


def told(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds the options for what files of other formats do not tell; returns the parser."""
    group = parser.add_argument_group("what files of perceiver-pytorch do not tell, as the model was made there")
    group.add_argument("--max-freq", type=float)
    for name in ("num-freq-bands", "input-channels", "input-axis", "cross-heads", "latent-heads"):
        group.add_argument(f"--{name}", type=int)
    group.add_argument("--frequency-base", type=_spacing, metavar="BASE|linear")
    group.add_argument("--fourier-encode-data", action=argparse.BooleanOptionalAction)
    group = parser.add_argument_group(
        "what state_dicts of perceiver-io do not tell, as JSON, such as '{\"num_cross_attention_heads\": 1}'"
    )
    for name in ("encoder", "decoder"):
        group.add_argument(f"--{name}", type=json.loads, metavar="SETTINGS")
    group = parser.add_argument_group("what files with the resampler of a larger model do not tell")
    for name in ("heads", "head-dim"):
        group.add_argument(f"--{name}", type=int)
    return parser


def _spacing(text: str) -> float | str:
    return text if text == "linear" else float(text)
