"""A recorded forward pass as a module, which runs the same operations again with the current weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from deconv_cli.errors import UsageError
from deconv_cli.gradients.nested_tensors import storage_key
from deconv_cli.gradients.rules.usage import hidden_weights
from deconv_cli.gradients.subject import Subject
from deconv_cli.gradients.tracing.code_location import CodeLocation, own_frames
from deconv_cli.gradients.training.optimizer_watch import living_optimizers, weights_of
from deconv_cli.gradients.training.tape import Entry, Slot, Tape, ancestors


class RecordedPass(nn.Module):
    """Runs the entries behind a loss again.

    Args:
        modules: the modules that the script ran, by the prefix of their parameters, possibly "".
        parameters: weights that no module holds, by name.
        tape, loss: the record of the pass, and its last tensor.
        hidden: ids of unregistered weights of modules.

    Attributes:
        running_location, running_in_library: the script's line of the running operation.
        returned: lines whose plain values became a constant of the pass.
        read_elsewhere: the last line that read each weight, by name, even if the loss does not depend on it.
    """

    def __init__(
        self,
        modules: dict[str, nn.Module],
        parameters: dict[str, torch.Tensor],
        tape: Tape,
        loss: torch.Tensor,
        hidden: set[int],
    ) -> None:
        super().__init__()
        self._own = parameters
        self._hidden = hidden
        for name, module in modules.items():
            self.add_module(name or "model", module)
        self._prefixes = {name or "model": f"{name}." if name else "" for name in modules}
        self._module_names = {id(m): n for prefix, module in modules.items() for n, m in _named(prefix, module)}
        self.running_location: CodeLocation | None = None
        self.running_in_library = False
        found = tape.entry_of(loss)
        self._goal = None if found is None else found[0]
        goals = [] if found is None else [found[1]]
        first_values = dict(entry.written for entry in ancestors(goals) if entry.written is not None)
        first_values |= {key: values for key, (_, values) in tape.first_values.items()}
        # A number of an earlier pass, such as a printed loss, would write to this pass's memory once more.
        for number in tape.numbers:
            writes = [entry.written for entry in ancestors([number]) if entry.written is not None]
            goals += [number] * all(first_values.get(key) is values for key, values in writes)
        self.entries = ancestors(goals)
        tensors = [leaf for entry in self.entries for leaf in entry.leaves if isinstance(leaf, torch.Tensor)]
        # By the ids of tensors, since a check in double precision gives them other memory.
        self._overwritten = {
            id(leaf): first_values[storage_key(leaf)] for leaf in tensors if storage_key(leaf) in first_values
        }
        # A dictionary would look like a container in which the script hides weights.
        self._constants = MappingProxyType(self._find_constants() if found is not None else {id(loss): loss})
        last_made = max((tape.made_of_values.get(constant, -1) for constant in self._constants.values()), default=-1)
        self.returned = frozenset(str(entry.location) for entry in tape.numbers if entry.order < last_made)
        self.read_elsewhere = {
            name: tape.last_use[parameter] for name, parameter in self.named_parameters() if parameter in tape.last_use
        }

    @property
    def constants(self) -> tuple[torch.Tensor, ...]:
        """The tensors besides weights that the pass reads; as inputs of forward they can be converted."""
        return tuple(self._constants.values())

    @property
    def strays(self) -> list[torch.Tensor]:
        """The unregistered weights that the pass reads and would train, which a check finds lost."""
        leaves = {id(leaf): leaf for entry in self.entries for leaf in entry.leaves if isinstance(leaf, torch.Tensor)}
        return [leaf for key, leaf in leaves.items() if key in self._hidden and leaf.requires_grad]

    def named_parameters(self, *_options: Any, **_keywords: Any) -> Iterator[tuple[str, nn.Parameter]]:  # noqa: ANN401
        """List the weights of the script under its own names."""
        seen = set()
        for child, prefix in self._prefixes.items():
            for name, parameter in getattr(self, child).named_parameters():
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield f"{prefix}{name}", parameter
        yield from ((name, tensor) for name, tensor in self._own.items() if id(tensor) not in seen)  # type: ignore[misc]

    def forward(self, *constants: torch.Tensor) -> torch.Tensor:
        """Run the entries again; `constants` may be converted."""
        given = {key: _as_recorded(c, own) for (key, own), c in zip(self._constants.items(), constants, strict=True)}
        memory: dict[int, torch.Tensor] = {}
        made: dict[int, Any] = {}
        for entry in self.entries:
            leaves = [self._resolve(leaf, given, made, memory) for leaf in entry.leaves]
            args, keywords = pytree.tree_unflatten(leaves, entry.spec)
            with self._as_recorded(entry):
                result = entry.function(*args, **keywords)
            for handle, leaf in zip(entry.outputs, pytree.tree_leaves(result), strict=False):
                if handle is not None:
                    made[handle] = leaf
        self.running_location = None
        return made[self._goal] if self._goal is not None else next(iter(given.values()))

    def _find_constants(self) -> dict[int, torch.Tensor]:
        found: dict[int, torch.Tensor] = {}
        known = {id(weight) for weight in (*dict(self.named_parameters()).values(), *self.strays)}
        for entry in self.entries:
            for leaf in entry.leaves:
                if isinstance(leaf, torch.Tensor) and id(leaf) not in known:
                    constant = self._overwritten.get(id(leaf), leaf)
                    found.setdefault(id(constant), constant)
        return found

    def _resolve(
        self,
        leaf: Any,  # noqa: ANN401  any argument of a function of torch
        given: dict[int, Any],
        made: dict[int, Any],
        memory: dict[int, torch.Tensor],
    ) -> Any:  # noqa: ANN401
        """Return the value of an argument in this run; `memory` holds overwritten memory, copied for each run."""
        if isinstance(leaf, Slot):
            return made[leaf.handle]
        if not isinstance(leaf, torch.Tensor):
            return leaf
        first = self._overwritten.get(id(leaf))
        if first is None:
            return given.get(id(leaf), leaf)
        key = id(first)
        if key not in memory:
            memory[key] = given.get(key, first).clone()
        return memory[key].as_strided(leaf.size(), leaf.stride(), leaf.storage_offset())

    @contextlib.contextmanager
    def _as_recorded(self, entry: Entry) -> Iterator[None]:
        """Set gradient mode, precision and random generator as recorded."""
        own = replace(entry.location, module=self._module_names.get(entry.module, ""))
        with contextlib.ExitStack() as stack:
            if entry.switch is not None:
                self.running_location, self.running_in_library = entry.switch, entry.is_library_switch
                stack.enter_context(torch.no_grad())
            if entry.autocast is not None:
                stack.enter_context(torch.autocast(entry.autocast[0], dtype=entry.autocast[1]))
            if entry.generator is not None:
                torch.set_rng_state(entry.generator)
            self.running_location, self.running_in_library = own, entry.is_library
            yield


def _named(prefix: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, found in module.named_modules():
        yield ".".join(filter(None, (prefix, name))), found


def _as_recorded(constant: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Let a constant require a gradient if it did, as the points of a physics-informed network."""
    return constant.detach().requires_grad_() if _needs_gradient(own, is_leaf=True) else constant


