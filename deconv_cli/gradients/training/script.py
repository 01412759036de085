"""Runs a script, or a notebook cell by cell, as `__main__` until enough of its training was seen."""

from __future__ import annotations

import json
import linecache
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import torch

from deconv_cli.errors import UsageError
from deconv_cli.gradients.checker import DEFAULT_BUDGET, check_subject
from deconv_cli.gradients.findings import first_line
from deconv_cli.gradients.gradient_report import GradientReport
from deconv_cli.gradients.tracing.code_location import location_of_error
from deconv_cli.gradients.training.training_report import report_training
from deconv_cli.gradients.training.training_watch import EnoughSeenError, TrainingWatch


def check_script(
    path: Path,
    arguments: Sequence[str] = (),
    *,
    step: int = 1,
    budget: float = DEFAULT_BUDGET,
    on_progress: Callable[[str], None] = lambda _sentence: None,
) -> GradientReport:
    """Run a training script, check its backward passes from one of a number on, and look at what its optimizers do.

    Args:
        path: of the script, or of a notebook, which is run as `__main__` in its own folder's import path.
        arguments: what it finds in `sys.argv` after its name.
        step: which backward pass is the first to be checked, counted from 1.
        budget: seconds for finite differences of the first pass.
        on_progress: called with a sentence on what is being done.

    Raises:
        UsageError: the script fails before that pass, or never comes to it.
    """
    watch = TrainingWatch(
        lambda subject, seconds: check_subject(subject, budget=seconds, on_progress=on_progress),
        step=step,
        budget=budget,
        is_ending=True,
    )
    kept_arguments, kept_path = sys.argv, list(sys.path)
    on_progress("running the script")
    try:
        sys.argv, sys.path[:] = [str(path), *arguments], [str(path.resolve().parent), *sys.path]
        with torch.enable_grad(), watch:  # a script may switch gradients off for good
            run_notebook(path) if path.suffix == ".ipynb" else runpy.run_path(str(path), run_name="__main__")
    except (EnoughSeenError, SystemExit):
        pass
    except Exception as error:
        if not watch.passes:
            raise _failing(path, error) from error
        watch.note_failure(error)
    finally:
        sys.argv, sys.path[:] = kept_arguments, kept_path
    return report_training(watch)


def _failing(path: Path, error: Exception) -> Exception:
    if isinstance(error, UsageError):
        return error
    location = location_of_error(error)
    where = f" at {location}" if location else ""
    reads_none = location is not None and ".grad" in location.code and "NoneType" in str(error)
    hint = "; .grad is None until backward() has run" if reads_none else ""
    return UsageError(f"'{path}' fails before training{where} ({type(error).__name__}: {first_line(error)}){hint}.")


_MAGIC = ("%", "!", "?")
"""Lines for the notebook itself and not for Python, which are left out."""


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
            # Without a time of change, the lines are kept though there is no such file.
            linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
            exec(compile(source, name, "exec"), module.__dict__)  # noqa: S102  the user asks for it to be run
    finally:
        sys.modules["__main__"] = kept


def _code_cells(path: Path) -> list[str]:
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"'{path}' should be a notebook, but holds no cells of one.") from error
    return ["\n".join("" if line.startswith(_MAGIC) else line for line in source.split("\n")) for source in sources]
