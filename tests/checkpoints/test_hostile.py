"""Generated bad files: each is one error, or no more than what it holds; little work, little memory, and nothing is run."""

import gc
import itertools
import random
from pathlib import Path

import pytest
import torch
from checkpoints.hostile import FAMILIES, MARK, STORAGES, WHOLE, Case, load_theirs, their_state
from checkpoints.measured import measured
from checkpoints.opcodes import legacy, zipped
from safetensors.torch import save_file

from perceivers.data.preprocessing import Preprocessing


def asked_for_memory(error: BaseException | None) -> bool:
    """True if that is behind an error, of Python or of PyTorch."""
    while error is not None:
        if isinstance(error, MemoryError) or "allocate" in str(error) or "not enough memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def refused(case: Case) -> bool:
    """True if a case was refused, by one error that names the file; it must not have been run, or hold more than its file."""
    loaded, problem, files = None, None, [case.source] if case.source.is_file() else case.source.iterdir()
    size = sum(file.stat().st_size for file in files)
    with measured(case.name):
        try:
            loaded = case.load(case.source)
            if isinstance(loaded, Preprocessing):
                loaded.example()
        except Exception as error:
            problem = error
    assert not Path(MARK).exists(), f"{case.name} was run"
    if problem is not None:
        message = f"{case.name}: {type(problem).__name__}: {problem}"
        assert isinstance(problem, ValueError), message
        assert not asked_for_memory(problem), message
        assert case.source.name in str(problem) or case.load == Preprocessing.load, message
    else:
        assert not case.refused, f"{case.name} was loaded"
        state = loaded.state_dict().values() if isinstance(loaded, torch.nn.Module) else ()
        assert sum(tensor.nbytes for tensor in state) <= 4 * size, case.name
        assert all(tensor.device.type == "cpu" for tensor in state), case.name
    return problem is not None


@pytest.mark.parametrize("form", ["zipped", "legacy", "safetensors"])
def test_what_they_are_made_of_is_whole(form, tmp_path):
    """The files that are changed load as they are; else every change would be refused for another reason."""
    path = tmp_path / "model.pt"
    if form == "safetensors":
        save_file(their_state(), path)
    else:
        path.write_bytes({"zipped": zipped, "legacy": legacy}[form](WHOLE, STORAGES))
    assert torch.equal(load_theirs(path).encoder.latents, their_state()["latents"])
    assert len(STORAGES[0]) == 4 * their_state()["latents"].numel()
    assert sum(share for share, _ in FAMILIES.values()) == 100


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("count", "step"), [(150, 17), pytest.param(10_000, 1, marks=pytest.mark.slow)])
def test_hostile(family, count, step, tmp_path):
    """The share of a family in so many files, of which every `step`th is loaded."""
    share, make = FAMILIES[family]
    cases = itertools.islice(make(tmp_path, random.Random(step)), 0, step * count * share // 100, step)
    found = [refused(case) for case in cases]
    print(f"{family}: {sum(found)} refused, {len(found) - sum(found)} loaded as what they hold")
    assert sum(found) > (len(found) / 2 if step == 1 else 0)
    gc.collect()
