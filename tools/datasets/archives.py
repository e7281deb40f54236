"""Reads the container formats of the packages and their data: tar, Debian packages, IDX and CSV."""

import csv
import io
import math
import tarfile
from pathlib import Path

import numpy as np


def read_member(archive: tarfile.TarFile, suffix: str) -> bytes:
    """Return the contents of the first file in a tar archive whose name ends with `suffix`.

    Raises:
        ValueError: If there is no such file.
    """
    for member in archive.getmembers():
        if member.name.endswith(suffix):
            file = archive.extractfile(member)
            assert file is not None
            return file.read()
    raise ValueError(f"the archive has no file {suffix}")


def open_deb(path: Path) -> tarfile.TarFile:
    """Open the files of a Debian package, an `ar` archive with a tar archive inside.

    Raises:
        ValueError: If the file is not a Debian package, or if this Python cannot read its compression.
    """
    data = path.read_bytes()
    start = 8
    while data[:8] == b"!<arch>\n" and start + 60 <= len(data):
        name, size = data[start : start + 16].decode().strip().rstrip("/"), int(data[start + 48 : start + 58])
        if name.startswith("data.tar"):
            try:
                return tarfile.open(fileobj=io.BytesIO(data[start + 60 : start + 60 + size]))
            except tarfile.ReadError as error:
                raise ValueError(f"{path.name}: this Python cannot read {name}: {error}") from error
        start += 60 + size + size % 2
    raise ValueError(f"{path.name} is not a Debian package")


def parse_idx(data: bytes) -> np.ndarray:
    """Return the array of an IDX file, the format of MNIST: `[n]` or `[n, height, width]`, uint8.

    Raises:
        ValueError: If the data are not an IDX file of unsigned bytes, or if they are incomplete.
    """
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise ValueError("not an IDX file of unsigned bytes")
    start = 4 * (data[3] + 1)
    shape = [int.from_bytes(data[i : i + 4], "big") for i in range(4, start, 4)]
    if len(data) - start != math.prod(shape):
        raise ValueError(f"incomplete IDX file: {len(data) - start:,} values for shape {shape}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def format_csv(columns: list[str], rows: list[list[str]]) -> str:
    """Return a table as CSV text with a header line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()
