"""What lies at a path: pictures, sounds, videos, texts, a table, points or arrays, and what is to be learned from them.

The rules, in order; what was chosen is said in `Recognised.facts`:

- The name of a set that `perceivers data prepare` fetched is that set.
- `hub:NAME` is a data set on the hub, a folder with `dataset_info.json` or `dataset_dict.json` one saved by `datasets`.
- A folder with `x.npy` and `y.npy` is arrays, an `.npz` file with `x` and `y` likewise, or with `x_train`, `y_train`,
  `x_test`, `y_test`; clouds of points [n, m, 2 or 3] are named `points`, `points_train` and so on, not x. What is not
  compressed and larger than 64 MB is mapped into memory, not read. A single `.npy` file can be pretrained on.
- `.csv`, `.tsv`, `.parquet`, `.json` and `.jsonl` are tables. Their target is the column "label", "target", "class" or "y",
  else the last; a column "text" makes them texts; a column "split" of "train", "validation" and "test" says which rows are
  what.
- Any other folder holds a folder a class, of pictures, of sounds, of videos or of `.txt` files, the most frequent of these;
  above them may be folders "train", "validation" (or "val", "valid", "dev") and "test".
- Targets that are names, truth values, or whole numbers with at most 20 values are classes, other numbers regression; several
  targets that are only 0 and 1 are labels of which any number may be there.
"""

import struct
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from perceivers.training.sets import SETS, cache

PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
SOUNDS = {".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif"}
VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"}
MEDIA = {"Images": PICTURES, "Audio": SOUNDS, "Videos": VIDEOS, "Text": {".txt"}}
TABLES = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".json": "json", ".jsonl": "json"}
TARGETS = ("label", "target", "class", "y")
SPLITS = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation", "dev": "validation"}
SPLITS["test"] = "test"
PRETRAINING = "pretraining"
PIECE = 256  # characters of a file of text that is pretrained on
MAPPED = 64 << 20  # bytes from which an array is mapped
FEW = 20  # whole numbers with more values than this are no classes


@dataclass(frozen=True)
class Split:
    """Raw records, and what is to be predicted from each: classes `[n]`, integer, or numbers or labels `[n, k]`."""

    records: Sequence[Any]
    targets: np.ndarray | None


@dataclass(frozen=True)
class Recognised:
    """What was found.

    Attributes:
        kind: "Images", "Audio", "Videos", "Text", "Table", "Points" or "Arrays".
        splits: "train", and "validation" and "test" where they are given.
        task: "classification", "multi_label" or "regression".
        labels: Names of classes, labels or numbers.
        facts: What was found, in words, a line each.
    """

    kind: str
    splits: Mapping[str, Split]
    task: str
    labels: list[str]
    facts: list[str] = field(default_factory=list)


def recognise(path: str, *, target: str | None = None, task: str | None = None) -> Recognised:
    """Reads what lies at a path by the rules above.

    Args:
        path: A folder, a file, or `hub:NAME`.
        target: Column of a table that is to be predicted, or several, with commas between.
        task: "classification", "multi_label" or "regression" where the rules choose wrongly; "pretraining" for data that need
            no targets; `None` for the rules.

    Raises:
        ValueError: If nothing is there, nothing is recognised, or targets are missing; the message says what to change.
    """
    from datasets import load_dataset, load_from_disk

    if path.startswith("hub:"):
        return _from_datasets(load_dataset(path.removeprefix("hub:")), target, task)
    place = Path(path)
    if not place.exists() and path in SETS and (cache() / SETS[path].file).exists():
        place = cache() / SETS[path].file
    if not place.exists():
        raise ValueError(f"PATH {path}: there is no such file or folder{_prepared(path)}")
    if place.is_file():
        if place.suffix in (".npz", ".npy"):
            try:
                arrays = read_npz(place) if place.suffix == ".npz" else {"x": np.load(place, "r", allow_pickle=False)}
            except (OSError, ValueError, EOFError, zipfile.BadZipFile, struct.error) as error:
                raise ValueError(f"PATH {path} is damaged or holds no arrays of numbers: {error}") from error
            return _from_arrays(arrays, path, task)
        if place.suffix in TABLES:
            return _from_datasets(read_table(place), target, task)
        if place.suffix == ".txt" and task == PRETRAINING:
            text = place.read_text(encoding="utf-8")
            pieces = [text[i : i + PIECE] for i in range(0, len(text), PIECE)]
            return _checked("Text", {"train": Split(pieces, None)}, task, [], f"pieces of {path}")
        known = ", ".join((".npz", *TABLES))
        raise ValueError(
            f"PATH {path}: {place.suffix or 'a file without a suffix'} is none of {known}; pictures, sounds, videos and"
            " texts lie in a folder, in it a folder for each class; a single .txt file can be pretrained on"
        )
    if (place / "dataset_info.json").exists() or (place / "dataset_dict.json").exists():
        return _from_datasets(load_from_disk(str(place)), target, task)
    if any((place / f"{name}.npy").exists() for name in ("x", "x_train", "points", "points_train")):
        parts = ("", "_train", "_validation", "_test")
        names = [f"{name}{part}" for name in ("x", "points", "y") for part in parts]
        found = {name: place / f"{name}.npy" for name in names if (place / f"{name}.npy").exists()}
        return _from_arrays({name: np.load(file, mmap_mode="r") for name, file in found.items()}, path, task)
    return _from_folders(place, task)


