"""Watch code that trains: check its backward passes, and follow its optimizers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as module_hooks
from torch.optim import optimizer as optimizer_hooks
from torch.utils.hooks import BackwardHook

from deconv_cli.errors import UsageError
from deconv_cli.gradients.checker import check_subject
from deconv_cli.gradients.findings import GradientReport, Verdict, first_line
from deconv_cli.gradients.subject import Subject, untouched_generators
from deconv_cli.gradients.torch_modes import HiddenCall, noting_changes, observing_hidden_calls, replaced
from deconv_cli.gradients.tracing.code_location import (
    CodeLocation,
    location_of_error,
    location_of_function,
    own_frames,
    running_line,
)
from deconv_cli.gradients.training.optimizer_watch import Failure, OptimizerWatch
from deconv_cli.gradients.training.recorded_pass import subject_of_pass
from deconv_cli.gradients.training.tape import Tape

_MAX_PASSES = 4
"""Lines whose backward pass is checked, such as those of two networks against each other."""

_LATER_SHARE = 0.25
"""Part of the budget for every pass after the first one."""

_MAX_BACKWARD = 20
"""Backward passes until two steps of each optimizer, or twice as many as until the first step."""

_MAX_WITHOUT_STEP = 256
_MAX_WAIT_S = 30.0
"""Backward passes and seconds until the first step of code that adds up gradients."""

_MAX_EXTRA_S = 5.0
"""Seconds to wait for a later pass that uses a weight which the first one does not use."""


@dataclass(frozen=True, eq=False)
class CheckedPass:
    """A checked backward pass: the line that calls it, and the report."""

    location: CodeLocation
    subject: Subject
    report: GradientReport


class EnoughSeenError(BaseException):
    """Ends a script once the watch is complete; no `except Exception` of the script catches it."""


class TrainingWatch:
    """Records code up to a backward pass, checks that pass, and watches the code after it.

    It also checks later passes that other lines call, usually for the loss of another network.

    With `is_ending` it ends the code by an `EnoughSeenError` once it is complete. The other arguments are those of
    `check_script`. `unchecked` holds sentences on passes that could not be checked. It prints as its `report`, which
    `watch_gradients` sets after the block.
    """

    def __init__(
        self,
        *,
        step: int,
        budget: float,
        on_progress: Callable[[str], None] = lambda _sentence: None,
        is_ending: bool = False,
    ) -> None:
        self.report: GradientReport | None = None
        self.passes: list[CheckedPass] = []
        self.unchecked: dict[str, None] = {}
        self.n_backward = 0
        self._lines: set[tuple[str | None, int | None]] = set()
        self._on_progress = on_progress
        self._budget = budget
        self._step = step
        self._is_ending = is_ending
        self._tape = Tape()
        self._stack = contextlib.ExitStack()
        self._called: dict[int, nn.Module] = {}
        self.optimizers = OptimizerWatch()
        self._checked_at = 0.0

    def note_failure(self, error: Exception) -> None:
        """Note the error that ends the script."""
        location = location_of_error(error) or CodeLocation()
        self.optimizers.failure = Failure(location, type(error).__name__, first_line(error))

    def __repr__(self) -> str:
        return "nothing was checked yet" if self.report is None else repr(self.report)

    def __enter__(self) -> TrainingWatch:
        self._replace(torch.autograd, "backward", self._watched_backward)
        self._note_calls(torch.optim.Optimizer, "__init__", self.optimizers.note_creation)
        self._note_calls(torch.optim.Optimizer, "zero_grad", self.optimizers.note_clearing)
        self._note_calls(nn.Module, "zero_grad", self.optimizers.note_clearing)
        self._replace(
            torch, "from_numpy", lambda make: lambda array: self._tape.record(make, "from_numpy", (array,), {})
        )
        self._replace(torch.amp.GradScaler, "step", self.optimizers.watched_scaler)
        self._replace(BackwardHook, "__init__", self._watched_hooks)
        for handle in (
            module_hooks.register_module_forward_pre_hook(self._enter_module),
            module_hooks.register_module_forward_hook(self._leave_module, always_call=True),
            optimizer_hooks.register_optimizer_step_pre_hook(self._before_step),
            optimizer_hooks.register_optimizer_step_post_hook(self._after_step),
        ):
            self._stack.callback(handle.remove)
        self._stack.enter_context(observing_hidden_calls(self._record_hidden_call))
        self._stack.enter_context(torch.compiler.set_stance("force_eager"))
        self._stack.enter_context(self._tape)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _replace(self, owner: Any, name: str, watched: Callable[[Any], Any]) -> None:  # noqa: ANN401
        self._stack.enter_context(replaced(owner, name, watched(getattr(owner, name))))

    def _note_calls(self, owner: type, name: str, note: Callable[[Any], None]) -> None:
        method = getattr(owner, name)

        def noted(own: Any, *args: Any, **keywords: Any) -> None:  # noqa: ANN401  torch's own signature
            note(own)
            method(own, *args, **keywords)

        self._stack.enter_context(replaced(owner, name, noted))

    def _enter_module(self, module: nn.Module, _arguments: object) -> None:
        if not self._tape.suspended and not self._tape.modules:
            self._called[id(module)] = module
        self._tape.modules.append(id(module))

    def _leave_module(self, _module: nn.Module, _arguments: object, _output: object) -> None:
        if self._tape.modules:
            self._tape.modules.pop()

    def _record_hidden_call(self, hidden: HiddenCall) -> Any:  # noqa: ANN401  whatever the call gives
        """Record a hand-written Function, or a constructor of a new leaf."""
        call, args = hidden.function, hidden.args
        later: Callable[..., Any] = torch.autograd.Variable if hidden.name == "Variable" else nn.Parameter
        if hidden.is_function:
            call = self._not_recording()(call)

            def later(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401  whatever the Function takes and gives
                return hidden.cls.apply(*arguments, **named)  # looked up again, since the check replaces it

        elif hidden.name == "nn.Parameter":
            data = args[0] if args else hidden.keywords.get("data")
            is_wrapped = isinstance(data, torch.Tensor) and data.grad_fn is not None
            if not is_wrapped or not (self._tape.modules or data.numel() == 1):  # type: ignore[union-attr]
                return hidden.run()
        if self._tape.suspended:
            return call(*args, **hidden.keywords)
        return self._tape.record(call, hidden.name, args, hidden.keywords, later)

    @contextlib.contextmanager
    def _not_recording(self) -> Iterator[None]:
        self._tape.suspended += 1
        try:
            yield
        finally:
            self._tape.suspended -= 1

    def _watched_hooks(self, make: Callable[..., None]) -> Callable[..., None]:
        """Note hooks of modules that change gradients, since a recorded pass runs no module."""

        def noting(module: nn.Module, hook: Callable[..., Any]) -> Callable[..., Any]:
            where = location_of_function(hook) or f"a {type(module).__name__}"
            sentence = f"the backward hook at {where}, which changes gradients: the verdicts hold without it"
            return noting_changes(hook, lambda: self.unchecked.setdefault(sentence), position=1)

        def watched(wrapper: BackwardHook, module: nn.Module, *several: Any) -> None:  # noqa: ANN401
            make(wrapper, module, *([noting(module, hook) for hook in hooks] for hooks in several))

        return watched

    def _watched_backward(self, backward: Callable[..., None]) -> Callable[..., None]:
        def watched(tensors: Any, grad_tensors: Any = None, *args: Any, **keywords: Any) -> None:  # noqa: ANN401
            if self._tape.suspended:
                backward(tensors, grad_tensors, *args, **keywords)
                return
            self._before_backward(tensors, grad_tensors)
            with self._not_recording():
                backward(tensors, grad_tensors, *args, **keywords)
                if self.passes:
                    self.optimizers.after_backward()

        return watched

    def _before_backward(self, tensors: Any, weights: Any) -> None:  # noqa: ANN401  torch's own signature
        self.n_backward += 1
        location = _calling_line()
        self.optimizers.last_backward = location
        line = location.file, location.line
        if self.n_backward == self._step or (self.passes and line not in self._lines):
            self._lines.add(line)
            if len(self.passes) < _MAX_PASSES:
                self._take_over(self._as_loss(tensors, weights), location)
        if self.passes:
            with self._not_recording():
                self.optimizers.before_backward(running_line())
            self._end_if_seen()
        self._tape.forget()

    def _take_over(self, loss: torch.Tensor, location: CodeLocation) -> None:
        """Check a pass, or note that a later one cannot be checked.

        Raises:
            UsageError: the first one cannot be checked.
        """
        with self._not_recording(), untouched_generators(), torch.enable_grad():
            try:
                subject = subject_of_pass(list(self._called.values()), self._tape, loss)
                budget = self._budget * (_LATER_SHARE if self.passes else 1.0)
                report = check_subject(subject, budget=budget, on_progress=self._on_progress)
            except UsageError as error:
                if not self.passes:
                    raise
                self.unchecked.setdefault(f"the backward pass at {location}: {str(error).rstrip('.')}")
                return
            self.optimizers.watch(list(subject.trainable.values()))
            self.passes.append(CheckedPass(location, subject, report))
            self._checked_at = time.monotonic()

    def _as_loss(self, tensors: Any, weights: Any) -> torch.Tensor:  # noqa: ANN401  torch's own signature
        """Add up the tensors that backward is called on, each with its weight."""
        several = list(tensors) if isinstance(tensors, list | tuple) else [tensors]
        given = list(weights) if isinstance(weights, list | tuple) else [weights] * len(several)
        if len(several) == 1 and several[0].numel() == 1 and given[0] is None:
            return several[0]
        with torch._C.DisableTorchFunction():  # recorded once, whether backward is a method here or not
            total: torch.Tensor = self._tape.record(_added_up, "sum", (several, given), {})
        return total

    def _before_step(self, optimizer: torch.optim.Optimizer, _args: object, _keywords: object) -> None:
        with self._not_recording():
            self.optimizers.before_step(optimizer)

    def _after_step(self, optimizer: torch.optim.Optimizer, _args: object, _keywords: object) -> None:
        with self._not_recording():
            self.optimizers.after_step(optimizer, running_line())
        self._end_if_seen()

    def _end_if_seen(self) -> None:
        if not self._is_ending or not self.passes:
            return
        n_awaited = _MAX_BACKWARD if self.optimizers.moved_by_hand else _MAX_WITHOUT_STEP
        if self.optimizers.steps:
            n_awaited = max(_MAX_BACKWARD, 2 * self.optimizers.steps[0].n_backward)
        is_late = self.optimizers.n_backward > n_awaited
        is_waiting = self._is_waiting_for_gradients() and time.monotonic() - self._checked_at < _MAX_EXTRA_S
        if is_late or (self.optimizers.has_seen_enough and not is_waiting):
            raise EnoughSeenError
        if not self.optimizers.steps and time.monotonic() - self._checked_at > _MAX_WAIT_S:
            self.optimizers.is_cut_short = True
            raise EnoughSeenError

    def _is_waiting_for_gradients(self) -> bool:
        """Return whether a later pass may still use a weight that the checked pass does not use."""
        held = frozenset().union(*self.optimizers.held.values())
        waited_for = held - self.optimizers.reached
        return any(
            found.is_fault
            and found.verdict in (Verdict.UNUSED, Verdict.NOT_LOSS)
            and id(checked.subject.parameters[found.name]) in waited_for
            for checked in self.passes
            for found in checked.report.parameters
        )


def _added_up(tensors: list[torch.Tensor], weights: list[torch.Tensor | None]) -> torch.Tensor:
    pairs = zip(tensors, weights, strict=True)
    return torch.stack([tensor.sum() if weight is None else (tensor * weight).sum() for tensor, weight in pairs]).sum()


def _calling_line() -> CodeLocation:
    """Find the line of the user's own code, even if a library runs the training."""
    frame = next(own_frames(), None)
    if frame is None:
        return running_line()
    return CodeLocation(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)
