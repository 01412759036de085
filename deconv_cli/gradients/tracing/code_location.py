"""Operations, and the lines of source code of operations, functions and errors."""

from __future__ import annotations

import contextlib
import inspect
import linecache
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from torch import nn

# With a separator at the end, since torchvision is another library beside torch.
_TORCH = f"{Path(torch.__file__).parent}{os.sep}"
_STANDARD_LIBRARY = f"{sysconfig.get_path('stdlib')}{os.sep}"
_INSTALLED = ("site-packages", "dist-packages")
_PACKAGE = f"{Path(__file__).parents[2]}{os.sep}"


@dataclass(frozen=True)
class CodeLocation:
    """A line of code where it is known, and the module of the model that was running.

    Attributes:
        file: path of the source file, None where it is unknown.
        function: name of the function around the line.
        module: dotted name of the innermost module, empty for the model itself or outside of it.
    """

    file: str | None = None
    line: int | None = None
    function: str | None = None
    module: str = ""

    @property
    def source(self) -> str:
        """The source line, stripped; empty where it is unknown."""
        return linecache.getline(self.file, self.line).strip() if self.file and self.line else ""

    @property
    def code(self) -> str:
        """The source line without its comment."""
        return re.split(r"\s+#\s", self.source)[0]

    def __str__(self) -> str:
        """Write `file.py:12`, or the name of the module."""
        if self.file and self.line:
            return f"{self.file}:{self.line}"
        return f"module {self.module}" if self.module else "the model"


@dataclass(frozen=True)
class Operation:
    """An operation, as code writes it, and its line."""

    label: str
    location: CodeLocation

    @property
    def bare_name(self) -> str:
        """The name without dots, underscores and brackets."""
        return self.label.removesuffix("(...)").strip("_.").removesuffix("()")


def is_user_code(file: str) -> bool:
    """Return whether a file belongs neither to torch nor to Python nor to this package."""
    if file.startswith("<") or file.startswith((_TORCH, _PACKAGE)):
        return False
    return not file.startswith(_STANDARD_LIBRARY) or any(folder in file for folder in _INSTALLED)


def is_installed(file: str) -> bool:
    """Return whether a file belongs to an installed library, torch among them."""
    return file.startswith(_TORCH) or any(folder in file for folder in _INSTALLED)


def library_class_around(model: nn.Module, parameter: nn.Parameter) -> str:
    """Name the class of an installed library, torch aside, that keeps a parameter; empty without one."""
    around = {id(child): module for module in model.modules() for child in module._modules.values()}
    owner = next((m for m in model.modules() if any(own is parameter for own in m._parameters.values())), None)
    while owner is not None and type(owner).__module__.startswith("torch."):
        owner = around.get(id(owner))
    file = "" if owner is None else getattr(sys.modules.get(type(owner).__module__), "__file__", None) or ""
    return type(owner).__name__ if is_installed(file) and not file.startswith(_PACKAGE) else ""


def location_of_function(function: object) -> CodeLocation | None:
    """Find the first line of a Python function; None for any other callable."""
    code = getattr(function, "__code__", None)
    return CodeLocation(code.co_filename, code.co_firstlineno, code.co_name) if code else None


def location_of_error(error: Exception) -> CodeLocation | None:
    """Find the innermost line of the user's own code in the traceback of an error."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if is_user_code(frame.filename):
            return CodeLocation(frame.filename, frame.lineno, frame.name)
    return None


def location_of_backward(function: type[torch.autograd.Function]) -> CodeLocation:
    """Find the first line of the backward of a hand-written Function."""
    name = f"{function.__name__}.backward"
    with contextlib.suppress(OSError, TypeError):
        code = inspect.unwrap(function.backward).__code__
        lines, first = inspect.getsourcelines(code)
        # Decorators precede the line of `def`.
        above = next((n for n, line in enumerate(lines) if line.lstrip().startswith("def ")), 0)
        return CodeLocation(code.co_filename, first + above, name)
    return CodeLocation(function=name)


_GRADIENT_MODES = ("torch/autograd/grad_mode.py", "torch/utils/_contextlib.py", "contextlib.py", "torch/_tensor.py")
"""Files that only forward a call of the user's, such as `with torch.no_grad()`."""

_SUBJECT = str(Path(__file__).parents[1] / "subject.py")
_CALL_OF_MODULE = nn.Module._call_impl.__code__


class Locator:
    """Finds the running line and the running module.

    Args:
        model: the model that runs. A recorded pass has a `running_location`, which counts for operations that no line
            of the user's code calls.
    """

    def __init__(self, model: nn.Module) -> None:
        self._names = {id(module): name for name, module in model.named_modules()}
        self._model = model

    def runs_library(self) -> bool:
        """Return whether an installed library, and not the user, makes the running call."""
        if hasattr(self._model, "running_in_library"):
            return bool(self._model.running_in_library)
        files = (frame.f_code.co_filename for frame in _frames_in_the_model())
        outer = (file for file in files if not file.startswith(_PACKAGE) and not file.endswith(_GRADIENT_MODES))
        return is_installed(next(outer, ""))

    def _running_module(self) -> str:
        """Name the innermost running module, which is the `self` of torch's call of a module."""
        calls = (frame for frame in _frames_in_the_model() if frame.f_code is _CALL_OF_MODULE)
        keys = (id(frame.f_locals["self"]) for frame in calls)
        return next((self._names[key] for key in keys if key in self._names), "")

    def here(self) -> CodeLocation:
        """Find the innermost running line of the user's code, or of a module of an installed library."""
        inside = None
        for frame in _frames_in_the_model():
            code, file = frame.f_code, frame.f_code.co_filename
            if inside is not None and code is _CALL_OF_MODULE:
                break
            if is_user_code(file) and (inside is None or not is_installed(file)):
                found = CodeLocation(file, frame.f_lineno, code.co_name, self._running_module())
                if not is_installed(file):
                    return found
                inside = found
        recorded: CodeLocation | None = getattr(self._model, "running_location", None)
        return inside or recorded or CodeLocation(module=self._running_module())


def _frames_in_the_model() -> Iterator[FrameType]:
    """List the running frames up to the call of the model or the loss, the innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_filename == _SUBJECT and code.co_name in ("run", "output"):
            return  # here the package calls the model or the loss
        yield frame
        frame = frame.f_back


def own_frames() -> Iterator[FrameType]:
    """List the running frames of the user's own code, the innermost first."""
    files = ((frame, frame.f_code.co_filename) for frame in _frames_in_the_model())
    return (frame for frame, file in files if is_user_code(file) and not is_installed(file))


def running_line() -> CodeLocation:
    """Find the running line of the user's code."""
    return Locator(nn.Module()).here()
