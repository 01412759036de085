"""A bound on the memory that code from outside may allocate: constructors of layers, and what a pickle calls."""

from __future__ import annotations

from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from deconv_cli.errors import TooLargeError
from deconv_cli.io import limits
from deconv_cli.vocabulary import format_memory


class AllocationLimit(TorchDispatchMode):
    """Refuse, before the memory is taken, to hold new tensors of more than some bytes at once.

    Every operation that makes a tensor is first run on the `meta` device, which knows sizes and holds no samples.

    Args:
        what: the file or the class whose code runs, named in the error.
        n_most: bytes that the tensors may take together; by default half of the memory.

    Raises:
        TooLargeError: the tensors would be larger together.
    """

    def __init__(self, what: str, n_most: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._what, self._n_most = what, n_most
        self._made: list[tuple[StorageWeakRef, int]] = []
        self._n_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Find what an operation is about to allocate, then run it."""
        keywords = kwargs or {}
        n_bytes = _new_bytes(func, args, keywords)
        self._count(n_bytes)
        made = func(*args, **keywords)
        if n_bytes:
            self._made += [(StorageWeakRef(tensor.untyped_storage()), tensor.nbytes) for tensor in _dense_tensors(made)]
        return made

    def _count(self, n_bytes: int) -> None:
        budget = min(limits.memory_budget(), self._n_most or limits.memory_budget())
        if self._n_bytes + n_bytes > budget:
            self._made = [(storage, size) for storage, size in self._made if not storage.expired()]
            self._n_bytes = sum(size for _, size in self._made)
        self._n_bytes += n_bytes
        if self._n_bytes > budget:
            raise TooLargeError(
                f"'{self._what}' would allocate {format_memory(self._n_bytes)}, but at most {format_memory(budget)} "
                "may be used; make its layers smaller."
            )


def _new_bytes(function: Any, arguments: Any, keywords: dict[str, Any]) -> int:  # noqa: ANN401 (an operation of torch)
    """Compute the bytes of the tensors that an operation makes; 0 for views and writes, and where no size is known."""
    leaves = pytree.tree_leaves((arguments, keywords))
    # Tensors that only trace, as those of torch.export, hold no samples, and may not be computed with here.
    if any(isinstance(leaf, torch.Tensor) and type(leaf) not in (torch.Tensor, torch.nn.Parameter) for leaf in leaves):
        return 0
    schema = function._schema
    if any(returned.alias_info is not None for returned in schema.returns) or str(keywords.get("device")) == "meta":
        return 0
    device = {"device": "meta"} if any(argument.name == "device" for argument in schema.arguments) else {}
    try:
        arguments, keywords = pytree.tree_map_only(
            torch.Tensor, lambda tensor: tensor.to("meta"), (arguments, keywords)
        )
        return sum(tensor.nbytes for tensor in _dense_tensors(function(*arguments, **keywords | device)))
    except Exception:  # noqa: BLE001  sizes that depend on samples have no answer on this device
        return 0


def _dense_tensors(made: Any) -> list[torch.Tensor]:  # noqa: ANN401 (whatever an operation gives)
    return [
        leaf for leaf in pytree.tree_leaves(made) if isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided
    ]
