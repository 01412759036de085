"""The whole examination: one watched forward pass, one watched backward pass, then finite differences."""

from __future__ import annotations

import contextlib
import re
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from deconv_cli.errors import DeconvError, UsageError
from deconv_cli.gradients import differences
from deconv_cli.gradients.backward import Backward, Size, run_backward
from deconv_cli.gradients.differences import Outcome, Probe, Slot, SlotResult
from deconv_cli.gradients.functions import WrongInput, check_functions
from deconv_cli.gradients.leaks import study_leaks
from deconv_cli.gradients.magnitudes import judge_magnitudes
from deconv_cli.gradients.noise import study_noise
from deconv_cli.gradients.places import Locator
from deconv_cli.gradients.recurrent import gate_norms, gates_of, time_series
from deconv_cli.gradients.remedies import (
    NOT_BORN,
    cause_of_backward,
    cause_of_cut,
    cause_of_hook,
    cause_of_non_finite,
    cause_of_shift,
    cause_of_zero,
)
from deconv_cli.gradients.second_order import check_second_order
from deconv_cli.gradients.sizes import norm_of
from deconv_cli.gradients.subject import Subject
from deconv_cli.gradients.tracing import Cut, Node, Trace, trace
from deconv_cli.gradients.unregistered import told_plain_containers
from deconv_cli.gradients.verdicts import (
    Cause,
    Comparison,
    Examination,
    GeneralFinding,
    ParameterFinding,
    Place,
    Verdict,
    is_one_factor,
    told_factor,
)

DEFAULT_BUDGET = 60.0
"""Seconds for finite differences."""

_SLOW_SHARE = 40
"""Finite differences are taken on a few samples only, if a forward pass takes more than this part of the budget."""

_FEW = 2
_INVARIANT = 1e-10
_MAX_CAUSES = 3
_SMALL_CHANGE = 1e-3
_MADE_BY_NAN = (Verdict.NOT_CHECKED, Verdict.NON_FINITE, Verdict.ZERO)
"""Verdicts that say nothing where the loss is not finite: a gradient may be zero there because of it."""

_DELIBERATE = ("detach", "detach_", "data", "Variable", "nn.Parameter", "torch.tensor", "torch.as_tensor")
_IN_PLACE = re.compile(
    r"\[torch\.\w+ \[([\d, ]*)\]\](?:, which is output \d+ of (\w+))?, is at version (\d+); expected version (\d+)"
)


def examine(
    subject: Subject,
    *,
    budget: float = DEFAULT_BUDGET,
    second_order: bool = False,
    on_progress: Callable[[str], None] = lambda _sentence: None,
) -> Examination:
    """Say for every parameter whether its gradient arrives, whether it is right, and what stands in the way.

    Args:
        subject: the model with its inputs and its loss; left as it was.
        budget: seconds for finite differences; what they do not reach is listed.
        second_order: also compare second derivatives.
        on_progress: told what is being done.

    Raises:
        UsageError: the model cannot be run on these inputs, or has no parameters.
    """
    if not subject.parameters:
        hints = "".join(f"; {sentence}" for sentence in told_plain_containers(subject.model)[:1])
        raise UsageError(f"the model has no parameters, so there is no gradient to check{hints}.")
    doctor = _Doctor(subject, budget, second_order, on_progress)
    with _known_errors(), subject.without_gradients():
        return doctor.examine()


@contextlib.contextmanager
def _known_errors() -> Any:  # noqa: ANN401
    try:
        yield
    except DeconvError:
        raise
    except torch.OutOfMemoryError as error:
        raise UsageError("the model does not fit into memory; give a smaller --input-shape.") from error


