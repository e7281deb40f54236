"""Checks wheels and source distributions before they are published.

    python -m tools.check_dist dist/* [--version 0.1.0]

A wheel holds the package and nothing else; on Linux and macOS it also holds the compiled kernel, which would otherwise be
left out silently if it did not compile. A source distribution holds what it takes to compile it.
"""

import argparse
import sys
import tarfile
import zipfile
from pathlib import Path

WHEEL = {"perceivers/__init__.py", "perceivers/py.typed"}
SDIST = {"pyproject.toml", "setup.py", "LICENSE", "perceivers/py.typed", "perceivers/kernels/separable.c"}


def problems(path: Path, version: str | None = None) -> list[str]:
    """Return what is wrong with a distribution, one line per problem.

    Args:
        path: A `.whl` or `.tar.gz` file.
        version: The version it must have; `None` for any.
    """
    found = []
    if version is not None and path.name.removesuffix(".tar.gz").split("-")[1] != version:
        found.append(f"{path.name} is not version {version}")
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            names = {name for name in archive.namelist() if ".dist-info/" not in name}
        if others := sorted({name.split("/")[0] for name in names} - {"perceivers"}):
            found.append(f"{path.name} holds {', '.join(others)}: only perceivers belongs there, see pyproject.toml")
        compiled = any(name.startswith("perceivers/kernels/_separable.") for name in names)
        if not compiled and ("linux" in path.name or "macosx" in path.name):
            found.append(f"{path.name} lacks the compiled kernel: see the compiler's messages in the build log")
        required = WHEEL
    else:
        with tarfile.open(path) as archive:
            names = {name.partition("/")[2] for name in archive.getnames()}
        required = SDIST
    return found + [f"{path.name} lacks {name}" for name in sorted(required - names)]


def main(arguments: list[str] | None = None) -> int:
    """Print the problems of all files and return the exit status: 0 if there are none."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a .whl or .tar.gz file")
    parser.add_argument("--version", help="the version they must have")
    options = parser.parse_args(arguments)
    found = [problem for path in options.files for problem in problems(path, options.version)]
    print("\n".join(found) or f"{len(options.files)} files checked, no problems")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
