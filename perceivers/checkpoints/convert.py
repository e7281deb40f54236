"""`perceivers convert SOURCE DESTINATION`: from any known format to this library's, or to transformers'."""

import argparse
from pathlib import Path
from typing import Any

from perceivers.checkpoints import transformers
from perceivers.checkpoints.sources import from_pretrained
from perceivers.perceiver_io import PerceiverIO


def main(arguments: list[str]) -> int:
    """Runs the command; returns the exit status.

    Raises:
        ValueError: If SOURCE cannot be loaded, DESTINATION is there already, or the format cannot express the model.
    """
    parser = argparse.ArgumentParser(prog="perceivers convert", description=__doc__)
    parser.add_argument("source", metavar="SOURCE", help="a folder, a file, or the name of a repository on the hub")
    parser.add_argument("destination", metavar="DESTINATION", type=Path, help="folder to write")
    parser.add_argument("--to", choices=("perceivers", "transformers"), default="perceivers", help="default: %(default)s")
    told(parser)
    chosen = vars(parser.parse_args(arguments))
    source, destination, form = (chosen.pop(name) for name in ("source", "destination", "to"))
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise ValueError(f"DESTINATION {destination} is there already: remove it, or give another folder")
    options: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    model = from_pretrained(source, **options)
    if form == "perceivers":
        model.save_pretrained(destination)
    elif isinstance(model, PerceiverIO):
        transformers.save(model, destination)
    else:
        raise ValueError(f"{source} is a {type(model).__name__}, which transformers does not have: it has PerceiverIO's")
    print(f"{destination}: {type(model).__name__} of {sum(p.numel() for p in model.parameters()):,} parameters")
    return 0


def told(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds the options for what files of other formats do not tell; returns the parser."""
    group = parser.add_argument_group("what files of perceiver-pytorch do not tell, as the model was made there")
    group.add_argument("--max-freq", type=float)
    for name in ("num-freq-bands", "input-channels", "input-axis", "cross-heads", "latent-heads"):
        group.add_argument(f"--{name}", type=int)
    return parser
