"""Watch what code does with the gradients of a backward pass: clear, clip, step, skip."""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from types import GeneratorType
from typing import Any

import torch
from torch import nn

from deconv_cli.gradients.nested_tensors import tensors_in
from deconv_cli.gradients.tracing.backward_trace import nodes_below
from deconv_cli.gradients.tracing.code_location import CodeLocation, running_line
from deconv_cli.gradients.training.training_events import (
    Clipping,
    IdleReason,
    OptimizerStep,
    TrainingEvents,
    fingerprint,
    gradient_norm,
    living_optimizers,
    weights_of,
)


class OptimizerWatch:
    """Collects `events` from the first checked backward pass on."""

    def __init__(self) -> None:
        self.events = TrainingEvents()
        self.clipping = ClippingWatch(self.events.idle_clippings, self._is_trained)
        self._weights: list[torch.Tensor] = []
        self._first: list[tuple[float, float]] = []
        self._norms: dict[int, float] = {}
        self._before: dict[int, dict[int, tuple[float, float]]] = {}
        self._begun: dict[int, tuple[int, bool]] = {}
        self.cleared_at: CodeLocation | None = None
        self._used: dict[int, torch.optim.Optimizer] = {}
        self._passed_over: dict[int, torch.optim.Optimizer] = {}
        self._mixed: set[int] = set()
        self._known: dict[int, torch.optim.Optimizer] = {}
        self._stepped: set[int] = set()
        self._changed: set[int] = set()
        self._at_backward: dict[int, tuple[float, float]] = {}
        self._n_steps_before = 0
        self.last_backward = CodeLocation()

    def watch(self, weights: list[torch.Tensor]) -> None:
        """Add the weights of a checked pass."""
        known = {id(weight) for weight in self._weights}
        new = [weight for weight in weights if id(weight) not in known]
        self._weights += new
        self._first += [fingerprint(weight) for weight in new]
        own = {id(weight) for weight in self._weights}
        for optimizer in living_optimizers():
            if any(id(weight) in own for weight in weights_of(optimizer)):
                self._known[id(optimizer)] = optimizer
        self._note_held()

    def note_late(self, modules: Iterable[nn.Module], is_read: Callable[[torch.Tensor], bool]) -> None:
        """Note weights that came or were unfrozen after the checked pass, and that no optimizer holds."""
        known = {id(weight) for weight in self._weights}
        named = [pair for module in modules for pair in module.named_parameters()]
        late = {id(w): name for name, w in named if w.requires_grad and id(w) not in known and is_read(w)}
        if late.keys() - self.events.late.keys():
            held = {id(weight) for optimizer in living_optimizers() for weight in weights_of(optimizer)}
            self.events.late |= {key: name for key, name in late.items() if key not in held}

    @property
    def has_seen_enough(self) -> bool:
        """Whether the weights of each optimizer have seen two steps, or were changed by hand and used again.

        The steps may be those of another optimizer of the same weights, which a library wraps.
        """
        taken, held = Counter(step.optimizer for step in self.events.steps), self.events.held
        stepped = frozenset().union(*(held[key] for key, n_steps in taken.items() if n_steps > 1))
        have_stepped = bool(taken) and all(weights <= stepped for weights in held.values())
        return have_stepped or (self.events.moved_by_hand and self.events.n_backward > 2)

    def before_backward(self, location: CodeLocation) -> None:
        """Note whether gradients that a step has used are still there."""
        self.events.n_backward += 1
        self._used = _with_gradients(self._used)
        self._passed_over = _with_gradients(self._passed_over)
        self._mixed = set(self._passed_over)
        if not self.events.steps and any(fingerprint(w) != p for w, p in zip(self._weights, self._first, strict=True)):
            self.events.moved_by_hand = True
            if gradient_norm(self._weights) and self.events.accumulated_by_hand is None:
                self.events.accumulated_by_hand = location

    def compare_written(
        self, written: Mapping[torch.Tensor, CodeLocation], changed: Mapping[torch.Tensor, CodeLocation]
    ) -> None:
        """Note weights that are back at their values before the last step.

        Args:
            written: weights that modules wrote to, with the line.
            changed: those that each write changes further, which is a fault from the second pass on.
        """
        self.events.drifting |= {id(w): line for w, line in changed.items() if id(w) in self._changed}
        self._changed |= {id(weight) for weight in changed}
        for weight in {id(weight): weight for weight in (*self._weights, *written)}.values():
            now = fingerprint(weight)
            if id(weight) in self._stepped and self._at_backward.get(id(weight)) == now:
                self.events.overwritten[id(weight)] = written.get(weight, CodeLocation())
            self._at_backward[id(weight)] = now
        self._stepped.clear()

    def after_backward(self) -> None:
        """Measure the gradients after backward."""
        weights = {id(w): w for w in self._weights}
        weights |= {id(w): w for optimizer in self._known.values() for w in weights_of(optimizer)}
        self._norms = {key: gradient_norm([weight]) for key, weight in weights.items()}
        self.events.reached |= {key for key, norm in self._norms.items() if norm}
        self.cleared_at = None
        self._n_steps_before = len(self.events.steps)
        self.clipping.after_backward()

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Remember the weights, and whether the optimizer has a state."""
        self._begun[id(optimizer)] = self.events.n_backward, _has_state(optimizer)
        given = [weight for weight in weights_of(optimizer) if gradient_norm([weight])]
        self._before[id(optimizer)] = {id(weight): fingerprint(weight) for weight in given}
        if self._weights:
            self.events.given |= {id(weight) for weight in given}
            for weight in weights_of(optimizer):
                self.events.backward_before.setdefault(id(weight), self.last_backward)

    def after_step(self, optimizer: torch.optim.Optimizer, location: CodeLocation) -> None:
        """Note a step."""
        before = self._before.pop(id(optimizer), {})
        n_backward, had_state = self._begun.pop(id(optimizer), (self.events.n_backward, True))
        if not self._weights:
            return
        weights = weights_of(optimizer)
        changed = {id(w) for w in weights if id(w) in before and fingerprint(w) != before[id(w)]}
        # A step that calls backward itself, as in LBFGS, uses its state meanwhile, and may end at the last such call.
        is_plain = n_backward == self.events.n_backward
        self._stepped |= changed if is_plain else set()
        rates = [float(group["lr"]) for group in optimizer.param_groups if "lr" in group]
        self.events.steps.append(
            OptimizerStep(
                optimizer=id(optimizer),
                name=type(optimizer).__name__,
                location=location,
                held=frozenset(id(weight) for weight in weights),
                norm_after_backward=math.sqrt(math.fsum(self._norms.get(id(weight), 0.0) ** 2 for weight in weights)),
                norm_at_step=gradient_norm(weights),
                n_given=len(before),
                n_changed=len(changed),
                learning_rate=max(rates, default=None),
                cleared_at=self.cleared_at,
                clipping=self.clipping.last,
                is_fresh=id(optimizer) not in self._used,
                is_mixed=id(optimizer) in self._mixed,
                begins_state=is_plain and not had_state and _has_state(optimizer),
                n_backward=self.events.n_backward,
                backward=self.last_backward,
            )
        )
        self.clipping.after_step(before)
        self._used[id(optimizer)] = self._known[id(optimizer)] = optimizer
        self._note_held()
        self._passed_over |= _with_gradients(self._known)
        self._passed_over.pop(id(optimizer), None)

    def _is_trained(self, keys: set[int]) -> bool:
        known = [*self._weights, *(weight for found in living_optimizers() for weight in weights_of(found))]
        return any(id(weight) in keys for weight in known)

    def _note_held(self) -> None:
        """Note the weights of each optimizer that has taken a step or holds a checked weight."""
        self.events.held = {key: frozenset(map(id, weights_of(found))) for key, found in self._known.items()}

    def watched_clearing(self, clear: Callable[..., None]) -> Callable[..., None]:
        """Watch a function that clears gradients."""

        def watched(*args: Any, **keywords: Any) -> None:  # noqa: ANN401  torch's own signature
            self.cleared_at = running_line()
            self._note_wasted(self.cleared_at)
            clear(*args, **keywords)

        return watched

    def _note_wasted(self, location: CodeLocation) -> None:
        """Note that gradients are cleared before any step, or any line that moves weights, used them."""
        is_unused = len(self.events.steps) == self._n_steps_before and not self._before
        if is_unused and gradient_norm(self._weights):
            known = [(weight, self._at_backward.get(id(weight))) for weight in self._weights]
            if all(fingerprint(weight) == before for weight, before in known):
                self.events.wasted.setdefault(self.last_backward, []).append(location)

    def watched_scaler(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Watch whether a gradient scaler skips a step."""

        def watched(scaler: Any, optimizer: Any, *args: Any, **keywords: Any) -> Any:  # noqa: ANN401
            n_steps = len(self.events.steps)
            result = step(scaler, optimizer, *args, **keywords)
            self.events.n_skipped += bool(self._weights) and len(self.events.steps) == n_steps
            return result

        return watched