@dataclass(eq=False)
class _Doctor:
    subject: Subject
    budget: float
    second_order: bool
    on_progress: Callable[[str], None]
    general: list[GeneralFinding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)
    blamed: list[_Blame] = field(default_factory=list)

    def examine(self) -> Examination:
        started = time.monotonic()
        subject = self.subject
        self.findings = {
            name: ParameterFinding(name, tuple(parameter.shape), weight_norm=norm_of(parameter))
            for name, parameter in subject.parameters.items()
        }
        self.notes += told_plain_containers(subject.model)
        self.on_progress("watching forward and backward")
        watched = self._first_run()
        is_slow = self._is_slow()
        noise, note = study_noise(subject, watched)
        self.notes += [note] if note else []
        backward = self._arrivals(watched)
        self.general += [noise] if noise else []
        loss = float(watched.loss.detach())
        result = Examination(list(self.findings.values()), self.general, loss=loss if _is_finite(loss) else None)
        if is_slow and watched.calls and noise is None:
            self._check_functions_on_the_whole_batch()
        with self.subject.narrowed(_FEW) if is_slow else contextlib.nullcontext(False) as is_narrowed:
            if is_narrowed:
                self.notes.append(
                    f"the model is slow, so finite differences were taken on {_FEW} samples of the batch; hand-written "
                    "backwards were checked on all of it; a longer --budget takes all samples"
                )
            if noise is None and (backward is None or backward.error is None):
                self._compare(result)
            elif noise is not None:
                for finding in self._undecided():
                    finding.verdict = Verdict.NOISY
                    finding.causes = noise.causes
            if noise is None:
                self._study_leaks()
            else:
                self.not_checked.append("whether samples of the batch leak into one another: the output is noisy")
        result.notes, result.not_checked = self.notes, self.not_checked
        result.time_s = time.monotonic() - started
        return result

    def _is_slow(self) -> bool:
        """Time a pass that is warm: the first one of a process also loads and compiles."""
        if not self.budget:
            return False
        started = time.monotonic()
        self.subject.value()
        return time.monotonic() - started > self.budget / _SLOW_SHARE

    # ---------------------------------------------------------------- what arrives

    def _first_run(self) -> Trace:
        try:
            return trace(self.subject)
        except DeconvError:
            raise
        except Exception as error:
            place = _place_of_error(error)
            where = f" at {place}" if place else ""
            raise UsageError(
                f"the model cannot be run on these inputs{where} ({type(error).__name__}: {_first_line(error)}); check "
                "--input-shape, --data, --loss and --target-shape."
            ) from error

    def _trainable(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.subject.parameters.items() if p.requires_grad}

    def _undecided(self) -> list[ParameterFinding]:
        return [finding for finding in self.findings.values() if finding.verdict is Verdict.NOT_CHECKED]

    def _arrivals(self, watched: Trace) -> Backward | None:
        backward = None
        trainable = self._trainable()
        if watched.reached:
            backward = run_backward(watched.loss, trainable)
            if backward.error is not None:
                self._blame_error(backward.error, watched)
        forward_births = self._forward_births(watched)
        moves: dict[tuple[str, ...], bool] = {}
        for name, parameter in self.subject.parameters.items():
            finding = self.findings[name]
            gradient = backward.gradients[name] if backward and name in backward.gradients else None
            if finding.verdict is not Verdict.NOT_CHECKED:
                continue
            if not parameter.requires_grad:
                finding.verdict = Verdict.FROZEN
            elif gradient is None:
                self._explain_absence(finding, watched, backward, moves)
            else:
                self._explain_value(finding, parameter, gradient, watched, backward)
            is_affected = bool((watched.flow.sources | watched.reached) & watched.bit(name))
            if forward_births and is_affected and finding.verdict in _MADE_BY_NAN:
                finding.verdict, finding.causes = Verdict.NON_FINITE, forward_births
                finding.detail = f"the loss is {float(watched.loss.detach())}"
        return backward

    def _explain_absence(
        self, finding: ParameterFinding, watched: Trace, backward: Backward | None, moves: dict[tuple[str, ...], bool]
    ) -> None:
        bit = watched.bit(finding.name)
        if not watched.used & bit:
            finding.verdict = Verdict.UNUSED
            why = "no operation of forward reads this parameter."
            remedy = "use it in forward, or remove it, or pass find_unused_parameters=True to DistributedDataParallel"
            finding.causes = (Cause("never used", self._home_of(finding.name), why, remedy),)
            return
        if watched.reached & bit and backward is not None:
            births = backward.births(self.subject.parameters[finding.name], lambda size: size.is_zero)
            finding.verdict = Verdict.CUT
            finding.causes = _unique(
                cause_of_zero(_words(watched, node), _place(watched, node), missing=True) for node in births
            )
            return
        if watched.flow.sources & bit:
            finding.verdict = Verdict.CUT
            cuts = [watched.cuts[k] for k, blamed in sorted(watched.flow.cuts.items()) if blamed & bit]
            finding.causes = self._explain_cuts(cuts)
            return
        if bit in watched.shifted:
            self._explain_shift(finding, watched.shifted[bit])
            return
        escapes = [escape for escape in watched.escapes if escape.lost & bit]
        # A loss that nothing reaches is made of what left torch, even if it stands still on these data.
        if escapes and (not watched.reached or self._loss_moves_by(escapes, watched, moves)):
            finding.verdict = Verdict.CUT
            before = [watched.cuts[k] for escape in escapes for k in escape.before if watched.cuts[k].lost & bit]
            finding.causes = self._explain_cuts(before or escapes)
            return
        finding.verdict = Verdict.NOT_LOSS
        place = watched.last_use.get(bit) or Place()
        why = "forward uses this parameter here, but its value does not reach the loss."
        remedy = "return what this line computes and add it to the loss, or leave the line out"
        finding.causes = (Cause("used, but not in the loss", place, why, remedy),)

    def _explain_shift(self, finding: ParameterFinding, place: Place) -> None:
        """Tell a parameter that drops out of a derivative from one that moves it, smoothly or in steps."""
        is_smooth = self._loss_moves_with(finding.name, (_SMALL_CHANGE,))
        is_moved = is_smooth or self._loss_moves_with(finding.name)
        finding.verdict = Verdict.CUT if is_smooth else Verdict.ZERO if is_moved else Verdict.ZERO_BY_CONSTRUCTION
        finding.causes = (cause_of_shift(place, is_moved=is_moved, is_smooth=is_smooth),)

    def _home_of(self, name: str) -> Place:
        return Place(module=name.rpartition(".")[0])

    def _explain_cuts(self, cuts: list[Cut]) -> tuple[Cause, ...]:
        causes = []
        for cut in cuts:
            is_loss = cut.n_elements == 1 and not cut.place.module
            causes.append(cause_of_cut(cut, is_loss=is_loss))
        return _unique(causes)

    def _loss_moves_by(self, escapes: list[Cut], watched: Trace, moves: dict[tuple[str, ...], bool]) -> bool:
        """Tell whether the loss depends on values that left torch, by changing the parameters behind them.

        A thresholded loss may stand still for one parameter and move for another that leaves by the same way.
        """
        key = tuple(sorted({str(escape.place) for escape in escapes}))
        if key not in moves:
            behind = 0
            for escape in escapes:
                behind |= escape.lost
            names = [name for name in self._trainable() if watched.bit(name) & behind]
            moves[key] = any(self._loss_moves_with(name) for name in names)
        return moves[key]

    def _loss_moves_with(self, name: str, sizes: tuple[float, ...] = (0.1, 1.0, 10.0)) -> bool:
        """Tell whether the loss changes when a parameter is changed by parts or multiples of its size."""
        parameter = self.subject.parameters[name]
        kept = parameter.data.clone()
        generator = torch.Generator().manual_seed(1)
        try:
            before = self.subject.value()
            for size in sizes:
                noise = torch.randn(kept.shape, generator=generator).to(kept)
                parameter.data.copy_(kept + size * noise * kept.abs().mean().clamp_min(0.1))
                if self.subject.value() != before:
                    return True
        finally:
            parameter.data.copy_(kept)
        return False

    def _explain_value(
        self,
        finding: ParameterFinding,
        parameter: nn.Parameter,
        gradient: torch.Tensor,
        watched: Trace,
        backward: Any,  # noqa: ANN401
    ) -> None:
        size = Size.of([gradient.to_dense() if gradient.is_sparse else gradient])
        if not size.is_finite:
            finding.verdict = Verdict.NON_FINITE
            births = backward.births(parameter, lambda size: not size.is_finite)
            finding.causes = _unique(
                cause_of_non_finite(_words(watched, node), _place(watched, node), forward=False) for node in births
            )
            return
        finding.gradient_norm = norm_of(gradient)
        finding.blocks = gate_norms(self.subject.model, finding.name, gradient)
        shift = watched.shifted.get(watched.bit(finding.name))
        if size.is_zero and shift is not None:
            self._explain_shift(finding, shift)
        elif size.is_zero:
            finding.verdict = Verdict.ZERO
            births = backward.births(parameter, lambda size: size.is_zero)
            finding.causes = _unique(
                cause_of_zero(_words(watched, node), _place(watched, node), missing=False) for node in births
            )

    def _forward_births(self, watched: Trace) -> tuple[Cause, ...]:
        if bool(watched.loss.detach().isfinite()):
            return ()
        births = trace(self.subject, find_births=True).births
        return _unique(cause_of_non_finite(words, place, forward=True) for words, place in births) or (NOT_BORN,)

    def _blame_error(self, error: Exception, watched: Trace) -> None:
        told = _IN_PLACE.search(str(error))
        if told:
            finding = GeneralFinding(Verdict.IN_PLACE, _writers(watched, told), _first_line(error))
            verdict = Verdict.IN_PLACE
            self.general.append(finding)
        else:
            cause = cause_of_backward(error, _place_of_error(error), watched, _first_line(error))
            finding = GeneralFinding(Verdict.WRONG, (cause,), _first_line(error))
            verdict = Verdict.WRONG
        for name in self._trainable():
            if watched.reached & watched.bit(name):
                self.findings[name].verdict, self.findings[name].causes = verdict, finding.causes

    # ---------------------------------------------------------------- whether it is right

    def _compare(self, result: Examination) -> None:
        deadline = time.monotonic() + self.budget
        self.on_progress("comparing with finite differences")
        try:
            with self.subject.in_double():
                sharp = trace(self.subject)
                self._compare_in(result, sharp, 1.2e-7 if _is_narrow(sharp) else 2.3e-16, deadline)
        except DeconvError:
            raise
        except RuntimeError as error:
            if _is_out_of_memory(error):
                raise
            result.dtype = str(next(iter(self.subject.parameters.values())).dtype).removeprefix("torch.")
            self.notes.append(
                f"the model does not run in float64 ({_first_line(error)}); finite differences were taken in "
                f"{result.dtype}, which is less sharp"
            )
            self._compare_in(result, trace(self.subject), 1.2e-7, deadline)

    def _compare_in(self, result: Examination, watched: Trace, epsilon: float, deadline: float) -> None:
        if not watched.reached:
            return
        if _is_narrow(watched) and result.dtype == "float64" and watched.casts:
            self.notes.append(f"a cast to a narrow type at {watched.casts[0]} makes finite differences less sharp")
        trainable = self._trainable()
        backward = run_backward(watched.loss, trainable, keep_graph=True)
        if backward.error is not None:
            return
        self.on_progress("checking hand-written backwards")
        half = time.monotonic() + 0.4 * (deadline - time.monotonic())
        self._check_functions(watched, deadline=half)
        result.recurrent = self._through_time(watched, backward)
        probe = Probe(self._evaluator(), epsilon, deadline)
        slots = self._slots(backward, probe)
        self.on_progress("comparing with finite differences")
        compared = differences.compare_slots(
            probe,
            slots,
            seed=self.subject.seed,
            on_progress=lambda done, of: self.on_progress(f"finite differences: {done} of {of} parameters"),
        )
        for slot in slots:
            self._conclude(self.findings[slot.name], compared[slot.name], watched)
        self._blame_functions()
        if self.second_order:
            self.on_progress("comparing second derivatives")
            sound = [name for name in compared if self.findings[name].verdict is Verdict.OK]
            check_second_order(
                self.subject, {name: self.findings[name] for name in sound}, epsilon, self.budget / 2, self.not_checked
            )
        judge_magnitudes(self.findings, trainable, backward, watched)
        self._list_unchecked()
        result.n_evaluations = probe.n_evaluations

    def _check_functions_on_the_whole_batch(self) -> None:
        """Check hand-written backwards before the batch is narrowed: a fault may lie in how samples are summed."""
        self.on_progress("checking hand-written backwards")
        with contextlib.suppress(RuntimeError), self.subject.in_double():
            self._check_functions(trace(self.subject), deadline=time.monotonic() + 0.4 * self.budget)

    def _check_functions(self, watched: Trace, *, deadline: float) -> None:
        wrong, unchecked = check_functions(watched.calls, deadline=deadline)
        self.not_checked += [sentence for sentence in unchecked if sentence not in self.not_checked]
        known = {(blame.item.call.function, blame.item.name) for blame in self.blamed}
        self.blamed += [
            _Blame(item, {name for name in self._trainable() if _affects(item, watched.bit(name), watched)})
            for item in wrong
            if (item.call.function, item.name) not in known
        ]

    def _through_time(self, watched: Trace, backward: Backward) -> list[Any]:
        try:
            return time_series(self.subject, watched, backward)
        except RuntimeError as error:
            self.not_checked.append(f"gradients through time: {_first_line(error)}")
            return []

    def _evaluator(self) -> Callable[[], float]:
        """Evaluate without building graphs, unless the model needs them."""
        subject = self.subject

        def without_graph() -> float:
            with torch.no_grad():
                return subject.value()

        with contextlib.suppress(Exception):
            if without_graph() == subject.value():
                return without_graph
        return subject.value

    def _slots(self, backward: Backward, probe: Probe) -> list[Slot]:
        slots = []
        for name, gradient in backward.gradients.items():
            finding, parameter = self.findings[name], self.subject.parameters[name]
            if gradient is None or finding.verdict not in (Verdict.NOT_CHECKED, Verdict.ZERO):
                continue
            dense = gradient.to_dense() if gradient.is_sparse else gradient
            if dense.is_complex():
                finding.detail = "complex parameters are not compared with finite differences"
                continue
            if not bool(dense.isfinite().all()):
                continue
            if not parameter.data.is_contiguous():
                parameter.data = parameter.data.contiguous()
            norm = norm_of(dense)
            if self._is_constant_by_construction(parameter, dense, backward, probe):
                self._conclude_constant(finding, parameter, backward, norm)
            elif finding.verdict is Verdict.ZERO:
                if norm:
                    finding.detail = f"in float64 the gradient is not zero but of norm {norm:.2g}: it underflows"
            else:
                finding.gradient_norm = norm
                finding.blocks = gate_norms(self.subject.model, name, dense)
                slots.append(Slot(name, parameter, dense, _padding_rows(parameter, self.subject.model)))
        return slots

    def _is_constant_by_construction(
        self, parameter: nn.Parameter, gradient: torch.Tensor, backward: Backward, probe: Probe
    ) -> bool:
        """Tell a bias that cannot matter: gradients come up to it and cancel, and the loss does not move with it."""
        parents = backward.parents_of(parameter)
        arriving = max(
            (backward.arriving[node].largest or 0.0 for node, _ in parents if node in backward.arriving), default=0.0
        )
        largest = float(gradient.abs().max())
        if parameter.ndim > 1 or not arriving or largest > _INVARIANT * arriving:
            return False
        if any("Mul" in type(node).__name__ for node, _ in parents):
            return False
        slot = Slot("", parameter, gradient)
        generator = torch.Generator().manual_seed(0)
        moved = [probe.at([differences.random_move(slot, generator)], step) for step in (0.1, 1.0)]
        return all(abs(value - probe.base) <= 1e-9 * abs(probe.base) + 4 * probe.noise for value in moved)

    def _conclude_constant(
        self, finding: ParameterFinding, parameter: nn.Parameter, backward: Backward, norm: float
    ) -> None:
        finding.verdict, finding.gradient_norm = Verdict.ZERO_BY_CONSTRUCTION, norm
        waiting = [node for node, _ in backward.parents_of(parameter)]
        name = "what follows"
        for node in waiting:
            kind = type(node).__name__
            if any(word in kind for word in ("BatchNorm", "LayerNorm", "GroupNorm", "Softmax", "ScaledDot")):
                name = kind.removesuffix("0").removesuffix("Backward").removeprefix("Native")
                break
            if len(waiting) < 200:
                waiting += [consumer for consumer, _ in backward.consumers.get(node, []) if consumer not in waiting]
        why = f"{name} takes away whatever this parameter adds, so the loss does not depend on it."
        place = self._home_of(finding.name)
        finding.causes = (Cause(name, place, why, "leave it out (bias=False); it costs memory and does nothing"),)

    def _conclude(self, finding: ParameterFinding, compared: SlotResult, watched: Trace) -> None:
        finding.comparison = compared.comparison
        if compared.outcome is Outcome.AGREES:
            finding.verdict = Verdict.OK
        elif compared.outcome is Outcome.KINK:
            finding.verdict = Verdict.KINK
            finding.detail = "the slopes on the two sides differ, and autograd gives one between them"
        elif compared.outcome is Outcome.DIFFERS:
            self._explain_difference(finding, watched)

    def _explain_difference(self, finding: ParameterFinding, watched: Trace) -> None:
        finding.verdict = Verdict.WRONG
        bit = watched.bit(finding.name)
        finding.detail = _told_difference(finding, finding.comparison, self.subject.model)
        if any(finding.name in blame.parameters for blame in self.blamed):
            return
        hooked = _hooks_on(self.subject.parameters[finding.name], self.subject.model)
        on_the_way = [cause_of_hook(hook.place) for hook in watched.hooks if hook.changes and hook.reach & bit]
        if hooked or on_the_way:
            finding.causes = (hooked,) if hooked else _unique(on_the_way)
            return
        cuts = [cut for index, cut in enumerate(watched.cuts) if index in watched.flow.cuts and cut.lost & bit]
        deliberate = [cut for cut in cuts if cut.name in _DELIBERATE or cut.by_mode] or cuts
        escapes = [escape for escape in watched.escapes if escape.lost & bit and escape.name != "__bool__"]
        if deliberate or escapes:
            finding.verdict = Verdict.CUT
            finding.causes = self._explain_cuts(deliberate or escapes)
            finding.detail = "cut on one of several ways, so the gradient is only a part: " + finding.detail

    def _blame_functions(self) -> None:
        """Name the hand-written Functions behind every parameter that their wrong gradients reach."""
        # Those with a parameter behind them come first: a Function that is blamed there is not blamed once more.
        for blame in sorted(self.blamed, key=lambda blame: not blame.parameters):
            cause = _cause_of_function(blame.item)
            for name in blame.parameters:
                finding = self.findings[name]
                if finding.verdict in (Verdict.OK, Verdict.NOT_CHECKED, Verdict.KINK, Verdict.WRONG):
                    finding.verdict = Verdict.WRONG
                    finding.causes = _unique((*finding.causes, cause))
                    if not finding.detail:
                        finding.detail = "by way of the hand-written backward, which was checked by itself"
            is_known = any(c.place == cause.place for f in self.findings.values() for c in f.causes)
            is_known = is_known or any(c.place == cause.place for f in self.general for c in f.causes)
            if not blame.parameters and not is_known:
                self.general.append(GeneralFinding(Verdict.WRONG, (cause,), "no parameter is behind this input"))

    def _list_unchecked(self) -> None:
        for finding in self._undecided():
            comparison = finding.comparison
            if comparison is None and finding.detail:
                reason = finding.detail
            elif comparison is None:
                reason = f"the budget of {self.budget:g} s was spent"
            elif abs(comparison.autograd - comparison.numeric) > 20 * comparison.error_bar:
                reason = (
                    f"autograd ({comparison.autograd:.6g}) and finite differences ({comparison.numeric:.6g} ± "
                    f"{comparison.error_bar:.1g}) differ along a direction, but no single element was found to be wrong"
                )
            else:
                reason = (
                    f"finite differences are not sharp enough here (autograd {comparison.autograd:.4g}, numeric "
                    f"{comparison.numeric:.4g} ± {comparison.error_bar:.1g})"
                )
            finding.detail = reason
            self.not_checked.append(f"{finding.name}: {reason}")

    def _study_leaks(self) -> None:
        self.on_progress("looking for leaks between samples")
        try:
            with self.subject.in_double():
                study = study_leaks(self.subject)
        except Exception as error:  # noqa: BLE001  evaluation mode may take another way, which may fail on its own
            self.not_checked.append(f"whether samples of the batch leak into one another: {_first_line(error)}")
            return
        self.general += [study.finding] if study.finding else []
        self.not_checked += [study.not_checked] if study.not_checked else []


