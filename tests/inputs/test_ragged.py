"""Batches of arrays of different lengths: padded and masked, or packed."""

import pytest
import torch

from accuracy import IMPLEMENTATIONS, draw_parameters
from perceivers.inputs import Events, Located, Patches, Pixels, Points, TokenIds, Waveform, packed, pad_ragged
from perceivers.layers import CrossAttention

everywhere = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


def attend(groups, implementation="reference"):
    torch.manual_seed(2)
    layer = draw_parameters(CrossAttention(dim=8, kv_dim=groups[0].num_channels, heads=2, head_dim=5)).to(torch.float64)
    layer.set_attention_implementation(implementation)
    latents = torch.randn(1, 3, 8, dtype=torch.float64).expand(groups[0].content.shape[0], -1, -1)
    return layer(latents, groups)


def arrays(*shapes):
    return [torch.randn(*shape, dtype=torch.float64) for shape in shapes]


RAGGED = {
    "signals": (lambda: Pixels(data_shape=[2, 9], num_bands=2), lambda: arrays((2, 9), (2, 4), (2, 1))),
    "images": (lambda: Pixels(data_shape=[2, 4, 9], num_bands=2), lambda: arrays((2, 4, 9), (2, 9, 3), (2, 1, 1))),
    "patches": (
        lambda: Patches(data_shape=[2, 4, 6], patch_size=[2, 3], embed_dim=4, num_bands=2),
        lambda: arrays((2, 4, 6), (2, 8, 3), (2, 2, 12)),
    ),
    "audio": (lambda: Waveform(num_samples=8, samples_per_patch=4, num_bands=2), lambda: arrays((1, 8), (1, 16), (1, 4))),
    "ids": (lambda: TokenIds(vocab_size=9, max_length=8, dim=5), lambda: [torch.randint(9, (n,)) for n in (5, 8, 1)]),
    "points": (lambda: Points(resolution=9, num_bands=2), lambda: arrays((3, 5), (3, 1), (3, 4))),
    "points_with_values": (
        lambda: Points(resolution=9, num_bands=2, num_values=2),
        lambda: [Located(v, c) for v, c in zip(arrays((2, 5), (2, 1)), arrays((3, 5), (3, 1)), strict=True)],
    ),
    "events": (
        lambda: Events(data_shape=[2, 4, 4], num_bands=2),
        lambda: [Located(v, torch.randint(4, (2, v.shape[1]))) for v in arrays((2, 5), (2, 1))],
    ),
}


ragged = pytest.mark.parametrize(("module", "samples"), RAGGED.values(), ids=RAGGED)


def alone(sample):
    """Return a sample as a batch of one."""
    return Located(*(part[None] for part in sample)) if isinstance(sample, Located) else sample[None]


@ragged
@everywhere
def test_a_ragged_batch_gives_what_its_samples_give_alone(module, samples, implementation):
    module, samples = draw_parameters(module()).double(), samples()
    groups = module(samples)
    for some in (groups, [packed(group) for group in groups]):
        out = attend(some, implementation)
        for b, sample in enumerate(samples):
            wanted = attend(module(alone(sample)), "reference")
            torch.testing.assert_close(out[b : b + 1], wanted, rtol=1e-9, atol=1e-10)


@ragged
def test_masks_of_a_ragged_batch(module, samples):
    module, samples = draw_parameters(module()).double(), samples()
    length = [(s.values if isinstance(s, Located) else s) for s in samples]
    masks = [torch.ones(s.shape[1:] if s.is_floating_point() else s.shape, dtype=torch.bool) for s in length]
    for mask in masks:
        mask.view(-1)[:1] = False
    masks[1].view(-1)[:] = False
    groups = module(samples, masks)
    assert not groups[0].flat_mask()[1].any()
    out = attend(groups)
    for b, sample in enumerate(samples):
        torch.testing.assert_close(out[b : b + 1], attend(module(alone(sample), masks[b][None])), rtol=1e-9, atol=1e-10)


def test_packed_holds_no_more_than_the_longest():
    module = Pixels(data_shape=[1, 8, 2], num_bands=2)
    [group] = module(arrays((1, 8, 2), (1, 2, 8), (1, 1, 3)))
    assert group.num_inputs == 64
    assert packed(group).num_inputs == 16
    [unmasked] = module(torch.randn(2, 1, 8, 2))
    assert packed(unmasked) is unmasked


def test_packed_of_nothing_holds_one_masked_input():
    mask = torch.zeros(2, 8, 2, dtype=torch.bool)
    [group] = Pixels(data_shape=[1, 8, 2], num_bands=2)(torch.randn(2, 1, 8, 2), mask)
    assert packed(group).num_inputs == 1
    assert not packed(group).mask.any()


def test_pad_ragged():
    values, mask, lengths = pad_ragged(arrays((1, 2, 3), (1, 3, 1)), axes=2)
    assert values.shape == (2, 1, 3, 3)
    assert mask[0].tolist() == [[True] * 3, [True] * 3, [False] * 3]
    assert mask[1].tolist() == [[True, False, False]] * 3
    assert lengths.tolist() == [[2, 3], [3, 1]]
    assert values[1, 0, :, 1:].abs().max() == 0
