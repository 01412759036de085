"""Notes where gradients are limited, and calls that limit none: too early, too late, of no weights or scaled ones."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import GeneratorType
from typing import Any

import torch

from deconv_cli.gradients.tracing.code_location import CodeLocation
from deconv_cli.gradients.training.training_events import Clipping, IdleClipping, IdleReason, gradient_norm


@dataclass(eq=False)
class _Call:
    """A call for weights, none of whose gradients a step has used since.

    Attributes:
        norm_before, norm_after: of the gradients of all these weights, before and after the call.
        n_times: how many times it came since a step used any of them.
        is_early: a backward pass has changed their gradients afterwards.
    """

    location: CodeLocation
    weights: list[torch.Tensor]
    norm_before: float
    norm_after: float
    n_times: int = 1
    is_early: bool = False

    @property
    def ids(self) -> set[int]:
        """The weights by their ids."""
        return {id(weight) for weight in self.weights}


class ClippingWatch:
    """Follows the calls between a backward pass and the step after it.

    Args:
        here: gives the line that runs.
        idle: filled with the calls that limit nothing, by their lines.
        is_trained: whether weights, by their ids, are known of a pass or an optimizer.

    Attributes:
        last: the last call since the last backward pass that limits gradients, None where there was none.
    """

    def __init__(
        self,
        here: Callable[[], CodeLocation],
        idle: dict[str, IdleClipping],
        is_trained: Callable[[set[int]], bool],
    ) -> None:
        self.last: Clipping | None = None
        self._here = here
        self._idle = idle
        self._is_trained = is_trained
        self._calls: dict[tuple[str, frozenset[int]], _Call] = {}
        self._used: set[int] = set()
        self._scaler: torch.amp.GradScaler | None = None
        self._is_scaled = False

    def watched(self, clip: Callable[..., Any]) -> Callable[..., Any]:
        """Note what `clip_grad_norm_` or `clip_grad_value_` is called with."""
        signature = inspect.signature(clip)

        def watched(*args: Any, **keywords: Any) -> Any:  # noqa: ANN401  torch's own signature
            given = signature.bind(*args, **keywords)
            parameters, limit = list(given.arguments.values())[:2]
            is_used_up = isinstance(parameters, GeneratorType) and parameters.gi_frame is None
            weights = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
            given.arguments[next(iter(given.arguments))] = weights
            if not math.isfinite(limit):  # the norm is measured and nothing else
                return clip(*given.args, **given.kwargs)
            found = Clipping(self._here(), float(limit), gradient_norm(weights))
            has_used = self._has_used(weights)
            result = clip(*given.args, **given.kwargs)
            if is_used_up:
                self._find(found.location, IdleReason.NO_WEIGHTS)
            elif has_used:
                self._find(found.location, IdleReason.USED)
            else:
                self._note(found, [weight for weight in weights if weight.requires_grad])
            return result

        return watched

    def watched_scaling(self, scale: Callable[..., Any]) -> Callable[..., Any]:
        """Note that a gradient scaler multiplies a loss."""

        def watched(scaler: torch.amp.GradScaler, *args: Any, **keywords: Any) -> Any:  # noqa: ANN401
            self._scaler = scaler
            return scale(scaler, *args, **keywords)

        return watched

    def watched_unscaling(self, unscale: Callable[..., Any]) -> Callable[..., Any]:
        """Note that a gradient scaler divides the gradients again."""

        def watched(*args: Any, **keywords: Any) -> Any:  # noqa: ANN401  torch's own signature
            self._is_scaled = False
            return unscale(*args, **keywords)

        return watched

    def after_backward(self) -> None:
        """Note which calls came before the last gradients of their weights were there."""
        self.last, self._used = None, set()
        self._is_scaled = self._scaler is not None and self._scaler.is_enabled() and self._scaler.get_scale() > 1
        self._scaler = None
        for call in self._calls.values():
            call.is_early |= gradient_norm(call.weights) != call.norm_after

    def after_step(self, given: Iterable[int]) -> None:
        """Note a step that went by the gradients of some weights, by their ids."""
        used = set(given)
        self._used |= used
        calls = [(key, call, bool(call.ids & used)) for key, call in self._calls.items()]
        is_limited = any(is_of_step and call.norm_before and not call.is_early for _, call, is_of_step in calls)
        for key, call, is_of_step in calls:
            if is_of_step:
                del self._calls[key]
                if call.is_early:
                    self._find(call.location, IdleReason.TOO_EARLY if call.norm_before else IdleReason.NO_GRADIENTS)
            elif call.n_times > 1 and not call.norm_before and not is_limited and not self._is_trained(call.ids):
                self._find(call.location, IdleReason.NO_GRADIENTS)

    def _has_used(self, weights: list[torch.Tensor]) -> bool:
        given = {id(weight) for weight in weights if gradient_norm([weight])}
        return bool(given) and given <= self._used

    def _note(self, found: Clipping, weights: list[torch.Tensor]) -> None:
        if not weights:
            return
        if self._is_scaled and found.norm_before > found.limit:
            self._find(found.location, IdleReason.SCALED)
        call = _Call(found.location, weights, found.norm_before, gradient_norm(weights))
        if found.norm_before:
            self.last = found
            self._calls = {k: c for k, c in self._calls.items() if not (c.is_early and c.ids & call.ids)}
        key = str(found.location), frozenset(call.ids)
        call.n_times += self._calls[key].n_times if key in self._calls else 0
        self._calls[key] = call

    def _find(self, location: CodeLocation, reason: IdleReason) -> None:
        self._idle.setdefault(str(location), IdleClipping(location, reason))
