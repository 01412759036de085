"""Check training code: a script or notebook as it runs, or the body of a `with` block."""

from __future__ import annotations

import json
import linecache
import runpy
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch

from deconv_cli.errors import UsageError
from deconv_cli.gradients.checker import DEFAULT_BUDGET
from deconv_cli.gradients.findings import WITHOUT_GRADIENT, Cause, GradientReport, ParameterFinding, Verdict, first_line
from deconv_cli.gradients.rules import TRAINING_RULES, find_all
from deconv_cli.gradients.tracing.code_location import CodeLocation, location_of_error
from deconv_cli.gradients.training.optimizer_watch import OptimizerWatch, TrainingEvidence
from deconv_cli.gradients.training.training_watch import CheckedPass, EnoughSeenError, TrainingWatch
from deconv_cli.vocabulary import counted


def check_script(
    path: Path,
    arguments: Sequence[str] = (),
    *,
    step: int = 1,
    budget: float = DEFAULT_BUDGET,
    on_progress: Callable[[str], None] = lambda _sentence: None,
) -> GradientReport:
    """Run a training script, and check its backward passes and its optimizers.

    Args:
        path: of the script or notebook, which runs as `__main__` in its own folder's import path.
        arguments: follow its name in `sys.argv`.
        step: the number of the first backward pass to check, counted from 1.
        budget: seconds for finite differences of the first pass.
        on_progress: called with a sentence for each part of the work.

    Raises:
        UsageError: the script fails before that pass, or never reaches it.
    """
    watch = TrainingWatch(step=step, budget=budget, on_progress=on_progress, is_ending=True)
    kept_arguments, kept_path, notes = sys.argv, list(sys.path), list[str]()
    on_progress("running the script")
    try:
        sys.argv, sys.path[:] = [str(path), *arguments], [str(path.resolve().parent), *sys.path]
        with torch.enable_grad(), watch:  # a script may switch gradients off for good
            run_notebook(path) if path.suffix == ".ipynb" else runpy.run_path(str(path), run_name="__main__")
    except EnoughSeenError:
        notes.append(_ENDED.format(counted(watch.n_backward, "backward pass", "backward passes")))
    except SystemExit as end:
        if end.code and not watch.passes:
            raise UsageError(
                f"'{path}' ended itself before the pass to check, by sys.exit: “{end.code}”; see what it printed, and "
                "give the arguments that it needs."
            ) from end
    except Exception as error:
        if not watch.passes:
            raise _failing(path, error) from error
        watch.note_failure(error)
    finally:
        sys.argv, sys.path[:] = kept_arguments, kept_path
    report = report_training(watch)
    return replace(report, notes=(*report.notes, *notes))


_ENDED = (
    "the script was ended after {}, as soon as the verdict was certain, and the rest of it did not run; for faults "
    "that begin later, as after a warm-up, choose a later pass with step=N"
)


def _failing(path: Path, error: Exception) -> Exception:
    if isinstance(error, UsageError):
        return error
    location = location_of_error(error)
    if isinstance(error, SyntaxError):  # the traceback ends where the file is read
        location = CodeLocation(error.filename, error.lineno)
    where = f" at {location}" if location else ""
    reads_none = location is not None and ".grad" in location.code and "NoneType" in str(error)
    hint = "; .grad is None until backward() has run" if reads_none else ""
    return UsageError(f"'{path}' fails before training{where} ({type(error).__name__}: “{first_line(error)}”){hint}.")


_MAGIC = ("%", "!", "?")
"""Lines of a notebook that are no Python, which are skipped."""


def run_notebook(path: Path) -> None:
    """Run the code of a notebook as `__main__`.

    Raises:
        UsageError: the file is no notebook.
    """
    cells = _code_cells(path)
    module, kept = ModuleType("__main__"), sys.modules["__main__"]
    module.__dict__["__file__"] = str(path)
    sys.modules["__main__"] = module
    try:
        for number, source in enumerate(cells, start=1):
            name = f"{path} cell {number}"
            # Without a modification time, linecache keeps the lines of a file that does not exist.
            linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
            exec(compile(source, name, "exec"), module.__dict__)  # noqa: S102  the user asks for it
    finally:
        sys.modules["__main__"] = kept


def _code_cells(path: Path) -> list[str]:
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"'{path}' should be a notebook, but holds no cells.") from error
    return ["\n".join("" if line.startswith(_MAGIC) else line for line in source.split("\n")) for source in sources]


@contextmanager
def watch_gradients(*, step: int = 1, budget: float = DEFAULT_BUDGET) -> Iterator[TrainingWatch]:
    """Check the gradients and the optimizers of the training inside of the block.

    The first call of `loss.backward()` on each line is checked; the code then continues as if nothing had happened::

        with deconv_cli.watch_gradients() as watched:
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
        print(watched.report)

    Args:
        step: the number of the first backward pass to check, counted from 1.
        budget: seconds for finite differences of the first pass.

    Raises:
        UsageError: the code never reaches that pass, or the pass cannot be run again.
    """
    watch = TrainingWatch(step=step, budget=budget)
    with watch:
        yield watch
    watch.report = report_training(watch)


_ON_PURPOSE = ("no_grad", ".detach()")
_COMPARED = (Verdict.VANISHING, Verdict.EXPLODING)


