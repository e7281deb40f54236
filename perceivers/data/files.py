"""Reading the files that hold many records, tables and arrays, and opening those that hold one."""

import io
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

TABLES = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".json": "json", ".jsonl": "json"}
ARRAYS = (".npz", ".npy")
MAPPED = 64 << 20  # bytes from which an array is memory-mapped


def source_of(record: Any) -> tuple[Any, str]:
    """Return what a decoder reads, a path or an open file, and a name for messages.

    Args:
        record: A path, the bytes of a file, or a dict with either, as data sets keep undecoded files.
    """
    if isinstance(record, Mapping):
        record, path = (record["path"], None) if record.get("bytes") is None else (record["bytes"], record.get("path"))
        if isinstance(record, bytes):
            return io.BytesIO(record), path or "a record"
    if isinstance(record, bytes):
        return io.BytesIO(record), "a record"
    return str(record), str(record)


def read_table(path: Path) -> Any:
    """Read a table as a `datasets.Dataset`.

    Raises:
        ValueError: If the file is not a table of the format that its suffix names.
    """
    from datasets import disable_progress_bars, enable_progress_bars, load_dataset

    options: dict[str, Any] = {"sep": "\t"} if path.suffix.lower() == ".tsv" else {}
    disable_progress_bars()  # a table is read in seconds
    try:
        return load_dataset(TABLES[path.suffix.lower()], data_files=str(path), split="train", **options)
    except Exception as error:  # of many kinds, by the format's own reader
        raise ValueError(f"{path} cannot be read as a table: {error.__cause__ or error}") from error
    finally:
        enable_progress_bars()


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of an `.npz` or `.npy` file; the array of an `.npy` file is named "x".

    Arrays that are large and not compressed are memory-mapped.

    Raises:
        ValueError: If the file is damaged, or holds Python objects.
    """
    try:
        return _read_npz(path) if path.suffix.lower() == ".npz" else {"x": np.load(path, "r", allow_pickle=False)}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, struct.error) as error:
        raise ValueError(f"{path} is damaged or does not hold arrays of numbers: {error}") from error


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        arrays = {}
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if member.compress_type != zipfile.ZIP_STORED or member.file_size < MAPPED:
                with archive.open(member) as one:
                    arrays[name] = np.lib.format.read_array(one, allow_pickle=False)
                continue
            file.seek(member.header_offset + 26)  # the lengths of the name and the extra field, which precede the array
            file.seek(sum(struct.unpack("<HH", file.read(4))), 1)
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = header(file)
            if dtype.hasobject:
                raise ValueError(f"{name} holds Python objects: save arrays of numbers")
            arrays[name] = np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C")
    return arrays


def read_array(path: Path) -> np.ndarray:
    """Read the array of records in an `.npz` or `.npy` file: x, points, x_test or points_test.

    Raises:
        ValueError: If there is none, or the file is damaged.
    """
    arrays = read_arrays(path)
    name = next((name for name in ("x", "points", "x_test", "points_test") if name in arrays), None)
    if name is None:
        raise ValueError(f"{path} holds {sorted(arrays)}, but no x: save x [n, ...]")
    return arrays[name]
