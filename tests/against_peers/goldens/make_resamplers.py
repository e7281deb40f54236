"""Makes `resamplers.npz`: what IP-Adapter's and open_flamingo's resamplers give, for peers that pip cannot install here.

    python tests/against_peers/goldens/make_resamplers.py IP-Adapter/ip_adapter/resampler.py open_flamingo/src/helpers.py

The first file is that of github.com/tencent-ailab/IP-Adapter at 62e4af9d0c, the second that of open-flamingo 2.0.1, which
needs the package einops_exts. Weights are not part of the result: `weights_of` draws them again by the names and shapes that
are.
"""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import torch

CASES = {
    "ip_adapter": {"dim": 12, "depth": 2, "dim_head": 5, "heads": 3, "num_queries": 4, "embedding_dim": 12, "output_dim": 12},
    "ip_adapter_pooled": {
        "dim": 10,
        "depth": 3,
        "dim_head": 4,
        "heads": 2,
        "num_queries": 3,
        "embedding_dim": 7,
        "output_dim": 9,
        "ff_mult": 2,
        "max_seq_len": 11,
        "apply_pos_emb": True,
        "num_latents_mean_pooled": 2,
    },
    "flamingo": {"dim": 12, "depth": 2, "dim_head": 5, "heads": 3, "num_latents": 4},
    "flamingo_frames": {"dim": 10, "depth": 2, "dim_head": 4, "heads": 2, "num_latents": 3, "max_num_frames": 6},
    "flamingo_media": {"dim": 10, "depth": 2, "dim_head": 4, "heads": 2, "num_latents": 3, "max_num_media": 3},
}
IP_ADAPTER_INPUTS = (2, 11)  # samples, features
FLAMINGO_INPUTS = (2, 3, 5, 4)  # samples, images or videos of each, frames of each, features of each


def weights_of(shapes):
    """Draws weights, one name after another in sorted order."""
    draw = np.random.RandomState(0)
    return {name: torch.from_numpy(draw.randn(*shapes[name]) / shapes[name][-1] ** 0.5) for name in sorted(shapes)}


def inputs_of(*shape):
    """Draws inputs."""
    return torch.from_numpy(np.random.RandomState(1).randn(*shape)).requires_grad_()


def main():
    modules = []
    for i, path in enumerate(sys.argv[1:3]):
        spec = importlib.util.spec_from_file_location(f"theirs{i}", path)
        modules.append(importlib.util.module_from_spec(spec))
        spec.loader.exec_module(modules[-1])
    ip_adapter, flamingo = modules
    torch.Tensor.float = lambda x: x  # IP-Adapter's softmax would be in float32 whatever the model's dtype
    found = {}
    for case, arguments in CASES.items():
        if case.startswith("ip_adapter"):
            theirs, shape = ip_adapter.Resampler(**arguments), (*IP_ADAPTER_INPUTS, arguments["embedding_dim"])
        else:
            theirs, shape = flamingo.PerceiverResampler(**arguments), (*FLAMINGO_INPUTS, arguments["dim"])
        shapes = {name: list(tensor.shape) for name, tensor in theirs.state_dict().items()}
        theirs = theirs.double().eval()
        theirs.load_state_dict(weights_of(shapes))
        x = inputs_of(*shape)
        out = theirs(x)
        gradients = torch.autograd.grad(out.pow(3).sum(), [x, theirs.latents])
        found[f"{case}/shapes"] = np.array(json.dumps(shapes))
        for name, value in zip(("out", "x", "latents"), (out, *gradients), strict=True):
            found[f"{case}/{name}"] = value.detach().numpy()
    np.savez_compressed(Path(__file__).with_name("resamplers.npz"), **found)


if __name__ == "__main__":
    main()