@dataclass(frozen=True, eq=False)
class _Blame:
    """A wrong gradient of a hand-written Function, and the parameters that it reaches."""

    item: WrongInput
    parameters: set[str]


def _affects(item: WrongInput, bit: int, watched: Trace) -> bool:
    node = item.call.node
    children = node.next_functions if node is not None else ()
    tensors = [child for child, _ in children]
    child = tensors[item.index] if item.index < len(tensors) else None
    return child is not None and bool(watched.mask_of(child) & bit)


def _cause_of_function(item: WrongInput) -> Cause:
    name = item.call.function.__name__
    where = item.definition if item.definition.file else item.call.place
    what = f"the gradient for '{item.name}'"
    if item.missing:
        why = f"{name}.backward returns None for '{item.name}', which has a gradient."
        return Cause(f"{name}.backward", where, why, f"return the gradient for '{item.name}'")
    if item.is_step:
        why = f"{name}.backward gives a surrogate: the forward is a step, and its true derivative is zero."
        return Cause(f"{name}.backward", where, why, "if it is meant, accept it with --expect WRONG:NAME")
    n_rows = item.rows[1] - item.rows[0] + 1
    at = f"{item.n_wrong} of {item.n_elements} elements of {what} are wrong"
    if item.n_wrong < item.n_elements and item.element and n_rows < item.n_elements:
        at += f", in rows {item.rows[0]} to {item.rows[1]}{_told_block(item)}"
    why = f"{at}; at {list(item.element)} backward gives {item.backward:.6g}, {item.oracle} gives {item.expected:.6g}."
    has_factor = item.ratio is not None and abs(item.ratio - 1) > 1e-6
    if item.ratio is not None and has_factor and item.n_wrong == item.n_elements and _is_uniform(item):
        remedy = f"divide {what} by {item.ratio:.4g}"
    elif item.ratio is not None and has_factor:
        off = told_factor(item.ratio, item.ratio_range)
        remedy = f"compare the formula of {what} with forward there: it is off {off}"
    else:
        remedy = f"compare the formula of {what} with forward, term by term"
    return Cause(f"{name}.backward", where, why, remedy)


