"""A file, a folder or a repository on the hub, opened once for all formats."""

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from torch import Tensor

from perceivers.checkpoints.readers import files
from perceivers.checkpoints.readers.files import Contents, Wanted
from perceivers.pretrained import CONFIG, WEIGHTS, read_json

BIN = "pytorch_model.bin"
INDEX = ".index.json"  # names the files that large models are split into


class Source:
    """What a model is loaded from; each part is read once, when it is first needed.

    All parts raise `ValueError` if a file is missing or damaged.

    Attributes:
        name: The path or name, for messages.
    """

    def __init__(self, source: str | Path, *, local_files_only: bool = False) -> None:
        """Initialise a source, without opening it.

        Args:
            source: A file, a folder, or the name of a repository on the hub.
            local_files_only: Never download.
        """
        self.name = str(source)
        self._path = Path(source)
        self._local_files_only = local_files_only
        self._contents: Contents | None = None

    @classmethod
    def of(cls, weights: Mapping[str, Tensor], name: str = "weights", settings: Any = None) -> Self:
        """Return a source of tensors in memory, as if they had been read from a file."""
        source = cls(name)
        source._contents = Contents(dict(weights), settings)
        return source

    @cached_property
    def is_file(self) -> bool:
        """True for a file, whose tensors are all that there is."""
        return self._contents is not None or self._path.is_file()

    @cached_property
    def config(self) -> dict[str, Any]:
        """The `config.json` of a folder or repository; empty for a file."""
        return {} if self.is_file else read_json(self._find(CONFIG))

    @cached_property
    def names(self) -> Iterable[str]:
        """The names of the tensors in a file; empty for a folder or repository."""
        return self._file.weights.keys() if self.is_file else ()

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings that Lightning stored in a file, as JSON could hold them."""
        return files.plain(self._file.settings) if self.is_file else {}

    def weights(self, wanted: Wanted | None = None) -> dict[str, Tensor]:
        """Return tensors by name, of one file or of those that an index names.

        Args:
            wanted: True for the names to read. Defaults to all; files of an index without any of them are not opened.
        """
        if self.is_file:
            return dict(self._file.weights)
        path = self._find(WEIGHTS, WEIGHTS + INDEX, BIN, BIN + INDEX)
        if path.suffix != ".json":
            return files.read(path, wanted).weights
        parts = read_json(path).get("weight_map")
        if not isinstance(parts, dict) or not all(
            isinstance(name, str) and Path(name).name == name for name in parts.values()
        ):
            raise ValueError(f"{path} is damaged: its weight_map does not name a file of the same folder for each tensor")
        weights: dict[str, Tensor] = {}
        for name in sorted({name for tensor, name in parts.items() if wanted is None or wanted(tensor)}):
            weights |= files.read(self._find(name), wanted).weights
        return weights

    def json(self, name: str) -> dict[str, Any] | None:
        """Return a file of JSON of a folder or repository, or `None` if there is none."""
        if self._path.is_dir():
            return read_json(self._path / name) if (self._path / name).is_file() else None
        try:
            return read_json(hf_hub_download(self.name, name, local_files_only=self._local_files_only))
        except EntryNotFoundError:
            return None

    @cached_property
    def _file(self) -> Contents:
        return files.read(self._path) if self._contents is None else self._contents

    def _find(self, *names: str) -> Path:
        """Return the path of the first of these files that exists."""
        if self._path.is_dir():
            for name in names:
                if (self._path / name).is_file():
                    return self._path / name
            raise ValueError(
                f"{self.name} has no {' and no '.join(names)}: give a folder that save_pretrained or perceivers fit wrote"
            )
        reason = None
        for name in names:
            try:
                return Path(hf_hub_download(self.name, name, local_files_only=self._local_files_only))
            except (EntryNotFoundError, HFValidationError, OSError) as error:
                reason = error
        raise ValueError(f"{self.name} is not a file, a folder, or a repository with {' or '.join(names)}: {reason}")
