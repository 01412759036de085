"""Double precision through and through: casts to narrow types inside a model become casts to float64.

Random numbers are drawn as they are in single precision, so that a layer left out at random is left out here too.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from deconv_cli.gradients.tensors_in import tensors_in
from deconv_cli.gradients.tracing.operations import plain_name

_NARROW = (torch.float32, torch.float16, torch.bfloat16)
_WIDE: dict[object, object] = dict.fromkeys(_NARROW, torch.float64)
_WIDE |= {torch.complex64: torch.complex128}
_WIDE |= dict.fromkeys(("torch.FloatTensor", "torch.HalfTensor", "torch.BFloat16Tensor"), "torch.DoubleTensor")
"""What a type that is asked for becomes, by itself or by the name that `type` takes."""

_CASTS = ("float", "half", "bfloat16")
_ALREADY_WIDE = {torch.float64, torch.complex128}
_DRAWN_ANEW = ("rand", "randn", "rand_like", "randn_like")


class LiftedCasts(TorchFunctionMode):
    """Lifts the types that functions of torch are asked for, and constants of narrow types that meet wide tensors."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Run one function."""
        keywords, name = kwargs or {}, plain_name(func)
        if name in _CASTS and len(args) == 1 and isinstance(args[0], torch.Tensor) and not args[0].is_complex():
            return args[0].to(torch.float64)
        if name == "view":
            return func(*args, **keywords)  # a narrow type says there how bits are to be read
        if name in _DRAWN_ANEW and _is_drawn_narrow(args, keywords):
            return func(*args, **{**keywords, "dtype": torch.float32}).to(torch.float64)
        args, keywords = pytree.tree_map(_lifted, (args, keywords))
        is_writing = name.endswith("_") or "out" in keywords
        types_given = {leaf.dtype for leaf in tensors_in((args, keywords))}
        if not is_writing and types_given & {*_NARROW, torch.complex64} and types_given & _ALREADY_WIDE:
            args, keywords = pytree.tree_map(_to_float64, (args, keywords))
        return (wide_kernel(name, args) or func)(*args, **keywords)


def _is_drawn_narrow(args: Any, keywords: dict[str, Any]) -> bool:  # noqa: ANN401  torch's own signature
    """Return whether a function would draw in single precision, were the model not in double."""
    if keywords.get("dtype") is not None:
        return keywords["dtype"] in _NARROW
    return not (args and isinstance(args[0], torch.Tensor)) or bool(args[0].is_floating_point())


def _lifted(value: Any) -> Any:  # noqa: ANN401  anything that a function of torch takes
    return _WIDE.get(value, value) if isinstance(value, torch.dtype | str) else value


def _to_float64(value: Any) -> Any:  # noqa: ANN401  anything that a function of torch takes
    if not isinstance(value, torch.Tensor) or value.dtype not in _WIDE:
        return value
    return value.to(torch.complex128 if value.is_complex() else torch.float64)


def _multiply_groups(
    rows: torch.Tensor,
    matrices: torch.Tensor,
    *,
    offs: torch.Tensor,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Multiply each group of rows, shape (rows, n), by its own matrix, shape (groups, n, m), as experts do.

    Args:
        rows: group after group.
        matrices: one for each group.
        offs: where each group ends; rows after the last one count for nothing.
        bias: added to all products.
        out_dtype: of the result, where it is another one.
    """
    ends = [0, *offs.tolist()]
    groups = zip(pairwise(ends), matrices, strict=True)
    products = [rows[first:end] @ matrix for (first, end), matrix in groups]
    product = torch.cat([*products, rows.new_zeros(len(rows) - ends[-1], matrices.shape[-1])])
    return (product if bias is None else product + bias).to(out_dtype or product.dtype)


def wide_kernel(name: str, arguments: Any) -> Callable[..., torch.Tensor] | None:  # noqa: ANN401  torch's own
    """Return what computes the same in float64 where torch does not, None where it does."""
    if name not in ("grouped_mm", "_grouped_mm"):
        return None
    is_double = all(isinstance(a, torch.Tensor) and a.dtype is torch.float64 for a in arguments[:2])
    is_of_groups = is_double and [a.ndim for a in arguments[:2]] == [2, 3]
    return _multiply_groups if is_of_groups else None