def _needs_gradient(tensor: torch.Tensor, *, is_leaf: bool) -> bool:
    try:
        return tensor.requires_grad and tensor.is_leaf is is_leaf
    except RuntimeError:  # torch refuses to answer for a view of overwritten memory
        return False


_SAME_LOSS = 1e-3


def subject_of_pass(called: list[nn.Module], tape: Tape, loss: torch.Tensor) -> Subject:
    """Make a subject of a recorded pass of the `called` modules.

    Raises:
        UsageError: the pass reads no weight, or cannot be run again.
    """
    loose = [weight for optimizer in living_optimizers() for weight in weights_of(optimizer)]
    modules, weights = name_weights(called, loose, tape.last_use.__contains__)
    # Without an optimizer for their other weights, the code may train the weights of modules by hand.
    given = set(map(id, loose))
    optimized = [m for m in modules.values() if any(id(parameter) in given for parameter in m.parameters())]
    hidden = {key for module in optimized for key in hidden_weights(module)} - given
    recorded = RecordedPass(modules, weights, tape, loss, hidden)
    if any(_needs_gradient(constant, is_leaf=False) for constant in recorded.constants):
        raise UsageError(
            "the checker cannot see how the pass made one of its tensors, as with torch.jit and torch.func.vmap; "
            "check the model itself, or remove these."
        )
    subject = Subject(recorded, recorded.constants, {}, None, lambda output, _: output, 0, None, is_axis_given=True)
    if not subject.parameters:
        raise UsageError(
            "no module ran and no weight was read before this backward pass, so there is nothing to check; choose "
            "a later one by its number."
        )
    again, here = subject.value(), float(loss.detach())
    if abs(again - here) > _SAME_LOSS * max(abs(here), 1e-6):
        raise UsageError(
            f"the recorded pass gives a loss of {again:.6g} when it is run again, but gave {here:.6g}; something in "
            "it is computed outside of torch, so check the model itself instead of the script."
        )
    return subject


def name_weights(
    called: list[nn.Module], loose: list[torch.Tensor], is_read: Callable[[torch.Tensor], bool]
) -> tuple[dict[str, nn.Module], dict[str, torch.Tensor]]:
    """Name the outermost of the `called` modules, "" for a single one, and the weights that no module holds.

    The `loose` weights are those of the optimizers; `is_read` tells whether the pass read a weight.
    """
    inner = {id(m) for module in called for m in module.modules() if m is not module}
    # A skeleton on the meta device has parameters without values.
    modules = [m for m in called if id(m) not in inner and any(not p.is_meta for p in m.parameters())]
    names, owned = _names_in_callers(), {id(parameter) for module in modules for parameter in module.parameters()}
    is_by_hand = not modules and not any(map(is_read, loose))
    by_hand = _weights_in_callers() if is_by_hand else ()
    found = {id(w): w for w in (*loose, *by_hand) if is_read(w) and id(w) not in owned}
    weights = {names.get(key, f"weight {n}"): weight for n, (key, weight) in enumerate(found.items())}
    if len(modules) == 1 and not weights:
        return {"": modules[0]}, {}
    named: dict[str, nn.Module] = {}
    for module in modules:
        name = names.get(id(module), type(module).__name__)
        named[name if name not in named else f"{name}_{len(named)}"] = module
    return named, weights


def _names_in_callers() -> dict[int, str]:
    """Name the values of variables, the attributes of `self`, and the parts of modules, by id."""
    names: dict[int, str] = {}
    for frame in own_frames():
        for name, value in (*frame.f_locals.items(), *frame.f_globals.items()):
            names.setdefault(id(value), name)
            for attribute, held in getattr(value, "__dict__", {}).items() if name == "self" else ():
                names.setdefault(id(held), attribute)
            for path, part in value.named_modules() if isinstance(value, nn.Module) else ():
                names.setdefault(id(part), path.replace(".", "_"))  # a module's name holds no dot
    return names


def _weights_in_callers() -> Iterator[torch.Tensor]:
    """List the weights in variables, as in training written by hand."""
    for frame in own_frames():
        for value in (*frame.f_locals.values(), *frame.f_globals.values()):
            for held in value if isinstance(value, list | tuple) else (value,):
                if isinstance(held, torch.Tensor) and held.is_leaf and held.requires_grad:
                    yield held