def _has_state(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether an optimizer keeps tensors from step to step."""
    return bool(tensors_in(list(optimizer.state.values())))


def _with_gradients(optimizers: dict[int, torch.optim.Optimizer]) -> dict[int, torch.optim.Optimizer]:
    """Keep the optimizers whose weights have gradients now."""
    return {key: found for key, found in optimizers.items() if gradient_norm(weights_of(found))}


class CarriedGraph:
    """Remembers, for each line that calls backward, its newest node and the number of steps before it."""

    def __init__(self) -> None:
        self._last: dict[tuple[str | None, int | None], tuple[int, int]] = {}
        self._first: int | None = None

    def begin(self) -> None:
        """Ignore nodes from before the first pass, as of a member that is computed from a weight once."""
        if self._first is None:
            self._first = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]

    def reaches_back(self, tensors: Any, line: tuple[str | None, int | None], n_steps: int) -> bool:  # noqa: ANN401
        """Return whether the graph of a loss holds nodes from before the last pass of its line and a step."""
        starts = [t.grad_fn for t in tensors_in(tensors) if t.grad_fn is not None]
        # The numbers by which torch counts the nodes of a graph; its leaves have none.
        every = {node._sequence_nr() for node in nodes_below(starts) if not hasattr(node, "variable")}
        numbers = {number for number in every if number >= (self._first or 0)}
        newest, n_before = self._last.get(line, (-1, n_steps))
        self._last[line] = max(numbers, default=newest), n_steps
        return n_steps > n_before and any(number <= newest for number in numbers)


class ClippingWatch:
    """Follows gradient clipping between a backward pass and the step after it: early, late, without weights, scaled.

    Args:
        idle: filled with the calls without an effect, by line.
        is_trained: whether any of the weights, given by their ids, belongs to a pass or an optimizer.

    Attributes:
        last: the last call with an effect since the last backward pass, None where there was none.
    """

    def __init__(
        self, idle: dict[str, tuple[CodeLocation, IdleReason]], is_trained: Callable[[set[int]], bool]
    ) -> None:
        self.last: Clipping | None = None
        self._idle = idle
        self._is_trained = is_trained
        self._calls: dict[tuple[str, frozenset[int]], Clipping] = {}
        self._used: set[int] = set()
        self._scaler: torch.amp.GradScaler | None = None
        self._is_scaled = False

    def watched(self, clip: Callable[..., Any]) -> Callable[..., Any]:
        """Watch `clip_grad_norm_` or `clip_grad_value_`."""
        signature = inspect.signature(clip)

        def watched(*args: Any, **keywords: Any) -> Any:  # noqa: ANN401  torch's own signature
            given = signature.bind(*args, **keywords)
            parameters, limit = list(given.arguments.values())[:2]
            is_used_up = isinstance(parameters, GeneratorType) and parameters.gi_frame is None
            weights = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
            given.arguments[next(iter(given.arguments))] = weights
            if not math.isfinite(limit):  # it only measures the norm
                return clip(*given.args, **given.kwargs)
            trained = [weight for weight in weights if weight.requires_grad]
            call = Clipping(running_line(), float(limit), trained, gradient_norm(weights))
            with_gradient = {id(weight) for weight in weights if gradient_norm([weight])}
            result = clip(*given.args, **given.kwargs)
            if is_used_up:
                self._note_idle(call, IdleReason.NO_WEIGHTS)
            elif with_gradient and with_gradient <= self._used:
                self._note_idle(call, IdleReason.USED)
            elif trained:
                self._note(call)
            return result

        return watched

    def _note(self, call: Clipping) -> None:
        if self._is_scaled and call.norm_before > call.limit:
            self._note_idle(call, IdleReason.SCALED)
        call.norm_after = gradient_norm(call.weights)
        if call.norm_before:
            self.last = call
            self._calls = {key: c for key, c in self._calls.items() if not (c.is_early and c.ids & call.ids)}
        key = str(call.location), frozenset(call.ids)
        call.n_calls += self._calls[key].n_calls if key in self._calls else 0
        self._calls[key] = call

    def _note_idle(self, call: Clipping, reason: IdleReason) -> None:
        self._idle.setdefault(str(call.location), (call.location, reason))

    def watched_scaling(self, scale: Callable[..., Any]) -> Callable[..., Any]:
        """Watch a gradient scaler multiply a loss."""

        def watched(scaler: torch.amp.GradScaler, *args: Any, **keywords: Any) -> Any:  # noqa: ANN401
            self._scaler = scaler
            return scale(scaler, *args, **keywords)

        return watched

    def watched_unscaling(self, unscale: Callable[..., Any]) -> Callable[..., Any]:
        """Watch a gradient scaler divide the gradients again."""

        def watched(*args: Any, **keywords: Any) -> Any:  # noqa: ANN401  torch's own signature
            self._is_scaled = False
            return unscale(*args, **keywords)

        return watched

    def after_backward(self) -> None:
        """Note which calls came before the last gradients of their weights."""
        self.last, self._used = None, set()
        self._is_scaled = self._scaler is not None and self._scaler.is_enabled() and self._scaler.get_scale() > 1
        self._scaler = None
        for call in self._calls.values():
            call.is_early |= gradient_norm(call.weights) != call.norm_after

    def after_step(self, given: Iterable[int]) -> None:
        """Note a step that used the gradients of these weights, given by their ids."""
        used = set(given)
        self._used |= used
        calls = [(key, call, bool(call.ids & used)) for key, call in self._calls.items()]
        is_limited = any(is_of_step and call.norm_before and not call.is_early for _, call, is_of_step in calls)
        for key, call, is_of_step in calls:
            if is_of_step:
                del self._calls[key]
                if call.is_early:
                    self._note_idle(call, IdleReason.TOO_EARLY if call.norm_before else IdleReason.NO_GRADIENTS)
            elif call.n_calls > 1 and not call.norm_before and not is_limited and not self._is_trained(call.ids):
                self._note_idle(call, IdleReason.NO_GRADIENTS)
