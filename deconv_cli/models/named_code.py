"""Code that the user names, `file.py:Name` or `package.module:Name`; naming it is consent to run it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from deconv_cli.errors import DeconvError, UsageError
from deconv_cli.io.files import reason_of


@dataclass(frozen=True, eq=False)
class NamedCode:
    """A class, a function or a model (`value`) that the user named by a text, and the module that holds it."""

    text: str
    module: ModuleType
    value: Any


def load_named(text: str, what: str) -> NamedCode:
    """Import the class, function or model that `file.py:Name` or `package.module:Name` names; messages call it `what`.

    Raises:
        UsageError: not of this form, no such file or module or name, or the import fails.
    """
    place, colon, name = text.rpartition(":")
    if not colon or not place or not all(part.isidentifier() for part in name.split(".")):
        raise UsageError(f"{what} must be file.py:Name or package.module:Name, but is '{text}'.")
    module = _import_file(Path(place), what) if place.endswith(".py") else _import_module(place, what)
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            raise UsageError(f"{what}: '{place}' holds no '{name}'; check the name after the colon.")
        value = getattr(value, part)
    if not callable(value):
        raise UsageError(f"{what}: '{text}' must be a class, a function or a model, but is a {type(value).__name__}.")
    return NamedCode(text, module, value)


def _import_file(path: Path, what: str) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"{what}: '{path}' does not exist; check the name and the folder.")
    path = path.resolve()
    for module in list(sys.modules.values()):
        if getattr(module, "__file__", None) == str(path) and getattr(module, "__name__", "") != "__main__":
            return module
    name = path.stem if path.stem not in sys.modules else f"deconv_named_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{what}: '{path}' cannot be imported as Python code.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        # As in a script of Python, its neighbors can be imported.
        with _importing(str(path), path.parent, what):
            spec.loader.exec_module(module)
    except DeconvError:
        del sys.modules[name]
        raise
    return module


def _import_module(name: str, what: str) -> ModuleType:
    with _importing(name, Path.cwd(), what):
        return importlib.import_module(name)


@contextmanager
def _importing(place: str, folder: Path, what: str) -> Iterator[None]:
    """Make a folder's modules importable, and turn every error of the code into one sentence."""
    sys.path.insert(0, str(folder))
    try:
        yield
    except DeconvError:
        raise
    except Exception as error:
        raise UsageError(
            f"{what}: '{place}' cannot be imported ({type(error).__name__}: “{reason_of(error)}”)."
        ) from error
    finally:
        sys.path.remove(str(folder))
