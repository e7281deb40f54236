"""`perceivers predict`: run a trained model, also one of transformers, on new files. Needs no training extra."""

import argparse
import csv
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from perceivers._atomic import replacing
from perceivers.checkpoints.detect import from_pretrained
from perceivers.data.preprocessing import PRETRAINING, Preprocessing
from perceivers.layers import Resampler
from perceivers.perceiver import Perceiver
from perceivers.perceiver_io import PerceiverIO
from perceivers.pretrained import PREPROCESSING

Model = Perceiver | PerceiverIO


def main(arguments: list[str]) -> int:
    """Run the command; return the exit status, 1 if a file could not be read.

    Raises:
        ValueError: If an argument is wrong.
    """
    parser = argparse.ArgumentParser(prog="perceivers predict", description="Predict the labels of new files.")
    add_arguments(parser)
    parser.add_argument("--output", type=Path, default=Path("predictions.csv"), help="table to write (default: %(default)s)")
    parser.add_argument("--top", type=int, default=3, help="number of classes to print per sample (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="samples per batch (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    for name in ("top", "batch_size"):
        if getattr(chosen, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(chosen, name)} must be at least 1")
    model, preprocessing = load(chosen.model)
    records = list(read_records(chosen.files, preprocessing))
    classes = preprocessing.task == "classification"
    rows, failed = [], 0
    model.to(chosen.device)
    found = results(model, preprocessing, records, chosen.batch_size)
    for name, values in tqdm(found, total=len(records), unit="sample", disable=None, leave=False):
        if isinstance(values, str):
            failed += 1
            tqdm.write(f"{name}: {values}", file=sys.stderr)
            continue
        numbers = [float(value) for value in values]
        rows.append([name, *([preprocessing.labels[int(values.argmax())]] if classes else []), *(f"{v:.6g}" for v in numbers)])
        tqdm.write(f"{name}: {in_words(preprocessing, numbers, chosen.top)}", file=sys.stdout)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["file", *(["prediction"] if classes else []), *preprocessing.labels])
    writer.writerows(rows)
    with replacing(chosen.output) as file:
        file.write(text.getvalue().encode())
    tqdm.write(f"{len(rows)} predictions in {chosen.output}" + (f", {failed} files could not be read" if failed else ""))
    return 1 if failed else 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `predict` and `explain` share."""
    parser.add_argument("model", metavar="MODEL", help="folder of a run, or a classifier of transformers")
    parser.add_argument("files", metavar="FILES", nargs="+", help="files like those it was trained on, or folders of them")
    parser.add_argument("--device", default="cpu", help="device to run on, such as cuda (default: %(default)s)")


def load(source: str | Path) -> tuple[Model, Preprocessing]:
    """Load a model and its preprocessing: those that `perceivers fit` left in a folder, or a classifier of transformers.

    Args:
        source: A folder, or the name of a repository on the hub.

    Returns:
        The model, in evaluation mode, and its preprocessing.

    Raises:
        ValueError: If a file is missing or damaged, or the model was only pretrained, or has no preprocessing.
    """
    model = from_pretrained(source)
    if model.preprocessing is None or isinstance(model, Resampler):
        raise ValueError(
            f"MODEL {source} has no preprocessing: give a folder that perceivers fit wrote, with {PREPROCESSING}, or a"
            " classifier of transformers with its preprocessor_config.json"
        )
    preprocessing = Preprocessing.create(model.preprocessing)
    if preprocessing.task == PRETRAINING:
        raise ValueError(f"MODEL {source} was only pretrained and has no labels: perceivers fit PATH --from {source}")
    return model, preprocessing


def read_records(files: Sequence[str], preprocessing: Preprocessing) -> Iterator[tuple[str, Any]]:
    """Yield the records in files, and in folders of such files: pairs of a name and what the preprocessing takes.

    Raises:
        ValueError: If a file does not exist, or is not of the kind that the model was trained on.
    """
    suffixes = preprocessing.suffixes or preprocessing.containers
    for name in files:
        path = Path(name)
        if not path.exists():
            raise ValueError(f"FILES {name}: there is no such file or folder")
        found = sorted(file for file in path.rglob("*") if file.suffix.lower() in suffixes) if path.is_dir() else [path]
        if not found:
            raise ValueError(f"FILES {name}: there is no file in it with one of the suffixes {sorted(suffixes)}")
        for file in found:
            if file.suffix.lower() in preprocessing.suffixes:
                yield str(file), file
            elif file.suffix.lower() in preprocessing.containers:
                yield from ((f"{file}:{i}", record) for i, record in enumerate(preprocessing.read(file)))
            else:
                raise ValueError(f"FILES {file}: the model reads {preprocessing.plural}, {sorted(suffixes)}")


@torch.inference_mode()
def results(
    model: Model, preprocessing: Preprocessing, records: Sequence[tuple[str, Any]], batch_size: int = 64
) -> Iterator[tuple[str, Tensor | str]]:
    """Run a model on records.

    Yields:
        For each its name, and the probabilities of classes or labels `[k]`, or numbers in the units of the targets `[k]`; if a
        record cannot be read, the reason instead.
    """
    for first in range(0, len(records), batch_size):
        names, samples = [], []
        for name, record in records[first : first + batch_size]:
            try:
                samples.append(preprocessing(record))
                names.append(name)
            except ValueError as error:
                yield name, str(error)
        if not samples:
            continue
        outputs = model(*batch_of(samples, preprocessing, model)).float().cpu()
        if outputs.shape[1:] != (len(preprocessing.labels),):
            raise ValueError(
                f"the model outputs {list(outputs.shape[1:])} numbers for {len(preprocessing.labels)} labels: its"
                f" {PREPROCESSING} belongs to another model"
            )
        match preprocessing.task:
            case "classification":
                outputs = outputs.softmax(-1)
            case "multi_label":
                outputs = outputs.sigmoid()
            case _:
                outputs = outputs * torch.tensor(preprocessing.target_std) + torch.tensor(preprocessing.target_mean)
        yield from zip(names, outputs, strict=True)


def batch_of(samples: Sequence[Any], preprocessing: Preprocessing, model: Model) -> tuple[Any, Tensor | None]:
    """Return a batch of samples on the device of the model."""
    x, mask = preprocessing.collate(samples)
    device = next(model.parameters()).device
    x = {key: value.to(device) for key, value in x.items()} if isinstance(x, dict) else x.to(device)
    return x, None if mask is None else mask.to(device)


def in_words(preprocessing: Preprocessing, values: list[float], top: int) -> str:
    """Return the most probable labels, or all numbers, as one line."""
    if preprocessing.task == "regression":
        return ", ".join(f"{label} {value:.4g}" for label, value in zip(preprocessing.labels, values, strict=True))
    order = sorted(range(len(values)), key=lambda i: -values[i])[:top]
    return ", ".join(f"{preprocessing.labels[i]} {values[i]:.1%}" for i in order)
