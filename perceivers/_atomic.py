"""Files that a crash at any moment leaves complete: each is the old one or the new one, never half of one."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

TEMPORARY = ".saving-"  # prefix of a folder in which files are being written


@contextmanager
def replacing_files(folder: str | Path) -> Iterator[Path]:
    """Provide an empty folder; at the end, its files replace those of the same names in `folder`, and are on the disk.

    All of them are on the disk before the first is moved. If the block fails, `folder` is left as it was. A process that is
    killed leaves the temporary folder, see `sweep`.

    Raises:
        OSError: If the disk is full; the message names the folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=folder) as temporary:
            yield Path(temporary)
            files = sorted(Path(temporary).iterdir())
            for file in files:
                _sync(file)
            for file in files:
                os.replace(file, folder / file.name)
    except BaseException as error:
        if _full(error):
            message = "the disk is full, so the new files were not written; the previous ones are kept"
            raise OSError(errno.ENOSPC, message, str(folder)) from error
        raise
    if os.name != "nt":  # Windows cannot sync a folder
        _sync(folder)


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """Provide a file to write; at the end, it replaces the one at the path, see `replacing_files`."""
    path = Path(path)
    with replacing_files(path.parent) as folder, open(folder / path.name, "wb") as file:
        yield file


def sweep(folder: Path) -> None:
    """Remove the temporary folders that a killed process left."""
    for left in folder.glob(f"{TEMPORARY}*"):
        shutil.rmtree(left, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # Windows syncs only what is open for writing
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _full(error: BaseException | None) -> bool:
    """Return whether a full disk caused an error, which torch's writer wraps in errors of its own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False
