from pathlib import Path

import numpy as np
import pytest

from perceivers.data import Videos

av = pytest.importorskip("av", reason="the extra predict is not installed")


@pytest.mark.parametrize("count", [2, 4, 40, 201])
def test_frames_are_spread_over_the_clip(count, tmp_path):
    """However long it is, from its first frame to its last."""
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for t in range(count):  # it becomes brighter
            grey = np.full((16, 32, 3), 20 + round(215 * t / (count - 1)), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    x, mask = Videos(size=[8, 8], num_frames=4, labels=[], task="classification")(tmp_path / "clip.mp4")
    assert x.shape == (3, 4, 8, 8)
    assert mask is None
    found = (x.mean((0, 2, 3)) + 1) * 127.5
    wanted = [20, 20, 235, 235] if count == 2 else [20, 92, 163, 235]
    np.testing.assert_allclose(found.numpy(), wanted, atol=15)  # the nearest of 16 kept frames


@pytest.mark.parametrize(("frames", "patches"), [(4, [2, 2, 2]), (5, [1, 2, 2])])
def test_patches(frames, patches):
    assert Videos(size=[32, 32], num_frames=frames, labels=[], task="classification").inputs(16)["patch_size"] == patches


def test_a_damaged_video(tmp_path):
    Path(tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"a\.mp4 is damaged or not a video"):
        Videos(size=[8, 8], num_frames=4, labels=[], task="classification")(tmp_path / "a.mp4")
