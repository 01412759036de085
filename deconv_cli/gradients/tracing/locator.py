"""The line of the user's code that runs just now, while a model runs."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType

from torch import nn
from torch.nn.modules import module as module_hooks

from deconv_cli.gradients.tracing.code_location import CodeLocation, is_user_code

_SUBJECT = str(Path(__file__).parents[1] / "subject.py")


class Locator:
    """Finds the line and the module that run just now.

    Args:
        model: the model that runs. Where it has a `running_location`, as an exported program has, that is taken for
            operations that no line of the user's code calls.
    """

    def __init__(self, model: nn.Module) -> None:
        self._names = {id(module): name for name, module in model.named_modules()}
        self._stack: list[str] = []
        self._model = model

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

    @property
    def module(self) -> str:
        """Name of the innermost module that runs."""
        return self._stack[-1] if self._stack else ""

    def here(self) -> CodeLocation:
        """Find the innermost line of the user's own code."""
        frame: FrameType | None = sys._getframe(1)
        path = 0
        while frame is not None and not _calls_the_model(frame.f_code):
            file = frame.f_code.co_filename
            path = hash((path, frame.f_lasti))
            if is_user_code(file):
                return CodeLocation(file, frame.f_lineno, frame.f_code.co_name, self.module, call_path=path)
            frame = frame.f_back
        exported: CodeLocation | None = getattr(self._model, "running_location", None)
        return exported or CodeLocation(module=self.module)


def _calls_the_model(code: CodeType) -> bool:
    """Return whether a frame is this package calling the model or the loss: above it stands only its own caller."""
    return code.co_filename == _SUBJECT and code.co_name in ("run", "output")
