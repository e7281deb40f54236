"""Small data sets for the tests, written to files as a user has them: real digits, tables and texts; made-up tones."""

import csv
import os
import wave
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_diabetes, load_digits, load_wine

from perceivers import _atomic

SMALL = {"dim": 16, "heads": 2, "num_latent_tokens": 4, "num_latent_transformers_in_layers": [1, 1]}
TINY = [
    "--trainer.max_epochs=2",
    *(f"--model.network.{name}={value}" for name, value in SMALL.items()),
    "--trainer.enable_progress_bar=false",
]


def images(folder: Path, count: int = 160) -> Path:
    """Class folders of the digits 0 and 1, 8 x 8."""
    digits = load_digits(n_class=2)
    for i in range(count):
        place = folder / str(digits.target[i])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[i] * 15.9).astype(np.uint8)).save(place / f"{i}.png")
    return folder


def arrays(path: Path, count: int = 240) -> Path:
    """The digits 0 to 9 as an .npz file."""
    digits = load_digits()
    np.savez(path, x=digits.images[:count].astype(np.uint8), y=digits.target[:count])
    return path


def audio(folder: Path, count: int = 24) -> Path:
    """Class folders of decaying tones, low and high, 0.1 to 0.2 seconds at 8 kHz, with noise."""
    generator = np.random.default_rng(0)
    for i in range(count):
        name, pitch = (("low", 220), ("high", 880))[i % 2]
        time = np.arange(int(8000 * generator.uniform(0.1, 0.2))) / 8000
        tone = np.sin(2 * np.pi * pitch * generator.uniform(0.9, 1.1) * time) * np.exp(-8 * time)
        values = (tone + 0.02 * generator.standard_normal(len(time))).clip(-1, 1) * 30_000
        (folder / name).mkdir(parents=True, exist_ok=True)
        with wave.open(str(folder / name / f"{i}.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(values.astype("<i2").tobytes())
    return folder


def videos(folder: Path, count: int = 16) -> Path:
    """Class folders of squares that move left and right, 6 to 9 frames of 32 x 32."""
    import av

    for i in range(count):
        name, step = (("left", -3), ("right", 3))[i % 2]
        (folder / name).mkdir(parents=True, exist_ok=True)
        with av.open(str(folder / name / f"{i}.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width = stream.height = 32
            stream.pix_fmt = "yuv420p"
            for t in range(6 + i % 4):
                image = np.full((32, 32, 3), 20, np.uint8)
                left = 12 - step * 3 + step * t
                image[8 + i % 8 : 18 + i % 8, max(left, 0) : max(left + 8, 0)] = 230
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
    return folder


def point_clouds(path: Path, count: int = 40) -> Path:
    """Clouds of 32 points, of balls and boxes of any size at any place."""
    generator = np.random.default_rng(0)
    clouds = generator.uniform(-1, 1, (count, 32, 3))
    clouds[::2] /= np.linalg.norm(clouds[::2], axis=-1, keepdims=True)
    scale, place = generator.uniform(0.5, 5, (count, 1, 1)), generator.uniform(-9, 9, (count, 1, 3))
    np.savez(path, points=clouds * scale + place, y=np.where(np.arange(count) % 2, "box", "ball"))
    return path


def wines(path: Path) -> Path:
    """A table of wines; the column "class" holds the names of three growers."""
    wine = load_wine()
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["class", *wine.feature_names, "colour"])
        for row, target in zip(wine.data, wine.target, strict=True):
            writer.writerow([wine.target_names[target], *row, "deep" if row[9] > 5 else "pale"])
    return path


def diabetes(path: Path) -> Path:
    """A table whose last column, progression, is a number."""
    data = load_diabetes()
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*data.feature_names, "progression"])
        writer.writerows([*row, float(target)] for row, target in zip(data.data, data.target, strict=True))
    return path


def texts(folder: Path, count: int = 30) -> Path:
    """Class folders of text: lines of this library's code, and of its docstrings."""
    import inspect

    import perceivers.perceiver_io as module

    code = [line for line in inspect.getsource(module).splitlines() if "self." in line]
    prose = [line for line in (module.PerceiverIO.__doc__ or "").splitlines() if len(line.split()) > 6]
    for name, lines in (("code", code), ("prose", prose)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i, line in enumerate(lines[:count]):
            (folder / name / f"{i}.txt").write_text(line.strip(), encoding="utf-8")
    return folder


# For each kind of data: what makes it in the current folder and returns its path, and what `predict` is given of it.
KINDS = {
    "Images": (lambda: images(Path("digits")), "digits/1"),
    "Audio": (lambda: audio(Path("tones")), "tones/high"),
    "Videos": (lambda: videos(Path("moves")), "moves"),
    "Arrays": (lambda: arrays(Path("digits.npz")), "digits.npz"),
    "PointClouds": (lambda: point_clouds(Path("shapes.npz")), "shapes.npz"),
    "Table": (lambda: wines(Path("wines.csv")), "wines.csv"),
    "Text": (lambda: texts(Path("texts")), "texts/code"),
}


def read_rows(path: Path | str) -> list[dict[str, str]]:
    """Rows of a .csv file."""
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


class Killed(BaseException):
    """Ends a run as nothing does that the run handles."""


def killed_at(step: int, module: type, patch) -> None:
    """Let a run die in its training step number `step`, counted from now."""
    right, steps = module.training_step, iter(range(10**6))

    def training_step(self, batch, batch_idx):
        if next(steps) == step:
            raise Killed
        return right(self, batch, batch_idx)

    patch.setattr(module, "training_step", training_step)


class Writes:
    """Counts what `perceivers._atomic` writes, syncs and renames, and fails at one of them: raises, or calls a function."""

    def __init__(self, at, failure, patch):
        self.count, self.at, self.failure = 0, at, failure
        for name in ("fsync", "replace"):
            patch.setattr(os, name, self.counted(getattr(os, name)))
        patch.setattr(_atomic, "open", lambda *given: Torn(open(*given), self), raising=False)

    def counted(self, function):
        return lambda *given: (self.step(), function(*given))[1]

    def step(self):
        self.count += 1
        if self.count == self.at:
            if isinstance(self.failure, BaseException):
                raise self.failure
            self.failure()


class Torn:
    """A file of which the failing write leaves a half."""

    def __init__(self, file, writes):
        self.file, self.writes = file, writes

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, data):
        if self.writes.count + 1 == self.writes.at:
            self.file.write(bytes(data)[: len(data) // 2])
            self.file.flush()
        self.writes.step()
        return self.file.write(data)
