"""Downloads one package by its registry's own client, without installing it."""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Client:
    """A registry's client.

    Attributes:
        command: Command that downloads the package named by its last argument into the current folder.
        suffix: File name suffix of the downloaded archive.
    """

    command: tuple[str, ...]
    suffix: str


CLIENTS = {
    "npm": Client(("npm", "pack"), ".tgz"),
    "apt": Client(("apt-get", "download"), ".deb"),
    "pip": Client((sys.executable, "-m", "pip", "download", "--no-deps", "-q"), ".whl"),
}


def download(client: str, package: str, folder: Path) -> Path:
    """Download a package and return the path of its archive.

    Args:
        client: A key of `CLIENTS`.
        package: Name and version of the package, as the client takes them.
        folder: An empty folder to download into.

    Raises:
        OSError: If the client is not installed or the download fails.
    """
    command, suffix = (*CLIENTS[client].command, package), CLIENTS[client].suffix
    if shutil.which(command[0]) is None:
        raise OSError(f"{command[0]} is not installed: install it first")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    archives = sorted(folder.glob(f"*{suffix}"))
    if done.returncode or not archives:
        output = (done.stderr or done.stdout).strip().splitlines()
        raise OSError(f"`{' '.join(command)}` failed: {output[-1] if output else f'exit status {done.returncode}'}")
    return archives[0]
