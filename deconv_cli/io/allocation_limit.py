"""A bound on the memory that code from outside may allocate: constructors of layers, and what a pickle calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from deconv_cli.errors import TooLargeError
from deconv_cli.io import limits
from deconv_cli.vocabulary import format_memory

_FACTORIES = {
    *(torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.randint, torch.eye),
    *(torch.arange, torch.linspace, torch.empty_strided),
}


class AllocationLimit(TorchFunctionMode):
    """Refuse, before the memory is taken, to hold new tensors of more than half of the memory at once.

    What counts are the functions of torch that make a tensor out of a size, such as `torch.empty` and `torch.randn`.

    Args:
        what: the file or the class whose code runs, named in the error.

    Raises:
        TooLargeError: the tensors would be larger together.
    """

    def __init__(self, what: str) -> None:
        super().__init__()
        self._what = what
        self._made: list[tuple[StorageWeakRef, int]] = []
        self._n_bytes = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 (whatever the function returns)
        """Weigh what a function is about to allocate, then call it."""
        kwargs = kwargs or {}
        if func not in _FACTORIES or "layout" in kwargs or str(kwargs.get("device")) == "meta":
            return func(*args, **kwargs)
        n_bytes = func(*args, **{**kwargs, "device": "meta", "out": None}).nbytes
        self._weigh(n_bytes)
        made = func(*args, **kwargs)
        self._made.append((StorageWeakRef(made.untyped_storage()), n_bytes))
        return made

    def _weigh(self, n_bytes: int) -> None:
        budget = limits.memory_budget()
        if self._n_bytes + n_bytes > budget:
            self._made = [(storage, size) for storage, size in self._made if not storage.expired()]
            self._n_bytes = sum(size for _, size in self._made)
        self._n_bytes += n_bytes
        if self._n_bytes > budget:
            raise TooLargeError(
                f"'{self._what}' would allocate {format_memory(self._n_bytes)}, but at most {format_memory(budget)} "
                "(half of the memory) may be used; make its layers smaller."
            )
