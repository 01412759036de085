"""The check that what a caller gives is a tensor of numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from deconv_cli.errors import UsageError


def check_tensor(found: object, role: str) -> None:
    """Refuse what is no dense tensor of torch.

    Args:
        found: what was given.
        role: what it is called in the message.

    Raises:
        UsageError: it is something else.
    """
    if not isinstance(found, Tensor):
        what = f"a {type(found).__name__}; torch.as_tensor makes one."
    elif found.layout != torch.strided:
        what = f"one of layout {found.layout}; to_dense makes one."
    elif found.is_meta:
        what = "one without values, on the device meta."
    else:
        return
    raise UsageError(f"{role} must be a dense torch.Tensor, but is {what}")