def _prepared(path: str) -> str:
    return f": fetch it with perceivers data prepare {path}" if path in SETS else ""


def read_table(path: Path) -> Any:
    """Reads a table as a `datasets.Dataset`.

    Raises:
        ValueError: If its format's reader cannot.
    """
    from datasets import disable_progress_bars, enable_progress_bars, load_dataset

    options: dict[str, Any] = {"sep": "\t"} if path.suffix.lower() == ".tsv" else {}
    disable_progress_bars()  # a table is read in seconds
    try:
        return load_dataset(TABLES[path.suffix.lower()], data_files=str(path), split="train", **options)
    except Exception as error:  # of many kinds, by the format's own reader
        raise ValueError(f"PATH {path}: it cannot be read as a table: {error.__cause__ or error}") from error
    finally:
        enable_progress_bars()


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of an `.npz` file; large ones that are not compressed are mapped.

    Raises:
        ValueError: If it is damaged, or would have to run code.
    """
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        arrays = {}
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if member.compress_type != zipfile.ZIP_STORED or member.file_size < MAPPED:
                with archive.open(member) as one:
                    arrays[name] = np.lib.format.read_array(one, allow_pickle=False)
                continue
            file.seek(member.header_offset + 26)  # the lengths of what stands before the array
            file.seek(sum(struct.unpack("<HH", file.read(4))), 1)
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = header(file)
            if dtype.hasobject:
                raise ValueError(f"{name} holds objects: save arrays of numbers")
            arrays[name] = np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C")
    return arrays


def _from_folders(place: Path, task: str | None) -> Recognised:
    tops = {SPLITS[folder.name]: folder for folder in sorted(place.iterdir()) if folder.is_dir() and folder.name in SPLITS}
    folders = tops if "train" in tops else {"train": place}
    seen = Counter(file.suffix.lower() for file in folders["train"].rglob("*") if file.is_file())
    counts = {kind: sum(seen[suffix] for suffix in suffixes) for kind, suffixes in MEDIA.items()}
    kind = max(counts, key=lambda name: counts[name])
    if not counts[kind]:
        shown = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in seen.most_common(5)) or "nothing"
        raise ValueError(
            f"PATH {place}: no pictures, sounds, videos or .txt files in it, only {shown}; see perceivers fit --help"
        )
    if task == PRETRAINING:
        suffixes = MEDIA[kind]
        found = {n: sorted(one for one in top.rglob("*") if one.suffix.lower() in suffixes) for n, top in folders.items()}
        return _checked(kind, {name: Split(files, None) for name, files in found.items()}, PRETRAINING, [], str(place))
    labels = sorted(
        folder.name for folder in folders["train"].iterdir() if folder.is_dir() and not folder.name.startswith(".")
    )
    splits = {}
    for name, folder in folders.items():
        if unknown := sorted({one.name for one in folder.iterdir() if one.is_dir()} - set(labels)):
            raise ValueError(f"PATH {folder}: the classes {unknown[:5]} are not in {folders['train']}: add or remove them")
        files = [
            (file, i)
            for i, label in enumerate(labels)
            for file in sorted((folder / label).rglob("*"))
            if file.suffix.lower() in MEDIA[kind]
        ]
        splits[name] = Split([file for file, _ in files], np.array([i for _, i in files], dtype=np.int64))
    return _checked(kind, splits, "classification", labels, str(place))


def _from_datasets(found: Any, target: str | None, task: str | None) -> Recognised:
    from datasets import Audio, ClassLabel, Dataset, Image, Video

    parts: Mapping[str, Any] = _by_column(found) if isinstance(found, Dataset) else found
    parts = {SPLITS[str(name)]: part for name, part in parts.items() if str(name) in SPLITS}
    if "train" not in parts:
        raise ValueError(f"PATH: the data set has the parts {sorted(map(str, found))}, but no 'train'")
    features = parts["train"].features
    kinds = {Image: "Images", Audio: "Audio", Video: "Videos"}
    media = [name for name, feature in features.items() if type(feature) in kinds]
    names = _target_columns(features, target, media, task)
    columns = [name for name in features if name not in names]
    kind, column = "Table", None
    if media:
        column = media[0]
        kind = kinds[type(features[column])]
        decoder = type(features[column])(decode=False)
        parts = {name: part.cast_column(column, decoder) for name, part in parts.items()}
    elif "text" in columns:
        kind, column = "Text", "text"
    if task == PRETRAINING:
        splits = {name: Split(_Column(part, column, columns), None) for name, part in parts.items()}
        return _checked(kind, splits, PRETRAINING, [], "columns " + ", ".join(columns))
    raw = {name: [part[:][key] for key in names] for name, part in ((n, p.select_columns(names)) for n, p in parts.items())}
    for name, values in raw.items():
        for key, column_values in zip(names, values, strict=True):
            if bad := sum(value is None for value in column_values):
                raise ValueError(
                    f"target {key!r} is missing in {bad} of {len(column_values)} rows of {name}: remove these rows"
                )
    feature = features[names[0]]
    if len(names) == 1 and isinstance(feature, ClassLabel):
        task, labels = "classification", list(feature.names)
        targets = {name: np.array(values[0], dtype=np.int64) for name, values in raw.items()}
    else:
        task, labels, targets = _targets(names, raw, task)
    splits = {name: Split(_Column(part, column, columns), targets[name]) for name, part in parts.items()}
    return _checked(kind, splits, task, labels, "target " + ", ".join(names))


def _by_column(table: Any) -> dict[str, Any]:
    """The parts of a table that a column "split" names; the whole table to train where there is no such column."""
    names = table["split"][:] if "split" in table.features else []
    if "train" not in names or not {str(name) for name in names} <= SPLITS.keys():
        return {"train": table}
    rest = table.remove_columns("split")
    return {name: rest.select([i for i, own in enumerate(names) if own == name]) for name in sorted(set(names))}


def _target_columns(features: Mapping[str, Any], target: str | None, media: list[str], task: str | None) -> list[str]:
    if target is None:
        others = [name for name in features if name not in media]
        if task == PRETRAINING:  # the last column is as good as any, but a target by its name is left out
            return [name for name in others if name.lower() in TARGETS]
        if not others:
            raise ValueError("PATH: there are no classes: put the files into a folder for each class")
        return [next((name for name in others if name.lower() in TARGETS), others[-1])]
    names = target.split(",")
    if unknown := [name for name in names if name not in features]:
        raise ValueError(f"target={target!r}: there are no columns {unknown}, only {list(features)}")
    return names


def _targets(names: list[str], raw: Mapping[str, list[list[Any]]], task: str | None) -> tuple[str, list[str], dict[str, Any]]:
    """Applies the rules to columns of targets: task, labels, and for each split the targets."""
    columns = raw["train"]
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for column in columns for value in column)
    if task is None:
        if len(names) > 1:
            binary = all(value in (0, 1) for column in columns for value in column)
            task = "multi_label" if binary else "regression"
        else:
            whole = numbers and all(isinstance(value, int) for value in columns[0])
            classes = not numbers or (whole and len(set(columns[0])) <= FEW)
            task = "classification" if classes else "regression"
    if task == "classification":
        labels = sorted({str(value) for value in columns[0]}, key=float if numbers else None)
        places = {label: i for i, label in enumerate(labels)}
        if unknown := {str(value) for values in raw.values() for value in values[0]} - places.keys():
            raise ValueError(
                f"target {names[0]!r} has classes {sorted(unknown)[:5]} that no row to train on has: add such rows"
            )
        return task, labels, {name: np.array([places[str(v)] for v in values[0]], np.int64) for name, values in raw.items()}
    try:
        targets = {name: np.array(values, dtype=np.float32).T for name, values in raw.items()}
    except (TypeError, ValueError) as error:
        raise ValueError(f"target {','.join(names)!r} holds values that are no numbers: {error}") from error
    return task, names, targets


def _from_arrays(arrays: Mapping[str, np.ndarray], path: str, task: str | None) -> Recognised:
    clouds = any(name.startswith("points") for name in arrays)
    if clouds:
        arrays = {name.replace("points", "x", 1): array for name, array in arrays.items()}
        if task == PRETRAINING:
            raise ValueError(
                f"PATH {path}: pretraining of clouds of points is not there: give pictures, sounds, arrays or others"
            )
    names = ("x_train", "y_train") if "x_train" in arrays else ("x", "y")
    needed = names[:1] if task == PRETRAINING else names
    if missing := [name for name in needed if name not in arrays]:
        raise ValueError(f"PATH {path}: it has {sorted(arrays)}, but no {missing}: save x [n, ...] and y [n]")
    pairs = {"train": names, "validation": ("x_validation", "y_validation"), "test": ("x_test", "y_test")}
    splits: dict[str, np.ndarray] = {}
    wide: dict[str, list[list[Any]]] = {}
    for name, (x, y) in pairs.items():
        if x not in arrays or (y not in arrays and task != PRETRAINING):
            continue
        if arrays[x].ndim < 2 or not (np.issubdtype(arrays[x].dtype, np.number) or arrays[x].dtype == bool):
            raise ValueError(
                f"PATH {path}: {x} holds {arrays[x].dtype} of shape {list(arrays[x].shape)}, not numbers [n, ...]"
            )
        splits[name] = arrays[x]
        if task != PRETRAINING:
            if arrays[y].ndim not in (1, 2) or len(arrays[x]) != len(arrays[y]):
                raise ValueError(
                    f"PATH {path}: {x} has shape {list(arrays[x].shape)}, {y} {list(arrays[y].shape)}, but [n, ...] and [n] or"
                    " [n, k] are needed"
                )
            wide[name] = arrays[y].reshape(len(arrays[y]), -1).T.tolist()
    labels: list[str] = []
    targets: Mapping[str, Any] = dict.fromkeys(splits)
    if task != PRETRAINING:
        columns = ["y"] if len(wide["train"]) == 1 else [f"y{i}" for i in range(len(wide["train"]))]
        task, labels, targets = _targets(columns, wide, task)
    if clouds and (splits["train"].ndim != 3 or splits["train"].shape[2] not in (2, 3)):
        raise ValueError(f"PATH {path}: points have shape {list(splits['train'].shape)}, but [n, m, 2 or 3] is needed")
    kind = "Points" if clouds else "Table" if splits["train"].ndim == 2 and splits["train"].shape[1] <= 256 else "Arrays"
    records: Mapping[str, Any] = {name: Rows(x) if kind == "Table" else x for name, x in splits.items()}
    shape = list(splits["train"].shape[1:])
    return _checked(kind, {n: Split(records[n], targets[n]) for n in records}, task, labels, f"arrays of shape {shape}")


def _checked(kind: str, splits: Mapping[str, Split], task: str, labels: list[str], what: str) -> Recognised:
    if task == "classification" and len(labels) < 2:
        raise ValueError(f"PATH: there is only one class, {labels}: at least two are needed")
    for name, split in splits.items():
        if not len(split.records):
            raise ValueError(f"PATH: {name} is empty: add files or rows, or remove it")
    sizes = ", ".join(f"{len(splits[n].records):,} {n}" for n in ("train", "validation", "test") if n in splits)
    if task == PRETRAINING:
        return Recognised(kind, splits, task, labels, [f"{kind.lower()} ({what}): {sizes}"])
    shown = ", ".join(labels[:6]) + (f" and {len(labels) - 6} more" if len(labels) > 6 else "")
    name = {"classification": "classes", "multi_label": "labels", "regression": "numbers"}[task]
    facts = [f"{kind.lower()} ({what}): {sizes}", f"{task.replace('_', ' ')} into {len(labels)} {name}: {shown}"]
    return Recognised(kind, splits, task, labels, facts)


class _Column(Sequence):
    """Records of a data set: one column, or rows of several."""

    def __init__(self, part: Any, column: str | None, columns: list[str]) -> None:
        self.part, self.column = part.select_columns([column] if column else columns), column

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, i: Any) -> Any:
        row = self.part[int(i)]
        return row if self.column is None else row[self.column]


class Rows(Sequence):
    """Rows of an array as rows of a table, with the columns "0", "1", ..."""

    def __init__(self, x: np.ndarray) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: Any) -> Any:
        return {str(column): value.item() for column, value in enumerate(self.x[int(i)])}
