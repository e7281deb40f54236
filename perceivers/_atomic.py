"""Files of a run that a crash at any moment leaves whole: what is there is old or new, never half."""

import errno
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

TEMPORARY = ".tmp"  # end of the name of a file that is being written


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write; at the end it takes the place of the one at the path, and is on the disk.

    Written beside it under another name, synced, renamed, and the folder synced; a failure leaves the old file. A process
    that is killed leaves the other name too, see `sweep`.

    Raises:
        OSError: If the disk is full, with a message that says so and names the path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}{TEMPORARY}"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if _full(error):
            raise OSError(
                errno.ENOSPC, f"the disk is full, {path.name} was not written; the one before is kept", str(path)
            ) from error
        raise
    _sync(path.parent)


@contextmanager
def replacing_files(folder: str | Path) -> Iterator[Path]:
    """Provide an empty folder; at the end, its files replace those of the same names in `folder`.

    All of them are on the disk before the first is moved. If the block fails, `folder` is left as it was.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as temporary:
        yield Path(temporary)
        files = sorted(Path(temporary).iterdir())
        for file in files:
            _sync(file)
        for file in files:
            os.replace(file, folder / file.name)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Removes what a killed process left of files that it was writing."""
    for file in folder.glob(f".*{TEMPORARY}"):
        file.unlink(missing_ok=True)


def _full(error: BaseException | None) -> bool:
    """Whether a full disk is behind an error: torch's writer wraps what the system said."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False
