from pathlib import Path

import numpy as np
import pytest
import torch

from perceivers.data import Images, Sizes
from perceivers.data.images import choose_size, patch_side

Image = pytest.importorskip("PIL.Image", reason="the extra predict is not installed")

COMMON = {"labels": ["a", "b"], "task": "classification"}


def save(path, width, height, mode="L"):
    Image.fromarray(np.arange(width * height, dtype=np.uint8).reshape(height, width)).convert(mode).save(path)
    return path


def test_images_cover_the_size_and_are_cropped(tmp_path):
    stripes = np.zeros((8, 24), np.uint8)
    stripes[:, 8:16] = 255  # the middle third
    Image.fromarray(stripes).save(tmp_path / "a.png")
    x, mask = Images(**COMMON, size=[8, 8], channels=1)(tmp_path / "a.png")
    assert mask is None
    assert torch.equal(x, torch.ones(1, 8, 8))
    colour, _ = Images(**COMMON, size=[8, 8])((tmp_path / "a.png").read_bytes())
    assert torch.equal(colour, torch.ones(3, 8, 8))


def test_sizes_are_chosen(tmp_path):
    files = [save(tmp_path / f"{i}.png", *size) for i, size in enumerate([(12, 10), (12, 10), (7, 9)])]
    chosen = Images.choose(files, Sizes(), **COMMON)
    assert (chosen.size, chosen.channels) == ([10, 12], 1)
    assert Images.choose([*files, save(tmp_path / "c.png", 5, 5, "RGB")], Sizes(image_size=6), **COMMON).size == [6, 6]
    assert choose_size([(100, 50)], None) == [64, 64]


@pytest.mark.parametrize(("size", "side"), [([8, 8], 2), ([64, 64], 2), ([65, 65], 1), ([128, 64], 4), ([6, 9], 1)])
def test_patches(size, side):
    assert patch_side(size, 32) == side
    assert Images(**COMMON, size=size).inputs(16)["patch_size"] == [side, side]


def test_a_damaged_image(tmp_path):
    file = save(tmp_path / "a.png", 64, 64)
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"a\.png is damaged or not an image"):
        Images(**COMMON, size=[8, 8])(file)
    Path(file).write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"a\.png is damaged or not an image"):
        Images.choose([file], Sizes(), **COMMON)
