"""What the modules of an attention are to the operation: known weights, or modules that have to be called.

The fast implementations fold norms and projections into queries and results, so they read weights instead of calling modules.
That is right only if the modules compute what their weights suggest. Adapters, hooks, quantised or replaced layers are
honoured: by the weight of the linear projection they compute, if that is known (see `known_affine`), or by calling them.
"""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from perceivers.layers.linear import known_affine, why_opaque
from perceivers.layers.norm import known_norm
from perceivers.ops.cross_attention import OpaqueProjections, OpaqueQueryProjection, QueryProjection


def key_value_projections(
    norm: nn.Module | None, to_k: nn.Module, to_v: nn.Module, heads: int, widths: tuple[int, int]
) -> dict[str, Any]:
    """Return norm, weights and biases, or `project`, as arguments of `cross_attention`.

    Args:
        norm: Normalisation of the inputs, or `None`.
        to_k: Projection to keys.
        to_v: Projection to values.
        heads: Number of heads of keys and values.
        widths: Channels of keys and of values, over all heads.
    """
    known, keys, values = known_norm("inputs_norm", norm), known_affine(to_k), known_affine(to_v)
    if not isinstance(known, str) and keys is not None and values is not None:
        return {"norm": known, "w_k": keys[0], "b_k": keys[1], "w_v": values[0], "b_v": values[1]}

    dtype = parameter_dtype(to_k)

    def project(x_BMC: Tensor) -> tuple[Tensor, Tensor]:
        x_BMC = (x_BMC if norm is None else norm(x_BMC)).to(dtype)
        k_BHMK, v_BHMV = (rearrange(to(x_BMC), "B M (H D) -> B H M D", H=heads) for to in (to_k, to_v))
        return k_BHMK, v_BHMV

    reason = known if isinstance(known, str) else why_opaque("to_k", to_k) or why_opaque("to_v", to_v)
    arguments: dict[str, Any] = dict.fromkeys(("norm", "w_k", "b_k", "w_v", "b_v"))
    return arguments | {"project": OpaqueProjections(project, str(reason), *widths, dtype)}


def query_projection(norm: nn.Module | None, to_q: nn.Module) -> QueryProjection | OpaqueQueryProjection:
    """Return norm and projection of encoded queries; the arguments are those of `key_value_projections`."""
    known, queries = known_norm("the norm of the queries", norm), known_affine(to_q)
    if not isinstance(known, str) and queries is not None:
        return QueryProjection(known, *queries)
    reason = known if isinstance(known, str) else why_opaque("to_q", to_q)
    function = to_q if norm is None else lambda x_BMC: to_q(norm(x_BMC))
    return OpaqueQueryProjection(function, str(reason), parameter_dtype(to_q))


def parameter_dtype(module: nn.Module) -> torch.dtype:
    """Return the dtype of the first floating-point parameter, or the default dtype if there is none."""
    dtypes = (parameter.dtype for parameter in module.parameters())
    return next((dtype for dtype in dtypes if dtype.is_floating_point), torch.get_default_dtype())
