"""`perceivers predict` and `perceivers explain`: a trained model on new files, also one of another library."""

import argparse
import csv
import io
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from perceivers._atomic import replacing
from perceivers.checkpoints.detect import from_pretrained
from perceivers.data.detect import PICTURES, SOUNDS, TABLES, VIDEOS, Rows, read_npz, read_table
from perceivers.data.preprocessing import Audio, Points, Preprocessing, collate
from perceivers.layers import Resampler
from perceivers.perceiver import Perceiver
from perceivers.perceiver_io import PerceiverIO
from perceivers.pretrained import PREPROCESSING

SUFFIXES = {
    "Images": PICTURES,
    "CenterCroppedImages": PICTURES,
    "Audio": SOUNDS,
    "Videos": VIDEOS,
    "Text": {".txt"},
    "Table": {*TABLES, ".npz"},
    "Arrays": {".npz", ".npy"},
    "Points": {".npz", ".npy"},
}


def load(source: str | Path) -> tuple[Perceiver | PerceiverIO, Preprocessing]:
    """Loads a model and its preprocessing: what `perceivers fit` left in a folder, or a classifier of transformers.

    Args:
        source: A folder, or the name of a repository on the hub.

    Returns:
        The model, in evaluation mode, and its preprocessing.

    Raises:
        ValueError: If a file is missing or damaged, the model was only pretrained, or has no preprocessing.
    """
    model = from_pretrained(source)
    if model.preprocessing is None or isinstance(model, Resampler):
        raise ValueError(
            f"MODEL {source} has no preprocessing: give a folder that perceivers fit wrote, with {PREPROCESSING}, or a"
            " classifier of transformers with its preprocessor_config.json"
        )
    preprocessing = Preprocessing.create(model.preprocessing)
    if preprocessing.task == "pretraining":
        raise ValueError(f"MODEL {source} was pretrained and knows no labels yet: perceivers fit PATH --from {source}")
    return model, preprocessing


def records_of(files: Sequence[str], preprocessing: Preprocessing) -> Iterator[tuple[str, Any]]:
    """Finds the records in files, and in folders with such files: pairs of a name and what the preprocessing takes.

    Raises:
        ValueError: If a file does not exist, or is of another kind than what the model was trained on.
    """
    kind = type(preprocessing).__name__
    suffixes = SUFFIXES[kind]
    for name in files:
        path = Path(name)
        if not path.exists():
            raise ValueError(f"FILES {name}: there is no such file or folder")
        found = sorted(file for file in path.rglob("*") if file.suffix.lower() in suffixes) if path.is_dir() else [path]
        if not found:
            raise ValueError(f"FILES {name}: there is no file in it with one of {sorted(suffixes)}")
        for file in found:
            suffix = file.suffix.lower()
            if suffix in TABLES and kind in ("Table", "Text"):
                rows = read_table(file)
                yield from ((f"{file}:{i}", row["text"] if kind == "Text" else row) for i, row in enumerate(rows))
            elif suffix not in suffixes:
                raise ValueError(f"FILES {file}: the model reads {kind.lower()}, {sorted(suffixes)}")
            elif suffix in (".npz", ".npy"):
                x = _array(file)
                yield from ((f"{file}:{i}", row) for i, row in enumerate(Rows(x) if kind == "Table" else x))
            else:
                yield str(file), file


def _array(file: Path) -> np.ndarray:
    try:
        arrays = read_npz(file) if file.suffix.lower() == ".npz" else {"x": np.load(file, "r", allow_pickle=False)}
    except Exception as error:  # of many kinds, by what is damaged
        raise ValueError(f"FILES {file} is damaged or holds no arrays of numbers: {error}") from error
    name = next((name for name in ("x", "points", "x_test", "points_test") if name in arrays), None)
    if name is None:
        raise ValueError(f"FILES {file}: it has {sorted(arrays)}, but no x: save x [n, ...]")
    return arrays[name]


