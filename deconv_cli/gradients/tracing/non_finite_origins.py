"""Where NaN or infinity arises in a forward pass."""

from __future__ import annotations

import torch

from deconv_cli.gradients.tracing.forward_trace import Operation, OperationLog


def record_origin(
    log: OperationLog, inputs: list[torch.Tensor], outputs: list[torch.Tensor], operation: Operation
) -> None:
    """Note an operation that makes NaN or infinity of finite numbers, or NaN of infinite ones."""
    if _are_finite(inputs) and not _are_finite(outputs):
        log.origins.append(operation)
    elif _hold_nan(outputs) and not _hold_nan(inputs):
        log.nan_origins.append(operation)


def _are_finite(tensors: list[torch.Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors if tensor.is_floating_point())


def _hold_nan(tensors: list[torch.Tensor]) -> bool:
    return any(bool(tensor.isnan().any()) for tensor in tensors if tensor.is_floating_point())
