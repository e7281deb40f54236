"""Cross-attention with KeOps, which reduces formulas over pairs without storing the matrix of scores.

Its formulas read one vector per query and one per input, so position tables must be expanded to all inputs. The score is the
folded one over all channels, the fastest formula of those tried: OneHot products with short tables took twice as long, one
batch entry per row of the image just as long. Compiled formulas are stored in the environment's folder.
"""

import os
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers import ENVIRONMENTS

os.environ["KEOPS_CACHE_FOLDER"] = str(ENVIRONMENTS / "keops" / "compiled")
import pykeops  # pyright: ignore[reportMissingImports]
from pykeops.torch import Genred  # pyright: ignore[reportMissingImports]


def build(case: dict[str, Any]) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """Return the attention of one head on its encoded input, and its parameters."""
    pykeops.set_verbose(False)
    weights = {name: weight.requires_grad_() for name, weight in case["weights"].items()}
    latents, x = case["latents"][0], case["x"][0]
    channels = x.shape[1]
    vectors = [f"q = Vi({channels})", f"x = Vj({channels})", "rho = Vj(1)"]
    attend = Genred("rho * (q | x)", vectors, reduction_op="SumSoftMaxWeight", axis=1, formula2="rho * x")

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def call() -> Tensor:
        gamma, beta = weights["layernorm2.weight"], weights["layernorm2.bias"]
        rho = (x.var(1, correction=0, keepdim=True) + 1e-5).rsqrt()
        q = linear(
            "query", F.layer_norm(latents, latents.shape[-1:], weights["layernorm1.weight"], weights["layernorm1.bias"])
        )
        folded = q @ weights["key.weight"] * (q.shape[1] ** -0.5 * gamma)
        y = attend(folded - folded.mean(1, keepdim=True), x, rho)
        return linear("value", gamma * (y - y.mean(1, keepdim=True)) + beta)[None]

    return call, [weight for name, weight in weights.items() if name != "key.bias"]  # the bias of keys cancels in the softmax
