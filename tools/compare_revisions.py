"""Compare outputs, gradients and initial weights of two revisions bit for bit: `python tools/compare_revisions.py REVISION`.

For changes that must not change numbers. Both trees run the same seeded models with every implementation of the
cross-attention, on this machine; the revision is checked out to a temporary worktree, with its own C kernel.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PRESETS = (
    "perceiver_imagenet_fourier_tiny",
    "perceiver_imagenet_fourier_small",
    "perceiver_io_imagenet_fourier_tiny",
    "perceiver_io_mlm_bytes_tiny",
    "perceiver_io_optical_flow_tiny",
    "perceiver_io_multimodal_kinetics_tiny",
)


def main() -> int:
    """Return 0 if all numbers are the same bits, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", metavar="REVISION", help="what to compare the working tree with, such as HEAD~1")
    revision = parser.parse_args().revision
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "tree"
        subprocess.run(["git", "worktree", "add", "-q", "--detach", other, revision], cwd=ROOT, check=True)
        try:
            build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
            subprocess.run(build, cwd=other, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            before, after = (_numbers(tree) for tree in (other, ROOT))
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", other], cwd=ROOT, check=True)
    assert before, "nothing was computed"
    different = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
    print("\n".join(f"different: {name}" for name in sorted(different)))
    print(f"{len(before)} tensors of {revision}, {len(different)} different")
    return int(bool(different))


def _numbers(tree: Path) -> dict[str, str]:
    environment = os.environ | {"PYTHONPATH": str(tree)}
    command = [sys.executable, __file__, "--child"]
    return json.loads(subprocess.run(command, cwd=tree, env=environment, check=True, capture_output=True, text=True).stdout)


def compute() -> dict[str, str]:
    """Return a digest of each tensor; runs in each of the two trees, so it uses names that both have."""
    import torch

    from perceivers import create_model
    from perceivers.factory import example_inputs
    from perceivers.layers import InducedSetAttention, Pooler, Resampler

    digests: dict[str, str] = {}

    def keep(name: str, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            digests[name] = hashlib.sha256(
                value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            ).hexdigest()
        elif isinstance(value, dict):
            for key, part in value.items():
                keep(f"{name}.{key}", part)

    def filled(x: Any) -> Any:
        if isinstance(x, dict):
            return {name: filled(part) for name, part in x.items()}
        return torch.randint(0, 200, x.shape) if x.dtype == torch.int64 else torch.randn(x.shape)

    def run(name: str, model: torch.nn.Module, *inputs: Any) -> None:
        for key, parameter in model.named_parameters():
            keep(f"{name}: initial {key}", parameter)
            torch.nn.init.normal_(parameter, std=0.05)
        out = model(*inputs)
        keep(f"{name}: output", out)
        parts = list(out.values()) if isinstance(out, dict) else [out]
        parameters = dict(model.named_parameters())
        grads = torch.autograd.grad(
            torch.stack([p.square().sum() for p in parts]).sum(), list(parameters.values()), allow_unused=True
        )
        for key, grad in zip(parameters, grads, strict=True):
            keep(f"{name}: gradient of {key}", grad)

    for preset in PRESETS:
        for implementation in ("auto", "reference", "dense", "absorbed", "separable"):
            torch.manual_seed(0)
            model = create_model(preset)
            model.set_attention_implementation(implementation)
            run(f"{preset}, {implementation}", model, filled(example_inputs(preset, 2)))
    torch.manual_seed(0)
    model = create_model("perceiver_imagenet_fourier_tiny")
    run("masked", model, torch.randn(2, 3, 33, 21), torch.rand(2, 33, 21) > 0.3)
    features, mask = torch.randn(2, 50, 24), torch.rand(2, 50) > 0.3
    run("resampler", Resampler(dim=16, kv_dim=24, num_latent_tokens=8, depth=2, heads=4), features, mask)
    grouped = Resampler(dim=24, num_latent_tokens=8, depth=1, heads=4, kv_heads=2, norm="rms_norm", activation="swiglu")
    run("grouped resampler", grouped, features, mask)
    run("pooler", Pooler(dim=16, kv_dim=24, heads=4), features, mask)
    run("induced set attention", InducedSetAttention(dim=24, num_latent_tokens=8), features, mask)
    return digests


if __name__ == "__main__":
    if sys.argv[1:] == ["--child"]:
        print(json.dumps(compute()))
    else:
        sys.exit(main())