def _is_uniform(item: WrongInput) -> bool:
    return item.ratio is not None and item.ratio != 0 and is_one_factor(item.ratio, item.ratio_range)


def _told_block(item: WrongInput) -> str:
    """Name the gate, where the wrong rows lie within one of the three or four blocks that gates are stacked in."""
    for n_blocks in (4, 3):
        size = item.n_rows // n_blocks
        if size > 1 and item.n_rows % n_blocks == 0 and item.rows[0] // size == item.rows[1] // size:
            return f" (the whole fault lies in block {item.rows[0] // size + 1} of {n_blocks})"
    return ""


def _told_difference(finding: ParameterFinding, comparison: Comparison | None, model: nn.Module) -> str:
    if comparison is None:
        return ""
    gates = gates_of(model, finding.name)
    element = list(comparison.element or ())
    gate = ""
    if element and len(gates) > 1:
        gate = f" (gate {gates[element[0] * len(gates) // finding.shape[0]]})"
    told = (
        f"at {element}{gate} autograd gives {comparison.autograd:.6g}, finite differences "
        f"{comparison.numeric:.6g} ± {comparison.error_bar:.1g}"
    )
    if comparison.n_tried > 1:
        told += f"; {comparison.n_wrong} of {comparison.n_tried} elements tried are wrong"
    if comparison.ratio is not None and comparison.n_wrong > 1:
        told += f", {told_factor(comparison.ratio, comparison.ratio_range)}"
    return told


