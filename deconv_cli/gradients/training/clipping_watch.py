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


@dataclass(frozen=True)
class _EarlyCall:
    """A call for weights, by their ids, without a gradient: how many times it came since any of them had one."""

    location: CodeLocation
    weights: set[int]
    n_times: int


class ClippingWatch:
    """Follows the calls between a backward pass and the step after it.

    Args:
        here: gives the line that runs.
        idle: filled with the calls that limit nothing, by their lines.

    Attributes:
        last: the last call since the last backward pass that limits gradients, None where there was none.
    """

    def __init__(self, here: Callable[[], CodeLocation], idle: dict[str, IdleClipping]) -> None:
        self.last: Clipping | None = None
        self._here = here
        self._idle = idle
        self._early: dict[str, _EarlyCall] = {}
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
            if math.isfinite(limit):  # without a limit the norm is measured and nothing else
                self._note(Clipping(self._here(), float(limit), gradient_norm(weights)), weights, is_used_up=is_used_up)
            return clip(*given.args, **given.kwargs)

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
        """Begin anew: gradients are there."""
        self.last, self._used = None, set()
        self._is_scaled = self._scaler is not None and self._scaler.is_enabled() and self._scaler.get_scale() > 1
        self._scaler = None

    def after_step(self, given: Iterable[int]) -> None:
        """Note a step that went by the gradients of some weights, by their ids."""
        self._used |= set(given)
        for line, call in list(self._early.items()):
            if call.weights & self._used or call.n_times > 1:
                self._find(call.location, IdleReason.NO_GRADIENTS)
                del self._early[line]

    def _note(self, found: Clipping, weights: list[torch.Tensor], *, is_used_up: bool) -> None:
        given = {id(weight) for weight in weights if gradient_norm([weight])}
        if is_used_up:
            self._find(found.location, IdleReason.NO_WEIGHTS)
        elif not given:
            self._note_early(found.location, {id(weight) for weight in weights if weight.requires_grad})
        elif given <= self._used:
            self._find(found.location, IdleReason.USED)
        elif self._is_scaled and found.norm_before > found.limit:
            self._find(found.location, IdleReason.SCALED)
        else:
            self.last = found
            self._early = {line: early for line, early in self._early.items() if not early.weights & given}

    def _note_early(self, location: CodeLocation, weights: set[int]) -> None:
        before = self._early.get(str(location))
        if weights:
            self._early[str(location)] = _EarlyCall(location, weights, before.n_times + 1 if before else 1)

    def _find(self, location: CodeLocation, reason: IdleReason) -> None:
        self._idle.setdefault(str(location), IdleClipping(location, reason))
