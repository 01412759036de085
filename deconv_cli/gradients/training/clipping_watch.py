"""Watch gradient clipping, and find calls without an effect on the next step: early, late, without weights, scaled."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from types import GeneratorType
from typing import Any

import torch

from deconv_cli.gradients.tracing.code_location import CodeLocation, running_line
from deconv_cli.gradients.training.training_events import Clipping, IdleReason, gradient_norm


class ClippingWatch:
    """Follows the calls between a backward pass and the step after it.

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