def _padding_rows(parameter: nn.Parameter, model: nn.Module) -> tuple[int, ...]:
    """List the rows of an embedding that stand for padding and get no gradient, whatever else they are used for."""
    return tuple(
        module.padding_idx
        for module in model.modules()
        if isinstance(module, nn.Embedding) and module.weight is parameter and module.padding_idx is not None
    )


def _hooks_on(parameter: nn.Parameter, model: nn.Module) -> Cause | None:
    hooks = list((parameter._backward_hooks or {}).values())
    for module in model.modules():
        if any(own is parameter for own in module._parameters.values()):
            hooks += list(module._backward_hooks.values())
    for hook in hooks:
        code = getattr(hook, "__code__", None)
        return cause_of_hook(Place(code.co_filename, code.co_firstlineno, code.co_name) if code else Place())
    return None


def _writers(watched: Trace, told: re.Match[str]) -> tuple[Cause, ...]:
    shape = tuple(int(size) for size in told[1].split(",") if size.strip())
    node, actual, expected = told[2], int(told[3]), int(told[4])
    written = [w for w in watched.writes if w.shape == shape and expected < w.version <= actual]
    exact = [w for w in written if node is None or w.node == node]
    causes = []
    for write in exact or written or watched.writes:
        why = f"{write.spoken} overwrites a tensor of shape {shape} that backward still needs."
        causes.append(Cause(write.spoken, write.place, why, _out_of_place(write.place.code)))
    return _unique(causes)


