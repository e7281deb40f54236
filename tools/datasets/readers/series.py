"""Time series: Japanese Vowels (UEA) and data sets of the UCR archive."""

import io
import zipfile
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]


def read_japanese_vowels(path: Path) -> Arrays:
    """Return series `[n, 12, 25]`, float32, and speakers `[n]`, uint8."""
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        for split in ("train", "test"):
            name = f"aeon/datasets/data/JapaneseVowels/JapaneseVowels_eq_{split.upper()}.ts"
            lines = archive.read(name).decode().split("@data")[1].strip().split("\n")
            rows = [line.strip().split(":") for line in lines]
            arrays[f"x_{split}"] = np.array([[channel.split(",") for channel in row[:-1]] for row in rows], dtype=np.float32)
            arrays[f"y_{split}"] = np.array([int(row[-1]) for row in rows], dtype=np.uint8)
    return arrays


def read_ucr(name: str, path: Path) -> Arrays:
    """Return series `[n, 1, steps]`, float32, and classes `[n]`, int64, of the UCR data set `name`."""
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        for split in ("train", "test"):
            (file,) = (member for member in archive.namelist() if member.endswith(f"/{name}_{split.upper()}.tsv"))
            rows = np.loadtxt(io.BytesIO(archive.read(file)), delimiter="\t", ndmin=2)
            arrays[f"x_{split}"] = rows[:, None, 1:].astype(np.float32)
            arrays[f"y_{split}"] = rows[:, 0].astype(np.int64)
    return arrays