def report_training(watch: TrainingWatch) -> GradientReport:
    """Join the findings on the passes and on the optimizers.

    Raises:
        UsageError: the code never reached the pass to check.
    """
    events, n_backward = watch.optimizers, watch.n_backward
    if not n_backward:
        raise UsageError(
            "the code never calls backward(), so there is no gradient to check; call loss.backward() in the training "
            "loop."
        )
    if not watch.passes:
        calls = f"{'was' if n_backward == 1 else 'were'} only {counted(n_backward, 'call')}"
        raise UsageError(f"there {calls} of backward(), so none was checked; choose an earlier one by its number.")
    report, weights = _joined(watch.passes, events)
    evidence = TrainingEvidence(report, weights, events)
    not_checked = [*report.not_checked, *watch.unchecked]
    if events.is_cut_short:
        not_checked.append(f"the optimizers, which made no step in {counted(events.n_backward, 'call')} of backward()")
    return replace(
        report,
        parameters=tuple(_of_another_loss(finding, evidence) for finding in report.parameters),
        general=(*report.general, *find_all(TRAINING_RULES, evidence)),
        not_checked=tuple(not_checked),
    )


def _joined(passes: Sequence[CheckedPass], events: OptimizerWatch) -> tuple[GradientReport, dict[str, torch.Tensor]]:
    """Join the reports of several passes: each weight keeps the finding of the loss that trains it.

    Returns:
        One report, and the trainable weights under their names in the last pass that knows them.
    """
    if len(passes) == 1:
        return passes[0].report, dict(passes[0].subject.trainable)
    names = {id(weight): name for checked in passes for name, weight in checked.subject.parameters.items()}
    found: dict[int, list[tuple[ParameterFinding, CodeLocation]]] = {}
    for checked in passes:
        for finding in checked.report.parameters:
            key = id(checked.subject.parameters[finding.name])
            found.setdefault(key, []).append((replace(finding, name=names[key]), checked.location))
    reports = [checked.report for checked in passes]
    general = {(f.verdict, *(str(c.location) for c in f.causes)): f for report in reports for f in report.general}
    lines = ", ".join(str(checked.location) for checked in passes)
    joined = replace(
        reports[0],
        parameters=tuple(_of_own_loss(several, key, events) for key, several in found.items()),
        general=tuple(general.values()),
        notes=(f"the losses of {len(passes)} lines were checked: {lines}", *_all(report.notes for report in reports)),
        not_checked=_all(report.not_checked for report in reports),
        n_evaluations=sum(report.n_evaluations for report in reports),
        time_s=sum(report.time_s for report in reports),
    )
    trainable = [weight for checked in passes for weight in checked.subject.trainable.values()]
    return joined, {names[id(weight)]: weight for weight in trainable}


def _of_own_loss(
    several: list[tuple[ParameterFinding, CodeLocation]], key: int, events: OptimizerWatch
) -> ParameterFinding:
    """Choose the finding of the loss that trains a weight; of equal ones that of its own loss, before its step.

    Of a weight without a gradient at every step, the finding of its own loss counts.
    """
    own, is_starved = events.backward_before.get(key), events.is_starved(key)
    return min(several, key=lambda found: (is_starved and found[1] != own, _rank(found[0]), found[1] != own))[0]


def _rank(finding: ParameterFinding) -> int:
    """Rank the findings of several losses for one weight: faults first, then the loss that trains it."""
    if finding.is_fault:
        if finding.verdict in (*WITHOUT_GRADIENT, Verdict.ZERO):
            return 5
        return 2 if finding.verdict in _COMPARED else 0
    if finding.is_undecided:
        return 3
    return 1 if finding.gradient_norm else 4


def _all(sentences: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(sentence for several in sentences for sentence in several))


def _of_another_loss(finding: ParameterFinding, evidence: TrainingEvidence) -> ParameterFinding:
    """Excuse a weight that gets its gradient from another pass, or that no stepping optimizer holds."""
    if not finding.is_fault or finding.verdict not in (*WITHOUT_GRADIENT, Verdict.ZERO) or finding.gradient_norm:
        return finding  # a partial gradient does not come from another pass
    key, events = id(evidence.weights[finding.name]), evidence.events
    if events.is_starved(key):
        return finding
    if key in events.reached:
        why = "this weight gets its gradient in another backward pass."
        cause = Cause("another loss", CodeLocation(), why, "nothing; to be sure, check the backward pass of that loss")
        return replace(finding, verdict=Verdict.NOT_REACHED, causes=(cause,))
    stepping = {step.optimizer for step in events.first_steps}
    holding = {optimizer for optimizer, held in events.held.items() if key in held}
    if finding.verdict == Verdict.ZERO or not stepping:
        return finding
    if holding - stepping:
        reason = "an optimizer holds this weight that has made no step yet, so another loss may train it."
        return _excused(
            finding, reason, "nothing if another loss trains it; to be sure, check the backward pass of that loss"
        )
    is_meant = finding.verdict != Verdict.DETACHED or (
        finding.causes and all(cause.operation in _ON_PURPOSE for cause in finding.causes)
    )
    if holding or not is_meant:
        return finding
    reason = "no optimizer holds this weight, so it is not trained, as in a target network."
    return _excused(finding, reason, "nothing, if it is intended; requires_grad_(False) makes it explicit")


def _excused(finding: ParameterFinding, reason: str, suggestion: str) -> ParameterFinding:
    """Keep the verdict and its causes, and add why it is no fault."""
    causes = (
        replace(cause, why=f"{cause.why.rstrip('.')}; {reason}", suggestion=suggestion) for cause in finding.causes
    )
    return replace(finding, is_excused=True, causes=tuple(causes))
