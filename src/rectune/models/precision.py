"""bfloat16 or float32: which one a model computes in."""

from __future__ import annotations

import torch

from rectune.errors import unknown_name

PRECISIONS = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def choose_precision(precision: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype of a model on `device`, and why; "auto" takes bfloat16 where the device multiplies it in hardware.

    Raises:
        UserError: `precision` is neither "auto" nor a key of `PRECISIONS`.
    """
    if precision in PRECISIONS:
        return PRECISIONS[precision], "as configured"
    if precision != "auto":
        raise unknown_name("dtype", precision, ("auto", *PRECISIONS))
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    if fast:
        return torch.bfloat16, f"the {device.type} multiplies bfloat16 in hardware"
    return torch.float32, f"the {device.type} has no bfloat16 products in hardware"
