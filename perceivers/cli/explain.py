"""`perceivers explain`: figures of what the latents of a trained model attend to. Needs no training extra."""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from perceivers._atomic import replacing
from perceivers.cli.predict import Model, add_arguments, batch_of, in_words, load, read_records, results
from perceivers.data.preprocessing import Preprocessing


def main(arguments: list[str]) -> int:
    """Run the command, which draws one figure per sample; return the exit status.

    Raises:
        ValueError: If an argument is wrong, or a file cannot be read.
    """
    parser = argparse.ArgumentParser(
        prog="perceivers explain", description="Draw what a trained model attends to, one figure per sample."
    )
    add_arguments(parser)
    parser.add_argument("--output", type=Path, default=Path("."), help="folder for the figures (default: the current one)")
    parser.add_argument("--layer", type=int, default=-1, help="index of the cross-attention layer (default: the last)")
    parser.add_argument("--most", type=int, default=20, help="maximum number of samples to draw (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    model, preprocessing = load(chosen.model)
    records = list(read_records(chosen.files, preprocessing))
    model.to(chosen.device)
    drawn: set[Path] = set()
    for name, record in tqdm(records[: chosen.most], unit="sample", disable=None, leave=False):
        stem = re.sub(r"[^0-9A-Za-z_-]+", "-", Path(name).name)
        path, number = chosen.output / f"explain-{stem}.png", 1
        while path in drawn:  # a file of the same name in another folder
            number += 1
            path = chosen.output / f"explain-{stem}-{number}.png"
        drawn.add(path)
        draw(model, preprocessing, name, record, chosen.layer, path)
        tqdm.write(str(path), file=sys.stdout)
    if len(records) > chosen.most:
        tqdm.write(f"{len(records) - chosen.most} more samples were left out: --most {len(records)}", file=sys.stderr)
    return 0


@torch.inference_mode()
def draw(model: Model, preprocessing: Preprocessing, name: str, record: Any, layer: int, path: Path) -> None:
    """Draw a sample, the attention of all latents together, and that of three latents that differ most.

    Args:
        model: The model.
        preprocessing: Its preprocessing.
        name: Name of the sample.
        record: The raw record.
        layer: Number of the cross-attention.
        path: The file to write.
    """
    from matplotlib.figure import Figure

    sample = preprocessing(record)
    group = model.attention_maps(*batch_of([sample], preprocessing, model), layer)[0]
    maps = group[0].mean(0).cpu()  # [N, *axes], over the heads
    values = next(iter(results(model, preprocessing, [(name, record)])))[1]
    latents = distinct(maps.flatten(1), 3)
    figure = Figure(figsize=(2.6 * (2 + len(latents)), 2.9), layout="constrained")
    figure.suptitle(f"{Path(name).name}: {in_words(preprocessing, [float(v) for v in values], 3)}", fontsize=9)  # pyright: ignore
    panels = figure.subplots(1, 2 + len(latents))
    preprocessing.draw(panels, record, sample[0], torch.stack([maps.mean(0), *(maps[i] for i in latents)]))
    for panel, title in zip(panels[1:], ["all latents", *(f"latent {i}" for i in latents)], strict=True):
        panel.set_title(title, fontsize=8)
    with replacing(path) as file:
        figure.savefig(file, dpi=120)


def distinct(maps: Tensor, count: int) -> list[int]:
    """Return the indices of maps `[N, M]` of which each is as far as possible from their mean and from those before it."""
    chosen: list[int] = []
    distance = (maps - maps.mean(0)).square().sum(1)
    for _ in range(min(count, len(maps))):
        chosen.append(int(distance.argmax()))
        distance = distance.minimum((maps - maps[chosen[-1]]).square().sum(1))
    return chosen