def _out_of_place(source: str) -> str:
    augmented = re.fullmatch(r"([\w.\[\]]+)\s*([-+*/@])=\s*(.+)", source)
    if augmented and "[" not in augmented[1]:
        return f"{augmented[1]} = {augmented[1]} {augmented[2]} {augmented[3]}"
    method = re.fullmatch(r"(?:([\w.]+)\s*=\s*)?([\w.]+)\.(\w+)_\((.*)\)", source)
    if method:
        return f"{method[1] or method[2]} = {method[2]}.{method[3]}({method[4]})"
    return "write to a copy: x = x.clone() before this line, or use torch.where"


def _words(watched: Trace, node: Node) -> str:
    return watched.spoken.get(node) or type(node).__name__.removesuffix("0").removesuffix("Backward")


def _place(watched: Trace, node: Node) -> Place:
    return watched.places.get(node) or Place()


def _unique(causes: Iterable[Cause]) -> tuple[Cause, ...]:
    """Keep the first cause of each line, a few at most."""
    kept: dict[str, Cause] = {}
    for cause in causes:
        kept.setdefault(f"{cause.place}" if cause.place.file else f"{cause.place} {cause.operation}", cause)
    return tuple(list(kept.values())[:_MAX_CAUSES])


def _is_narrow(watched: Trace) -> bool:
    return bool(watched.casts) or watched.loss.dtype in (torch.float32, torch.float16, torch.bfloat16)


def _place_of_error(error: Exception) -> Place | None:
    """Find the innermost line of the user's own code in a traceback."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not Locator.is_foreign(frame.filename):
            return Place(frame.filename, frame.lineno, frame.name)
    return None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".")[:240] if lines else type(error).__name__


def _is_finite(value: float) -> bool:
    return value - value == 0


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
