"""What modules that read an array inside other people's models do with it first.

Letters: B batch, M inputs, C channels of an input.
"""

import torch
from torch import Tensor

from perceivers.ops.tokens import check_array, check_dtype, check_mask


def checked_inputs(inputs_BMC: Tensor, mask_BM: Tensor | None, channels: int, dtype: torch.dtype) -> Tensor:
    """Checks an array and its mask against a module, and clears what lies under False.

    Cleared here, before any norm: a norm of NaN would carry it into gradients, also where its result is not used.

    Returns:
        The inputs, `[B, M, C]`, in the dtype of the module's parameters.

    Raises:
        ValueError: If a shape or dtype does not fit.
    """
    check_array("inputs", inputs_BMC, 3, f"[B, M, {channels}]")
    shape = list(inputs_BMC.shape)
    if shape[2] != channels:
        raise ValueError(f"inputs has shape {shape}, {shape[2]} channels, but the module reads {channels}: [B, M, {channels}]")
    if shape[1] == 0:
        raise ValueError(f"inputs has shape {shape}, no inputs: give at least one, and mask it where it is not meant")
    check_dtype("inputs", inputs_BMC, dtype, "module")
    check_mask(mask_BM, shape[:2], "[B, M]")
    if mask_BM is not None:
        inputs_BMC = inputs_BMC.masked_fill(~mask_BM.unsqueeze(-1), 0)
    return inputs_BMC.to(dtype)
