"""Where in the user's own code an operation stands."""

from __future__ import annotations

import contextlib
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType

import torch
from torch import nn
from torch.nn.modules import module as module_hooks

from deconv_cli.gradients.verdicts import Place

_TORCH = str(Path(torch.__file__).parent)
_STANDARD = sysconfig.get_path("stdlib")
_SUBJECT = str(Path(__file__).parent / "subject.py")
_PACKAGE = str(Path(__file__).parent.parent)
_FRAME = re.compile(r'File "([^"\n]+)", line (\d+), in ([^\n]+)\n\s*([^\n]*)')


def _is_foreign(file: str) -> bool:
    """Tell whether a file belongs to torch, to Python or to this package, so that the user did not write it."""
    if file.startswith("<") or file.startswith((_TORCH, _PACKAGE)):
        return True
    return file.startswith(_STANDARD) and "site-packages" not in file and "dist-packages" not in file


class Locator:
    """Tells where the running operation stands, while a model runs."""

    def __init__(self, model: nn.Module) -> None:
        self._names = {id(module): name for name, module in model.named_modules()}
        self._stack: list[str] = []
        self._told_by = model

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        """Follow which module runs."""

        def enter(module: nn.Module, _arguments: object) -> None:
            if id(module) in self._names:
                self._stack.append(self._names[id(module)])

        def leave(module: nn.Module, _arguments: object, _output: object) -> None:
            if id(module) in self._names and self._stack:
                self._stack.pop()

        handles = [
            module_hooks.register_module_forward_pre_hook(enter),
            module_hooks.register_module_forward_hook(leave, always_call=True),
        ]
        self._stack.clear()
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @staticmethod
    def is_foreign(file: str) -> bool:
        """Tell whether a file belongs to torch, to Python or to this package, so that the user did not write it."""
        return _is_foreign(file)

    @property
    def module(self) -> str:
        """Name of the innermost module that runs."""
        return self._stack[-1] if self._stack else ""

    def here(self) -> Place:
        """Give the innermost line of the user's own code."""
        frame: FrameType | None = sys._getframe(1)
        way = 0
        while frame is not None and not _is_boundary(frame.f_code):
            file = frame.f_code.co_filename
            way = hash((way, frame.f_lasti))
            if not _is_foreign(file):
                return Place(file, frame.f_lineno, frame.f_code.co_name, self.module, turn=way)
            frame = frame.f_back
        told: Place | None = getattr(self._told_by, "running_place", None)
        return told or Place(module=self.module)


def _is_boundary(code: CodeType) -> bool:
    """Tell whether this frame is the doctor calling the model or the loss: above it stands only its own caller."""
    return code.co_filename == _SUBJECT and code.co_name in ("run", "output")


def place_of_trace(trace: str | None, module: str) -> Place | None:
    """Read the innermost user's line of a stack trace that an exported program carries."""
    frames = _FRAME.findall(trace or "")
    for file, line, function, text in reversed(frames):
        if "/torch/nn/" not in file and "/torch/_" not in file and not file.startswith(_TORCH):
            return Place(file, int(line), function, module, text)
    return None
