"""Record the operations behind a tensor, in any code, so that they can run again with other weights.

Each recorded tensor keeps the operation that made it alive, and each operation the ones before it, as in autograd's own
graph, so a tensor that the script drops is dropped here too. Results without a parameter behind them are constants.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakIdKeyDictionary

from deconv_cli.gradients.nested_tensors import storage_key
from deconv_cli.gradients.tracing.code_location import CodeLocation, Locator
from deconv_cli.gradients.tracing.operations import (
    MADE_OF_VALUES,
    OUTSIDE_USES,
    plain_name,
    reads_values,
)

_MAX_NUMBERS = 64
_DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Slot:
    """A placeholder for a tensor that a recorded operation makes."""

    handle: int


Reads = dict[int, tuple[torch.Tensor, tuple[int, int]]]


@dataclass(eq=False)
class Entry:
    """A recorded operation.

    Attributes:
        order: of the entries in a later run.
        leaves: its arguments, flattened by `spec`, with a `Slot` for each recorded tensor.
        outputs: handles of its output tensors, None for other outputs.
        parents: the entries that made its inputs or wrote to them.
        effects: entries without an output that belong to this one, such as hooks.
        module: id of the running module.
        switch: the line that switched gradients off, None if they were on.
        is_library_switch: an installed library switched them off.
        reads: the weights behind it, by id, with their stamps at that time.
        written: key of the memory that it writes to, and the values there before the first write of the pass.
        generator: state of the random generator before it, if it draws numbers.
        autocast: device and type of automatic mixed precision.
    """

    order: int
    function: Callable[..., Any]
    leaves: list[Any]
    spec: Any
    location: CodeLocation
    module: int
    is_library: bool
    switch: CodeLocation | None
    autocast: tuple[str, torch.dtype] | None
    outputs: list[int | None] = field(default_factory=list)
    parents: list[Entry] = field(default_factory=list)
    effects: list[Entry] = field(default_factory=list)
    generator: torch.Tensor | None = None
    is_library_switch: bool = False
    reads: Reads = field(default_factory=dict)
    written: tuple[int, torch.Tensor] | None = None


class Tape(TorchFunctionMode):
    """Records every function of torch with a parameter, or a tensor made of one, among its arguments.

    Attributes:
        suspended: above zero inside hand-written Functions, optimizers and checks, which are not recorded.
        modules: ids of the running modules.
        last_use: the last line that read each leaf while gradients were on.
        made_of_values: the order in which tensors were made of plain numbers or arrays.
        numbers: recent operations at which a tensor became a plain number.
        first_values: copies of memory before a recorded operation wrote to it, by the key of its storage.
    """

    def __init__(self) -> None:
        super().__init__()
        self.suspended = 0
        self.modules: list[int] = []
        self.last_use = WeakIdKeyDictionary()
        self.numbers: deque[Entry] = deque(maxlen=_MAX_NUMBERS)
        self.first_values: dict[int, tuple[StorageWeakRef, torch.Tensor]] = {}
        self._known = WeakIdKeyDictionary()
        self._weights: dict[int, StorageWeakRef] = {}
        self.made_of_values = WeakIdKeyDictionary()
        self._writers: dict[int, tuple[StorageWeakRef, list[Entry]]] = {}
        self._makers: dict[int, tuple[StorageWeakRef, weakref.ref[Entry]]] = {}
        self._first_of_pass = 0
        self._count = 0
        self._locator = Locator(nn.Module())
        self._switch: CodeLocation | None = None
        self._is_library_switch = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        keywords, name = kwargs or {}, plain_name(func)
        if name == "_set_grad_enabled":
            self._is_library_switch = self._is_library_switch if self._switch else self._locator.runs_library()
            self._switch = None if args[0] else self._switch or self._locator.here()
        if self.suspended or name == "backward":
            return func(*args, **keywords)
        return self.record(func, name, args, keywords)

    def record(
        self,
        function: Any,  # noqa: ANN401  torch's functions have no one type
        name: str,
        args: Any,  # noqa: ANN401
        keywords: dict[str, Any],
        later: Callable[..., Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run a function, and record it if needed; a later run calls `later` instead if that is given."""
        leaves, spec = pytree.tree_flatten((args, keywords))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        is_writing = _is_writing(name, keywords)
        written = keywords.get("out", next(iter(tensors), None)) if is_writing else None
        # Writes of optimizers and initializers are no part of a pass, which runs again with the current weights.
        is_of_weights = is_writing and (self._is_outside(written) or self._is_memory_of_weight(written))
        if is_of_weights or not self._matters(name, function, tensors):
            result = function(*args, **keywords)
            if isinstance(result, torch.Tensor) and name in MADE_OF_VALUES:
                self.made_of_values[result] = self._count
            return result
        if isinstance(written, torch.Tensor):
            self._keep_first_values(written)
        entry = self._entry(later or function, leaves, spec)
        state = torch.get_rng_state()
        result = function(*args, **keywords)
        entry.generator = state if not torch.equal(state, torch.get_rng_state()) else None
        self._finish(entry, name, tensors, result, written)
        return result

    def _is_memory_of_weight(self, tensor: Any) -> bool:  # noqa: ANN401  any argument
        """Return whether a tensor is a weight or shares its memory with one."""
        if not isinstance(tensor, torch.Tensor) or _is_weight(tensor):
            return tensor is not None
        storage = None if tensor.requires_grad else self._weights.get(storage_key(tensor))
        return storage is not None and not storage.expired()

    def _is_outside(self, tensor: Any) -> bool:  # noqa: ANN401  any argument
        """Return whether gradients are off, and no recorded operation of the pass wrote to this memory."""
        if torch.is_grad_enabled():
            return False
        is_written = isinstance(tensor, torch.Tensor) and storage_key(tensor) in self._writers
        with contextlib.suppress(RuntimeError):  # torch does not answer for a view of overwritten memory
            return not is_written or tensor.is_leaf is None
        return True

    def entry_of(self, tensor: torch.Tensor) -> tuple[int, Entry] | None:
        """Find the operation that made a tensor."""
        found: tuple[int, Entry] | None = self._known.get(tensor)
        return found

    def forget(self) -> None:
        """Drop the state of the pass before the last step."""
        self.numbers.clear()
        self._first_of_pass = self._count
        self._writers = {key: found for key, found in self._writers.items() if not found[0].expired()}
        self._makers = {key: found for key, found in self._makers.items() if not found[0].expired()}
        self.first_values = {key: found for key, found in self.first_values.items() if not found[0].expired()}

    def _matters(self, name: str, function: Any, tensors: list[torch.Tensor]) -> bool:  # noqa: ANN401
        if not reads_values(function, name) and name not in ("register_hook", "requires_grad_"):
            return False
        if name == "CheckpointFunction.apply":  # reads weights that are not among its arguments
            return True
        return any(t.requires_grad or self._source_of(t) or storage_key(t) in self._writers for t in tensors)

    def _entry(self, function: Callable[..., Any], leaves: list[Any], spec: Any) -> Entry:  # noqa: ANN401
        location = self._locator.here()
        slots: list[Any] = []
        parents: list[Entry] = []
        reads: Reads = {}
        for leaf in leaves:
            known = self._source_of(leaf) if isinstance(leaf, torch.Tensor) else None
            slots.append(leaf if known is None else Slot(known[0]))
            parents += [] if known is None else [known[1]]
            if not isinstance(leaf, torch.Tensor):
                continue
            if storage_key(leaf) in self._writers:
                parents += self._writers[storage_key(leaf)][1]
            if _is_weight(leaf) and not is_lazy(leaf):
                self._weights[storage_key(leaf)] = StorageWeakRef(leaf.untyped_storage())
                reads[id(leaf)] = leaf, _stamp(leaf)
            if _is_weight(leaf) and torch.is_grad_enabled():
                self.last_use[leaf] = location
        entry = Entry(
            order=self._count,
            function=function,
            leaves=slots,
            spec=spec,
            location=location,
            module=self.modules[-1] if self.modules else 0,
            is_library=self._locator.runs_library(),
            switch=None if torch.is_grad_enabled() else self._switch or location,
            autocast=_autocast(),
            is_library_switch=self._is_library_switch,
            parents=parents,
            reads=_joined([*(parent.reads for parent in parents), reads]),
        )
        self._count += 1
        return entry

    def _source_of(self, tensor: torch.Tensor) -> tuple[int, Entry] | None:
        """Find the operation of a tensor; one without a gradient and with older weights or writes is a constant."""
        known, key = self.entry_of(tensor), storage_key(tensor)
        reads = known[1].reads.values() if known is not None else ()
        if tensor.requires_grad or (known is not None and all(_stamp(weight) == stamp for weight, stamp in reads)):
            return known
        self._known.pop(tensor, None)
        if key in self._writers and self._writers[key][1][0].order < self._first_of_pass:
            del self._writers[key]
            self.first_values.pop(key, None)
        return None

    def _finish(self, entry: Entry, name: str, inputs: list[torch.Tensor], result: Any, written: Any) -> None:  # noqa: ANN401
        """Note the outputs of an entry, and the memory that it wrote to."""
        if name in ("register_hook", "requires_grad_"):
            known = self.entry_of(inputs[0])
            if known is not None:
                known[1].effects.append(entry)
            return
        leaves = pytree.tree_leaves(result)
        for leaf in leaves:
            # A new leaf wraps the tensor that it is made of.
            is_made = isinstance(leaf, torch.Tensor) and not (_is_weight(leaf) and any(leaf is own for own in inputs))
            self._count += is_made
            entry.outputs.append(self._count if is_made else None)
            if is_made:
                self._known[leaf] = (self._count, entry)
                key = storage_key(leaf)  # negative if the tensor is sparse, so that it has no storage
                if key > 0 and (key not in self._makers or self._makers[key][0].expired()):
                    self._makers[key] = StorageWeakRef(leaf.untyped_storage()), weakref.ref(entry)
        if name in OUTSIDE_USES and torch.is_grad_enabled():
            self.numbers.append(entry)
        if isinstance(written, torch.Tensor):
            if not any(leaf is written for leaf in leaves):
                entry.outputs = []
            storage, key = StorageWeakRef(written.untyped_storage()), storage_key(written)
            self._writers.setdefault(key, (storage, []))[1].append(entry)
            entry.written = (key, self.first_values[key][1]) if key in self.first_values else None
            self._note_effect(entry, key)

    def _note_effect(self, entry: Entry, key: int) -> None:
        """Let a write belong to the operation that made the memory, since backward may read what it overwrites."""
        storage, maker = self._makers.get(key, (None, None))
        made_by = maker() if maker is not None and storage is not None and not storage.expired() else None
        if made_by is not None and made_by is not entry:
            made_by.effects.append(entry)

    def _keep_first_values(self, tensor: torch.Tensor) -> None:
        key = storage_key(tensor)
        if self._source_of(tensor) is not None or key in self._writers or tensor.requires_grad:
            return
        values = tensor.detach()
        whole = values.as_strided((values.untyped_storage().nbytes() // values.element_size(),), (1,), 0).clone()
        self.first_values[key] = (StorageWeakRef(tensor.untyped_storage()), whole)


def ancestors(goals: list[Entry]) -> list[Entry]:
    """List entries and all entries that they need, in their order."""
    found: dict[int, Entry] = {}
    waiting = list(goals)
    while waiting:
        entry = waiting.pop()
        if id(entry) not in found:
            found[id(entry)] = entry
            waiting += [*entry.parents, *entry.effects]
    return sorted(found.values(), key=lambda entry: entry.order)


def _joined(parts: list[Reads]) -> Reads:
    """Join the reads of parents, with the oldest stamp of each weight; equal reads share one dictionary."""
    found: Reads = {}
    for part in parts:
        older = {key: read for key, read in part.items() if key not in found or read[1] < found[key][1]}
        if older:
            found = {**found, **older} if found else part
    return found


def _stamp(weight: torch.Tensor) -> tuple[int, int]:
    """Return a stamp that changes when a weight is overwritten."""
    return weight._version, storage_key(weight)


def _is_weight(leaf: Any) -> bool:  # noqa: ANN401  any argument
    return isinstance(leaf, torch.Tensor) and leaf.is_leaf and leaf.requires_grad


def _is_writing(name: str, keywords: dict[str, Any]) -> bool:
    is_magic = name.startswith("__") and name.endswith("__")
    if is_magic:
        return name == "__setitem__" or (name.startswith("__i") and name not in ("__invert__", "__index__", "__int__"))
    return keywords.get("out") is not None or (name.endswith("_") and not name.endswith("requires_grad_"))


def _autocast() -> tuple[str, torch.dtype] | None:
    for device in _DEVICES:
        if torch.is_autocast_enabled(device):
            return device, torch.get_autocast_dtype(device)
    return None
