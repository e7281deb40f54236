"""Speech: phones of the Russian voice of Festival."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from tools.datasets.archives import open_deb

Arrays = dict[str, np.ndarray]


def read_festvox_ru(path: Path) -> Arrays:
    """Return audio `[n, 1, 0.1 s]`, int16, centred on each phone, and the phones `[n]`. Every tenth utterance is test data."""
    import soundfile

    files = {}
    with open_deb(path) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.name.endswith((".wav", ".lab")) else None
            if file is not None:
                files[Path(member.name).name] = file.read()
    arrays: dict[str, list[Any]] = {"x_train": [], "y_train": [], "x_test": [], "y_test": []}
    for i, name in enumerate(sorted(name for name in files if name.endswith(".wav"))):
        values, rate = soundfile.read(io.BytesIO(files[name]), dtype="int16")
        width = rate // 10
        padded = np.concatenate([np.zeros(width, np.int16), values, np.zeros(width, np.int16)])
        labels = files[name.replace(".wav", ".lab")].decode().split("#", 1)[1].strip().split("\n")
        split, start = "test" if i % 10 == 9 else "train", 0.0
        for line in labels:
            stop, phone = float(line.split()[0]), line.split()[2]
            first = min(round((start + stop) / 2 * rate) + width // 2, len(padded) - width)
            arrays[f"x_{split}"].append(padded[first : first + width])
            arrays[f"y_{split}"].append(phone)
            start = stop
    return {key: np.stack(value)[:, None] if key.startswith("x") else np.array(value) for key, value in arrays.items()}
