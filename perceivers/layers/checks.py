"""Checks of arrays that are passed to modules inside other models.

Letters: B batch, M inputs, C channels of an input.
"""

import torch
from torch import Tensor

from perceivers.ops.tokens import check_array, check_dtype, check_mask


def checked_inputs(inputs_BMC: Tensor, mask_BM: Tensor | None, channels: int, dtype: torch.dtype) -> Tensor:
    """Check an array and its mask against a module, and replace masked inputs by zero.

    They are replaced before any norm: the norm of a NaN would carry it into gradients, even if its result is not used.

    Returns:
        The inputs, `[B, M, C]`, in the dtype of the module's parameters.
    """
    check_array("inputs", inputs_BMC, 3, f"[B, M, {channels}]")
    shape = list(inputs_BMC.shape)
    if shape[2] != channels:
        raise ValueError(
            f"inputs has shape {shape}, {shape[2]} channels, but the module was built for {channels}: [B, M, {channels}]"
        )
    if shape[1] == 0:
        raise ValueError(f"inputs has shape {shape}, no inputs: give at least one, and mask it if it is not meant")
    check_dtype("inputs", inputs_BMC, dtype, "module")
    check_mask(mask_BM, shape[:2], "[B, M]")
    if mask_BM is not None:
        inputs_BMC = inputs_BMC.masked_fill(~mask_BM.unsqueeze(-1), 0)
    return inputs_BMC.to(dtype)
