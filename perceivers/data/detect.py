"""Detecting the data at a path, of which kind they are and what is to be learned from them.

The rules, in order; what was found is listed in `Detected.facts`:

- `hub:NAME` is a data set on the hub, and a folder with `dataset_info.json` or `dataset_dict.json` one saved by `datasets`.
- A folder with `x.npy` and `y.npy` holds arrays, as does an `.npz` file with `x` and `y`, or with `x_train`, `y_train`,
  `x_test` and `y_test`. Point clouds [n, m, 2 or 3] are named `points`, `points_train` and so on instead of x. Arrays that are
  not compressed and larger than 64 MB are memory-mapped. A single `.npy` file can be pretrained on.
- `.csv`, `.tsv`, `.parquet`, `.json` and `.jsonl` files are tables. The target is the column "label", "target", "class" or
  "y", else the last column. A column "text" makes a table texts. A column "split" of "train", "validation" and "test" assigns
  rows.
- Any other folder holds one folder per class, of images, audio, videos or `.txt` files, whichever are the most. Above them may
  be folders "train", "validation" (or "val", "valid", "dev") and "test".
- Targets that are names, booleans, or whole numbers with at most 20 distinct values are classes; other numbers are regression;
  several targets that are only 0 and 1 are labels, any number of which may apply.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from perceivers.data.files import ARRAYS, TABLES, read_arrays, read_table
from perceivers.data.preprocessing import PRETRAINING, Preprocessing

TARGETS = ("label", "target", "class", "y")
SPLITS = {"train": "train", "test": "test", **dict.fromkeys(("validation", "val", "valid", "dev"), "validation")}
FEW = 20  # whole numbers with more distinct values than this are not classes
Kind = type[Preprocessing]


@dataclass(frozen=True)
class Split:
    """Raw records, and what is to be predicted from each: classes `[n]`, integer, or numbers or labels `[n, k]`."""

    records: Sequence[Any]
    targets: np.ndarray | None


@dataclass(frozen=True)
class Detected:
    """What was found.

    Attributes:
        kind: Kind of data, a subclass of `Preprocessing`.
        splits: "train", and "validation" and "test" if they are given.
        task: "classification", "multi_label", "regression" or "pretraining".
        labels: Names of classes, labels or numbers.
        facts: What was found, one line each.
    """

    kind: Kind
    splits: Mapping[str, Split]
    task: str
    labels: list[str]
    facts: list[str] = field(default_factory=list)


def detect(path: str, *, target: str | None = None, task: str | None = None) -> Detected:
    """Detect the data at a path by the rules above.

    Args:
        path: A folder, a file, or `hub:NAME`.
        target: Column of a table to predict, or several, separated by commas.
        task: "classification", "multi_label" or "regression" if the rules choose wrongly; "pretraining" for data without
            targets. Defaults to the rules.

    Raises:
        ValueError: If nothing is there, nothing is recognised, or targets are missing; the message says what to change.
    """
    if path.startswith("hub:"):
        from datasets import load_dataset

        return _from_datasets(load_dataset(path.removeprefix("hub:")), target, task)
    place = Path(path)
    if not place.exists():
        raise ValueError(f"PATH {path}: there is no such file or folder")
    if place.is_file():
        return _from_file(place, target, task)
    if (place / "dataset_info.json").exists() or (place / "dataset_dict.json").exists():
        from datasets import load_from_disk

        return _from_datasets(load_from_disk(str(place)), target, task)
    if any((place / f"{name}.npy").exists() for name in ("x", "x_train", "points", "points_train")):
        parts = ("", "_train", "_validation", "_test")
        names = [f"{name}{part}" for name in ("x", "points", "y") for part in parts]
        found = {name: place / f"{name}.npy" for name in names if (place / f"{name}.npy").exists()}
        return _from_arrays({name: read_arrays(file)["x"] for name, file in found.items()}, path, task)
    return _from_folders(place, task)


def _from_file(place: Path, target: str | None, task: str | None) -> Detected:
    if place.suffix in ARRAYS:
        return _from_arrays(read_arrays(place), str(place), task)
    if place.suffix in TABLES:
        return _from_datasets(read_table(place), target, task)
    if task == PRETRAINING:
        for kind in Preprocessing.kinds.values():
            if place.suffix in kind.suffixes and (pieces := kind.pieces(place)) is not None:
                return _checked(kind, {"train": Split(pieces, None)}, task, [], f"pieces of {place}")
    raise ValueError(
        f"PATH {place}: {place.suffix or 'a file without a suffix'} must be one of {', '.join((*ARRAYS, *TABLES))}; put"
        " images, audio, videos and texts into one folder per class; a single .txt file can be pretrained on"
    )


def _from_folders(place: Path, task: str | None) -> Detected:
    tops = {SPLITS[folder.name]: folder for folder in sorted(place.iterdir()) if folder.is_dir() and folder.name in SPLITS}
    folders = tops if "train" in tops else {"train": place}
    seen = Counter(file.suffix.lower() for file in folders["train"].rglob("*") if file.is_file())
    counts = {kind: sum(seen[suffix] for suffix in kind.suffixes) for kind in Preprocessing.kinds.values()}
    kind = max(counts, key=lambda one: counts[one])  # of kinds that read the same files the first
    if not counts[kind]:
        shown = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in seen.most_common(5)) or "nothing"
        raise ValueError(
            f"PATH {place}: there are no images, audio, videos or .txt files in it, only {shown}; see perceivers fit --help"
        )
    if task == PRETRAINING:
        found = {n: sorted(one for one in top.rglob("*") if one.suffix.lower() in kind.suffixes) for n, top in folders.items()}
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
            if file.suffix.lower() in kind.suffixes
        ]
        splits[name] = Split([file for file, _ in files], np.array([i for _, i in files], dtype=np.int64))
    return _checked(kind, splits, "classification", labels, str(place))


def _from_datasets(found: Any, target: str | None, task: str | None) -> Detected:
    from datasets import ClassLabel, Dataset

    parts: Mapping[str, Any] = _by_column(found) if isinstance(found, Dataset) else found
    parts = {SPLITS[str(name)]: part for name, part in parts.items() if str(name) in SPLITS}
    if "train" not in parts:
        raise ValueError(f"PATH: the data set has the parts {sorted(map(str, found))}, but no 'train'")
    features = parts["train"].features
    kinds = Preprocessing.kinds
    by_feature = {kind.feature: kind for kind in kinds.values() if kind.feature}
    media = [name for name, feature in features.items() if type(feature).__name__ in by_feature]
    names = _target_columns(features, target, media, task)
    columns = [name for name in features if name not in names]
    if media:
        column = media[0]
        kind = by_feature[type(features[column]).__name__]
        undecoded = type(features[column])(decode=False)
        parts = {name: part.cast_column(column, undecoded) for name, part in parts.items()}
    else:  # a column by its name, else whole rows
        column, kind = next(((one.column, one) for one in kinds.values() if one.column in columns), (None, kinds["Table"]))
    if task == PRETRAINING:
        splits = {name: Split(Column(part, column, columns), None) for name, part in parts.items()}
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
    splits = {name: Split(Column(part, column, columns), targets[name]) for name, part in parts.items()}
    return _checked(kind, splits, task, labels, "target " + ", ".join(names))


def _by_column(table: Any) -> dict[str, Any]:
    """Return the parts of a table that a column "split" names; without such a column, all rows as "train"."""
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
            raise ValueError("PATH: there are no classes: put the files into one folder per class")
        return [next((name for name in others if name.lower() in TARGETS), others[-1])]
    names = target.split(",")
    if unknown := [name for name in names if name not in features]:
        raise ValueError(f"target={target!r}: there are no columns {unknown}, only {list(features)}")
    return names


def _targets(names: list[str], raw: Mapping[str, list[list[Any]]], task: str | None) -> tuple[str, list[str], dict[str, Any]]:
    """Apply the rules to columns of targets; return the task, the labels, and the targets of each split."""
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
            raise ValueError(f"target {names[0]!r} has classes {sorted(unknown)[:5]} that no training row has: add such rows")
        return task, labels, {name: np.array([places[str(v)] for v in values[0]], np.int64) for name, values in raw.items()}
    try:
        targets = {name: np.array(values, dtype=np.float32).T for name, values in raw.items()}
    except (TypeError, ValueError) as error:
        raise ValueError(f"target {','.join(names)!r} holds values that are not numbers: {error}") from error
    return task, names, targets


def _from_arrays(arrays: Mapping[str, np.ndarray], path: str, task: str | None) -> Detected:
    name = "points" if any(key.startswith("points") for key in arrays) else "x"
    split = f"{name}_train" in arrays
    pairs = {"train": ("_train" if split else ""), "validation": "_validation", "test": "_test"}
    needed = [f"{name}{pairs['train']}", *([] if task == PRETRAINING else [f"y{pairs['train']}"])]
    if missing := [key for key in needed if key not in arrays]:
        raise ValueError(f"PATH {path}: it holds {sorted(arrays)}, but no {missing}: save x [n, ...] and y [n]")
    records: dict[str, np.ndarray] = {}
    raw: dict[str, list[list[Any]]] = {}
    for part, end in pairs.items():
        if f"{name}{end}" not in arrays or (f"y{end}" not in arrays and task != PRETRAINING):
            continue
        x = records[part] = arrays[f"{name}{end}"]
        if x.ndim < 2 or not (np.issubdtype(x.dtype, np.number) or x.dtype == bool):
            raise ValueError(f"PATH {path}: {name}{end} holds {x.dtype} of shape {list(x.shape)}, not numbers [n, ...]")
        if task != PRETRAINING:
            y = arrays[f"y{end}"]
            if y.ndim not in (1, 2) or len(x) != len(y):
                raise ValueError(
                    f"PATH {path}: {name}{end} has shape {list(x.shape)}, y{end} {list(y.shape)}, but [n, ...] and [n] or"
                    " [n, k] are needed"
                )
            raw[part] = (y[:, None] if y.ndim == 1 else y).T.tolist()
    kind = next(kind for kind in Preprocessing.kinds.values() if kind.accepts(name, records["train"]))
    labels: list[str] = []
    targets: Mapping[str, Any] = dict.fromkeys(records)
    if task != PRETRAINING:
        columns = ["y"] if len(raw["train"]) == 1 else [f"y{i}" for i in range(len(raw["train"]))]
        task, labels, targets = _targets(columns, raw, task)
    shape = list(records["train"].shape[1:])
    splits = {part: Split(kind.from_array(x), targets[part]) for part, x in records.items()}
    return _checked(kind, splits, task, labels, f"shape {shape}")


def _checked(kind: Kind, splits: Mapping[str, Split], task: str, labels: list[str], what: str) -> Detected:
    if task == PRETRAINING and kind.mask_ratio is None:
        supported = sorted({one.plural for one in Preprocessing.kinds.values() if one.mask_ratio is not None})
        raise ValueError(f"PATH: pretraining on {kind.plural} is not supported: give {', '.join(supported)}")
    for name, split in splits.items():
        if not len(split.records):
            raise ValueError(f"PATH: {name} is empty: add files or rows, or remove it")
    if task == "classification" and len(labels) < 2:
        raise ValueError(f"PATH: there is only one class, {labels}: at least two are needed")
    sizes = ", ".join(f"{len(splits[n].records):,} {n}" for n in ("train", "validation", "test") if n in splits)
    facts = [f"{kind.plural} ({what}): {sizes}"]
    if task != PRETRAINING:
        shown = ", ".join(labels[:6]) + (f" and {len(labels) - 6} more" if len(labels) > 6 else "")
        name = {"classification": "classes", "multi_label": "labels", "regression": "numbers"}[task]
        facts.append(f"{task.replace('_', ' ')} into {len(labels)} {name}: {shown}")
    return Detected(kind, splits, task, labels, facts)


class Column(Sequence):
    """Records of a data set: one column, or rows of several.

    Args:
        part: A `datasets.Dataset`.
        column: The column, or `None` for rows.
        columns: The columns of a row.
    """

    def __init__(self, part: Any, column: str | None, columns: list[str]) -> None:
        self.part, self.column = part.select_columns([column] if column else columns), column

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, i: Any) -> Any:
        row = self.part[int(i)]
        return row if self.column is None else row[self.column]
