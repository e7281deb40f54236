"""Generated bad files: each is one error, or no more than what it holds; little work, little memory, and nothing is run."""

import gc
import itertools
import random
import warnings
from pathlib import Path

import pytest
import torch
from checkpoints.hostile import FAMILIES, MARK, Case, load_theirs, safetensors_headers, their_state
from checkpoints.measured import measured
from checkpoints.opcodes import legacy, parts_of, state_of, zipped

from perceivers.data.preprocessing import Preprocessing

FAST, SLOW = 150, 10_000


def asked_for_memory(error: BaseException | None) -> bool:
    """Whether that is behind an error, of Python or of PyTorch."""
    while error is not None:
        if isinstance(error, MemoryError) or "allocate" in str(error) or "not enough memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def check(case: Case) -> bool:
    """Whether it was refused."""
    name, loaded, problem = case.name, None, None
    size = sum(file.stat().st_size for file in ([case.source] if case.source.is_file() else case.source.iterdir()))
    with measured(name):
        try:
            loaded = case.load(case.source)
            if isinstance(loaded, Preprocessing):
                loaded.example()
        except Exception as error:
            problem = error
    if problem is not None:
        assert not asked_for_memory(problem), f"{name}: {problem}"
        assert isinstance(problem, ValueError), f"{name}: {type(problem).__name__}: {problem}"
        named = case.source.name in str(problem) or case.load is Preprocessing.load
        assert named, f"{name}: {problem} does not name the file"
        return True
    assert not case.refused, f"{name} was loaded"
    if isinstance(loaded, torch.nn.Module):
        held = sum(tensor.nbytes for tensor in loaded.state_dict().values())
        assert held <= 4 * size, f"{name}: {held} bytes of a file of {size}"
        assert {tensor.device.type for tensor in loaded.state_dict().values()} == {"cpu"}, name
    return False


def run(family: str, count: int, step: int, seed: int, folder: Path) -> dict[bool, int]:
    """Loads the share of a family in so many files, every `step`th that it makes."""
    share, make = FAMILIES[family]
    refused = {True: 0, False: 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in itertools.islice(make(folder, random.Random(seed)), 0, step * count * share // 100, step):
            refused[check(case)] += 1
            assert not Path(MARK).exists(), f"{case.name} was run"
    gc.collect()
    return refused


def test_what_they_are_made_of_is_whole(tmp_path):
    """The files that are changed load as they are; else every change would be refused for another reason."""
    opcodes, storages = parts_of(their_state())
    for form in (zipped, legacy):
        (tmp_path / "model.pt").write_bytes(form(state_of(opcodes), storages))
        model = load_theirs(tmp_path / "model.pt")
        assert torch.equal(model.encoder.latents, their_state()["latents"])
    assert check(next(safetensors_headers(tmp_path, random.Random(0))))
    assert sum(share for share, _ in FAMILIES.values()) == 100


@pytest.mark.parametrize("family", FAMILIES)
def test_some(family, tmp_path):
    assert run(family, FAST, 17, 0, tmp_path)[True] > 0


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_ten_thousand(family, tmp_path):
    refused = run(family, SLOW, 1, 1, tmp_path)
    print(f"{family}: {refused[True]} refused, {refused[False]} loaded as what they hold")
    assert refused[True] > refused[False]
