"""Double precision through and through: casts to narrow types inside a model become casts to float64.

Random numbers are drawn as they are in single precision, so that a layer left out at random is left out here too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from deconv_cli.gradients.tracing.operations import plain_name

_NARROW = (torch.float32, torch.float16, torch.bfloat16)
_CASTS = ("float", "half", "bfloat16")
_DRAWN_ANEW = ("rand", "randn", "rand_like", "randn_like")


class LiftedCasts(TorchFunctionMode):
    """Lifts the types that functions of torch are asked for."""

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
        return func(*args, **keywords)


def _is_drawn_narrow(args: Any, keywords: dict[str, Any]) -> bool:  # noqa: ANN401  torch's own signature
    """Return whether a function would draw in single precision, were the model not in double."""
    if keywords.get("dtype") is not None:
        return keywords["dtype"] in _NARROW
    return not (args and isinstance(args[0], torch.Tensor)) or bool(args[0].is_floating_point())


def _lifted(value: Any) -> Any:  # noqa: ANN401  anything that a function of torch takes
    return torch.float64 if isinstance(value, torch.dtype) and value in _NARROW else value
