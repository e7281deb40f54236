"""Generated bad files: each is one error, or no more than what it holds; at once, in little memory, and nothing is run."""

import gc
import itertools
import random
import resource
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from checkpoints.hostile import (
    FAMILIES,
    MARK,
    Case,
    legacy,
    load_theirs,
    plain_state,
    safetensors_headers,
    state_of,
    their_state,
    zipped,
)

from perceivers.data.preprocessing import Preprocessing

FAST, SLOW = 150, 10_000
SECONDS, MEGABYTES = 1.0, 100
GIGABYTES = 2  # what may be reserved; who asks for more is told that there is none


@contextmanager
def little_memory() -> Iterator[None]:
    """Keeps a file from ending these tests, and the machine."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if size := Meter.status("VmSize"):  # on Linux
        resource.setrlimit(resource.RLIMIT_AS, (int(size * 1e6) + GIGABYTES * 2**30, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def asked_for_memory(error: BaseException | None) -> bool:
    """Whether that is behind an error, of Python or of PyTorch."""
    while error is not None:
        if isinstance(error, MemoryError) or "allocate" in str(error) or "not enough memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


class Meter:
    """Time and memory since it was made: how far the peak went above what was there."""

    def __init__(self) -> None:
        self.seconds, self.wall = time.process_time(), time.monotonic()
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        except OSError:
            self.before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        else:
            self.before = self.status("VmRSS")

    @staticmethod
    def status(name: str) -> float:
        try:
            lines = Path("/proc/self/status").read_text().splitlines()
        except OSError:  # no Linux
            return 0.0
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1000

    def check(self, name: str) -> None:
        """Fails where a limit was passed."""
        seconds, wall = time.process_time() - self.seconds, time.monotonic() - self.wall
        peak = self.status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        assert seconds < SECONDS, f"{name}: {seconds:.1f} s"
        assert wall < 10 * SECONDS, f"{name}: {wall:.1f} s"
        assert peak - self.before < MEGABYTES, f"{name}: {peak - self.before:.0f} MB"


def size_of(source: Path) -> int:
    return sum(file.stat().st_size for file in ([source] if source.is_file() else source.iterdir()))


def check(case: Case) -> bool:
    """Whether it was refused."""
    size, name = size_of(case.source), case.name
    meter, problem = Meter(), None
    try:
        with little_memory():
            loaded = case.load(case.source)
            if isinstance(loaded, Preprocessing):
                loaded.example()
    except Exception as error:
        problem = error
    meter.check(name)
    if problem is not None:
        assert not asked_for_memory(problem), f"{name}: {problem}"
        assert isinstance(problem, ValueError), f"{name}: {type(problem).__name__}: {problem}"
        named = case.source.name in str(problem) or case.load is Preprocessing.load
        assert named, f"{name}: {problem} does not say which file"
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
    opcodes, storages = plain_state()
    for form in (zipped, legacy):
        (tmp_path / "model.pt").write_bytes(form(state_of(opcodes), storages))
        model = load_theirs(tmp_path / "model.pt")
        assert torch.equal(model.encoder.latents, their_state()["latents"])
    case = next(safetensors_headers(tmp_path, random.Random(0)))
    assert check(case)
    assert sum(share for share, _ in FAMILIES.values()) == 100


@pytest.mark.parametrize("family", FAMILIES)
def test_some(family, tmp_path):
    assert run(family, FAST, 17, 0, tmp_path)[True] > 0


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_ten_thousand(family, tmp_path, record_property):
    refused = run(family, SLOW, 1, 1, tmp_path)
    print(f"{family}: {refused[True]} refused, {refused[False]} loaded as what they hold")
    assert refused[True] > refused[False]
