"""The command line: `python -m tools.datasets list` and `python -m tools.datasets prepare NAME [--folder FOLDER]`."""

import argparse
import sys
from pathlib import Path

from tools.datasets.prepare import cache_folder, prepare
from tools.datasets.registry import DATASETS


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status: 0, or 1 if the data set could not be prepared."""
    parser = argparse.ArgumentParser(prog="python -m tools.datasets", description="Well-known data sets to train on.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="list the data sets")
    prepare_parser = commands.add_parser("prepare", help="download and check a data set, and print its path")
    prepare_parser.add_argument("name", metavar="NAME", choices=DATASETS, help=", ".join(DATASETS))
    prepare_parser.add_argument(
        "--folder", type=Path, default=cache_folder(), help="where to store the data set (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    if options.command == "list":
        for name, dataset in DATASETS.items():
            print(f"{name:16} {dataset.about}" + (f"; also hub:{dataset.hub}" if dataset.hub else ""))
        return 0
    try:
        print(prepare(options.name, options.folder))
    except OSError as error:
        print(f"prepare {options.name}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