@torch.inference_mode()
def results(
    model: Perceiver | PerceiverIO, preprocessing: Preprocessing, records: Sequence[tuple[str, Any]], batch_size: int = 64
) -> Iterator[tuple[str, Tensor | str]]:
    """Runs a model on records.

    Yields:
        For each its name, and probabilities of classes or labels `[k]`, or numbers in the units of the targets `[k]`; for a
        record that cannot be read, the reason.
    """
    device = next(model.parameters()).device
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
        x, mask = collate(samples)
        x = {key: value.to(device) for key, value in x.items()} if isinstance(x, dict) else x.to(device)
        outputs = model(x, None if mask is None else mask.to(device)).float().cpu()
        if outputs.shape[1:] != (len(preprocessing.labels),):
            raise ValueError(
                f"the model gives {list(outputs.shape[1:])} numbers for {len(preprocessing.labels)} labels: its"
                f" {PREPROCESSING} belongs to another"
            )
        match preprocessing.task:
            case "classification":
                outputs = outputs.softmax(-1)
            case "multi_label":
                outputs = outputs.sigmoid()
            case _:
                outputs = outputs * torch.tensor(preprocessing.target_std) + torch.tensor(preprocessing.target_mean)
        yield from zip(names, outputs, strict=True)


def predict(arguments: list[str]) -> int:
    """Runs `perceivers predict MODEL FILES...`; returns the exit status, 1 where a file could not be read."""
    parser = argparse.ArgumentParser(prog="perceivers predict", description="What a trained model says of new files.")
    _common(parser)
    parser.add_argument("--output", type=Path, default=Path("predictions.csv"), help="table to write (default: %(default)s)")
    parser.add_argument("--top", type=int, default=3, help="classes to print (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="samples at a time (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    for name in ("top", "batch_size"):
        if getattr(chosen, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(chosen, name)} must be at least 1")
    model, preprocessing = load(chosen.model)
    records = list(records_of(chosen.files, preprocessing))
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
        tqdm.write(f"{name}: {_words(preprocessing, numbers, chosen.top)}", file=sys.stdout)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["file", *(["prediction"] if classes else []), *preprocessing.labels])
    writer.writerows(rows)
    with replacing(chosen.output) as file:
        file.write(text.getvalue().encode())
    tqdm.write(f"{len(rows)} predictions in {chosen.output}" + (f", {failed} could not be read" if failed else ""))
    return 1 if failed else 0


def _words(preprocessing: Preprocessing, values: list[float], top: int) -> str:
    if preprocessing.task == "regression":
        return ", ".join(f"{label} {value:.4g}" for label, value in zip(preprocessing.labels, values, strict=True))
    order = sorted(range(len(values)), key=lambda i: -values[i])[:top]
    return ", ".join(f"{preprocessing.labels[i]} {values[i]:.1%}" for i in order)


def explain(arguments: list[str]) -> int:
    """Runs `perceivers explain MODEL FILES...`: a picture for each sample of where the latents look."""
    parser = argparse.ArgumentParser(prog="perceivers explain", description="Where a trained model looks, as pictures.")
    _common(parser)
    parser.add_argument("--output", type=Path, default=Path("."), help="folder for the pictures (default: the current one)")
    parser.add_argument("--layer", type=int, default=-1, help="which cross-attention (default: the last)")
    parser.add_argument("--most", type=int, default=20, help="samples to draw at most (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    model, preprocessing = load(chosen.model)
    records = list(records_of(chosen.files, preprocessing))
    model.to(chosen.device)
    drawn: set[Path] = set()
    for name, record in tqdm(records[: chosen.most], unit="sample", disable=None, leave=False):
        stem = re.sub(r"[^0-9A-Za-z_-]+", "-", Path(name).name)
        path, number = chosen.output / f"explain-{stem}.png", 1
        while path in drawn:  # of the same name in another folder
            number += 1
            path = chosen.output / f"explain-{stem}-{number}.png"
        drawn.add(path)
        _draw(model, preprocessing, name, record, chosen.layer, path)
        tqdm.write(str(path), file=sys.stdout)
    if len(records) > chosen.most:
        tqdm.write(f"{len(records) - chosen.most} more samples were left out: --most {len(records)}", file=sys.stderr)
    return 0


@torch.inference_mode()
def _draw(
    model: Perceiver | PerceiverIO, preprocessing: Preprocessing, name: str, record: Any, layer: int, path: Path
) -> None:
    """Draws a sample, where all latents together look, and three latents that look at most different places."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    x, mask = collate([preprocessing(record)])
    device = next(model.parameters()).device
    x: Any = {key: value.to(device) for key, value in x.items()} if isinstance(x, dict) else x.to(device)
    groups = model.attention_maps(x, None if mask is None else mask.to(device), layer)
    group = (groups if isinstance(groups, Tensor) else groups[0])[0].mean(0).cpu()  # [N, *axes]
    maps, axes = group.flatten(1), group.shape[1:]
    values = next(iter(results(model, preprocessing, [(name, record)])))[1]
    together = maps.mean(0)
    chosen: list[int] = []
    distance = (maps - together).square().sum(1)
    for _ in range(min(3, len(maps))):  # each as far as can be from all before it
        chosen.append(int(distance.argmax()))
        distance = distance.minimum((maps - maps[chosen[-1]]).square().sum(1))
    shown = [("all latents", together), *((f"latent {i}", maps[i]) for i in chosen)]
    figure = Figure(figsize=(2.6 * (1 + len(shown)), 2.9), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{Path(name).name}: {_words(preprocessing, [float(v) for v in values], 3)}", fontsize=9)  # pyright: ignore
    panels = figure.subplots(1, 1 + len(shown))
    if isinstance(x, Tensor) and x.ndim == 5:  # of a video, the frame in the middle, and where is looked at in all frames
        x, axes = x[:, :, x.shape[2] // 2], axes[1:]
        shown = [(title, one.unflatten(0, (-1, axes.numel())).sum(0)) for title, one in shown]
    if isinstance(x, Tensor) and x.ndim == 4:
        picture = x[0, :3].movedim(0, -1).cpu()
        low, high = picture.min(), picture.max()
        panels[0].imshow(((picture - low) / (high - low).clamp_min(1e-6)).squeeze(-1).numpy(), cmap="gray")
        for panel, (title, one) in zip(panels[1:], shown, strict=True):
            panel.imshow(one.reshape(axes).numpy(), cmap="magma")
            panel.set_title(title, fontsize=8)
        for panel in panels:
            panel.axis("off")
    elif isinstance(preprocessing, Points):
        assert isinstance(x, Tensor)
        spread = x[0].amax(1) - x[0].amin(1)
        across, up = x[0, sorted(spread.topk(2).indices.tolist())].cpu().numpy()  # from the broadest side
        panels[0].scatter(across, up, s=2, c="grey")
        for panel, (title, one) in zip(panels[1:], shown, strict=True):
            panel.scatter(across, up, s=4, c=one.numpy(), cmap="magma")
            panel.set_title(title, fontsize=8)
        for panel in panels:
            panel.set_aspect("equal")
            panel.axis("off")
    else:
        columns = [*getattr(preprocessing, "numeric", []), *getattr(preprocessing, "categorical", {})]
        # Of sound the axis is time; else places, one a bar.
        length = preprocessing.num_samples / preprocessing.sample_rate if isinstance(preprocessing, Audio) else len(together)
        if isinstance(x, Tensor):
            series = x[0].reshape(-1, x.shape[-1])[0].float().cpu().numpy()
            panels[0].plot(np.linspace(0, length, len(series)), series, linewidth=0.6)
            panels[0].set_xlabel("seconds" if isinstance(preprocessing, Audio) else "place", fontsize=7)
        else:
            panels[0].axis("off")
            panels[0].text(0, 1, "\n".join(f"{c}: {record[c]}" for c in columns[:20]), va="top", fontsize=6)
        for panel, (title, one) in zip(panels[1:], shown, strict=True):
            panel.bar(np.arange(len(one)) * length / len(one), one.numpy(), width=length / len(one), align="edge")
            if columns:
                panel.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=90, fontsize=5)
            panel.set_title(title, fontsize=8)
    with replacing(path) as file:
        figure.savefig(file, dpi=120)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="folder that perceivers fit wrote, or a classifier of transformers")
    parser.add_argument("files", metavar="FILES", nargs="+", help="files of the kind it was trained on, or folders of them")
    parser.add_argument("--device", default="cpu", help="such as cuda (default: %(default)s)")
