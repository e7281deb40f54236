import numpy as np
import pytest
import torch

from perceivers.data import Audio, Sizes

soundfile = pytest.importorskip("soundfile", reason="the extra predict is not installed")

COMMON = {"labels": ["a", "b"], "task": "classification"}


def tone(path, seconds, rate=8000, channels=1):
    time = np.arange(round(seconds * rate)) / rate
    values = np.sin(2 * np.pi * 200 * time) * np.exp(-time)  # no two pieces are alike
    soundfile.write(path, np.stack([0.5 * values] * channels, axis=1), rate, subtype="FLOAT")
    return path


def test_clips_are_padded_and_cropped(tmp_path):
    audio = Audio(**COMMON, num_samples=800, sample_rate=8000)
    short, mask = audio(tone(tmp_path / "short.wav", 0.05))
    assert mask.sum() == 400
    assert not mask[400:].any()
    assert torch.equal(short[0, 400:], torch.zeros(400))
    long, mask = audio(tone(tmp_path / "long.wav", 0.3, channels=2))
    assert mask.all()
    whole, _ = soundfile.read(tmp_path / "long.wav", dtype="float32")
    torch.testing.assert_close(long[0], torch.from_numpy(whole[800:1600, 0].copy()))


def test_other_rates_are_resampled(tmp_path):
    pytest.importorskip("scipy", reason="the extra predict is not installed")
    audio = Audio(**COMMON, num_samples=1600, sample_rate=8000)
    x, _ = audio(tone(tmp_path / "a.wav", 0.2, rate=16000))
    wanted, _ = audio(tone(tmp_path / "b.wav", 0.2))
    torch.testing.assert_close(x[:, 50:-50], wanted[:, 50:-50], atol=0.01, rtol=0)


def test_choice(tmp_path):
    files = [tone(tmp_path / f"{i}.wav", seconds) for i, seconds in enumerate((0.1, 0.3, 0.2))]
    assert Audio.choose(files, Sizes(), **COMMON).num_samples == 2400
    assert Audio.choose(files, Sizes(seconds=0.5), **COMMON).num_samples == 4000


def test_bad_files(tmp_path):
    audio = Audio(**COMMON, num_samples=80, sample_rate=8000)
    (tmp_path / "a.wav").write_bytes(b"no audio")
    with pytest.raises(ValueError, match=r"a\.wav is damaged or not an audio file"):
        audio(tmp_path / "a.wav")
    soundfile.write(tmp_path / "b.wav", np.array([0.1, np.nan]), 8000, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"b\.wav is empty, or holds NaN"):
        audio(tmp_path / "b.wav")
