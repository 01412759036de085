"""Code that a person names at the prompt, `file.py:Name` or `package.module:Name`; naming it is consent to run it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from deconv_cli.errors import UsageError
from deconv_cli.io.sources import reason_of


@dataclass(frozen=True, eq=False)
class NamedCode:
    """A class or function that the user named.

    Attributes:
        text: as it was typed.
        module: the module that holds it.
        name: its name in that module.
        value: the class or function itself.
    """

    text: str
    module: ModuleType
    name: str
    value: Any


def load_named(text: str, option: str) -> NamedCode:
    """Import what `file.py:Name` or `package.module:Name` names.

    Args:
        text: the file or the module, a colon, and the name of a class or a function.
        option: the option that it was given to, for the message.

    Raises:
        UsageError: not of this form, no such file or module or name, or the import fails.
    """
    place, colon, name = text.rpartition(":")
    if not colon or not place or not all(part.isidentifier() for part in name.split(".")):
        raise UsageError(f"{option} must be file.py:Name or package.module:Name, but is '{text}'.")
    module = _import_file(Path(place), option) if place.endswith(".py") else _import_module(place, option)
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            raise UsageError(f"{option}: '{place}' holds no '{name}'; check the name after the colon.")
        value = getattr(value, part)
    if not callable(value):
        raise UsageError(f"{option}: '{text}' should be a class or a function, but is a {type(value).__name__}.")
    return NamedCode(text, module, name, value)


def find_global(name: str, named: NamedCode | None) -> Any:  # noqa: ANN401
    """Find the class or function that `--allow-global package.module.Name` allows a pickle to use.

    Args:
        name: as a pickle writes it. `__main__` and the module named by `--model` stand for that module.
        named: what `--model` named.

    Raises:
        UsageError: no such module or name.
    """
    place, _, attribute = name.rpartition(".")
    if not place or not attribute.isidentifier():
        raise UsageError(f"--allow-global must be package.module.Name, but is '{name}'.")
    if named is not None and hasattr(named.module, attribute) and place in ("__main__", named.module.__name__):
        return getattr(named.module, attribute)
    if place == "__main__":
        raise UsageError(f"--allow-global {name}: name the file that defines '{attribute}' with --model file.py:Class.")
    module = _import_module(place, "--allow-global")
    if not hasattr(module, attribute):
        raise UsageError(f"--allow-global: '{place}' holds no '{attribute}'.")
    return getattr(module, attribute)


def _import_file(path: Path, option: str) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"{option}: '{path}' does not exist; check the name and the folder.")
    path = path.resolve()
    for module in list(sys.modules.values()):
        if getattr(module, "__file__", None) == str(path) and getattr(module, "__name__", "") != "__main__":
            return module
    name = path.stem if path.stem not in sys.modules else f"deconv_named_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{option}: '{path}' cannot be imported as Python code.")
    module = importlib.util.module_from_spec(spec)
    # As Python itself does for a script: files beside it can be imported.
    sys.path.insert(0, str(path.parent))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UsageError(_failed(option, str(path), error)) from error
    finally:
        sys.path.remove(str(path.parent))
    return module


def _import_module(name: str, option: str) -> ModuleType:
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise UsageError(_failed(option, name, error)) from error
    finally:
        sys.path.remove(folder)


def _failed(option: str, place: str, error: Exception) -> str:
    return f"{option}: '{place}' cannot be imported ({type(error).__name__}: {reason_of(error)})."
