"""Models in files, of which nothing is run, and code that the user names, `file.py:Name` or `package.module:Name`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from deconv_cli.errors import DeconvError, MalformedInputError, UsageError
from deconv_cli.io.codecs.tensor_codecs import SAFETENSORS, TORCH
from deconv_cli.io.codecs.torch_weights import check_dense, globals_in, load_weights_only
from deconv_cli.io.files import open_source, reason_of, refusing_damage
from deconv_cli.io.tensors import open_tensors
from deconv_cli.vocabulary import name_some


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
    if place.endswith(".py"):
        module = _import_file(Path(place), what)
    else:
        with _importing(place, Path.cwd(), what):
            module = importlib.import_module(place)
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


_CHECKPOINT_KEYS = ("state_dict", "model_state_dict", "model", "net", "network", "weights")
_ACTIVATIONS = ("relu", "gelu", "elu", "selu", "silu", "softplus", "tanh", "sigmoid", "leaky_relu", "mish")
_MAX_MODULES = 100_000

StateDict = dict[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class ModelFile:
    """The content of a model file: a whole module or a state dict."""

    path: Path
    kind: str
    """The name of its format."""
    sha256: str
    module: nn.Module | None = None
    state: StateDict | None = None
    notes: tuple[str, ...] = ()


def read_model(path: Path, *, named: NamedCode | None = None) -> ModelFile:
    """Read a model file.

    Args:
        path: the file; its kind is recognized by its content.
        named: the class that the user named; a pickle may then hold this and other modules of the same code.

    Raises:
        UsageError: no such file.
        InputRefusedError: opening the file could run code, or it is damaged, too large, or no model.
    """
    head, sha256 = open_source(path)
    kind = next((codec.name for codec in (SAFETENSORS, TORCH) if codec.recognizes(head)), None)
    if kind is None:
        raise MalformedInputError(
            f"'{path}' is not a supported model file (.safetensors or torch.save); it may be cut short or damaged."
        )
    if kind == SAFETENSORS.name:
        opened = open_tensors(path, SAFETENSORS)
        state = {name: torch.as_tensor(opened.read(name)) for name in opened.shapes}
        return ModelFile(path, kind, sha256, state=state)
    allowed = torch_globals()
    if named is not None:
        # The script that saved the model knew the classes under another module's name, for instance `__main__`.
        others = set(globals_in(path)) - {name for _, name in allowed}
        own = _own_modules(named)
        allowed += [(own[name.rpartition(".")[2]], name) for name in others if name.rpartition(".")[2] in own]
    advice = "save the state_dict() alone"
    by_name = 'name the model\'s class with model="{place}"'
    found = load_weights_only(path, allowed, advice=advice, of_model=by_name if named is None else "")
    if isinstance(found, nn.Module):
        if named is not None and isinstance(named.value, type) and type(found).__name__ != named.value.__name__:
            raise UsageError(
                f"'{path}' holds a model of class {type(found).__name__}, but model names {named.value.__name__}; name "
                "the class of the whole model."
            )
        check_module(path, found)
        return ModelFile(path, kind, sha256, module=found)
    state, notes = _find_state_dict(path, found)
    return ModelFile(path, kind, sha256, state=state, notes=notes)


def _own_modules(named: NamedCode) -> dict[str, type[nn.Module]]:
    """List the named class and the other modules that its code defines; not those that it imports."""
    classes = [value for value in vars(named.module).values() if isinstance(value, type)]
    own = [value for value in classes if value.__module__ == named.module.__name__]
    own.append(named.value if isinstance(named.value, type) else type(named.value))
    return {value.__name__: value for value in own if issubclass(value, nn.Module)}


def _find_state_dict(path: Path, found: object) -> tuple[StateDict, tuple[str, ...]]:
    """Find the state dict in an object of `torch.save`, bare or inside a checkpoint; return a note, too."""
    entries: Mapping[Any, Any] = found if isinstance(found, Mapping) else {}
    for key, candidate in ((None, entries), *((key, entries.get(key)) for key in _CHECKPOINT_KEYS)):
        if isinstance(candidate, Mapping) and candidate and all(map(torch.is_tensor, candidate.values())):
            state = {str(name): tensor for name, tensor in candidate.items()}
            for name, tensor in state.items():
                check_dense(path, tensor, name)
            return state, () if key is None else (f"the weights were taken from the entry '{key}' of a checkpoint",)
    listed = f" with the entries {', '.join(repr(str(key)) for key in list(entries)[:6])}" if entries else ""
    raise MalformedInputError(
        f"'{path}' should hold a model or a state dict, but holds a {type(found).__name__}{listed}; save "
        "model.state_dict() alone."
    )


def torch_globals() -> list[tuple[Any, str]]:
    """List the names in a pickle of a module made of torch.nn: the module classes and the activation functions."""
    classes: list[Any] = [kind for kind in vars(nn.modules).values() if isinstance(kind, type)]
    classes = [kind for kind in classes if issubclass(kind, nn.Module)]
    classes.append(nn.modules.linear.NonDynamicallyQuantizableLinear)
    found = [*classes, *(getattr(functional, name) for name in _ACTIVATIONS)]
    return [(each, f"{each.__module__}.{each.__name__}") for each in found]


def check_module(path: Path, module: nn.Module) -> None:
    """Check that a module from a pickle can be walked, and that its tensors are dense.

    A pickle may fill the dictionary of a module with anything, and torch's methods trust it: a module that holds
    itself, or another one twice at each of many levels, would never let them finish.

    Raises:
        InputRefusedError: a member of the wrong type, a module without end, or a tensor that is not dense.
    """
    waiting, n_modules = [module], 0
    with refusing_damage(path, "a model as torch saves it"):
        while waiting:
            found = waiting.pop()
            members = vars(found)
            replaced = [name for name in members if callable(getattr(nn.Module, str(name), None))]
            if replaced:
                raise ValueError(f"its method '{str(replaced[0])[:40]}' is replaced")
            children = [child for child in members["_modules"].values() if child is not None]
            n_modules += 1 + len(children)
            if n_modules > _MAX_MODULES:
                raise ValueError(f"a module contains itself, or more than {_MAX_MODULES} others")
            for kind, place in ((nn.Parameter, "_parameters"), (torch.Tensor, "_buffers"), (nn.Module, "_modules")):
                for name, value in members[place].items():
                    if value is not None and not isinstance(value, kind):
                        what = f"should be a {kind.__name__}, but is a {type(value).__name__}"
                        raise ValueError(f"'{str(name)[:40]}' {what}")
            waiting += children
        for name, tensor in module.state_dict(keep_vars=True).items():
            if isinstance(tensor, torch.Tensor):
                check_dense(path, tensor, name)


def build_model(named: NamedCode, init: Any, stored: ModelFile | None) -> nn.Module:  # noqa: ANN401 (JSON)
    """Call the class or function that the user named, or take the instance, and load the weights of a file.

    Keyword arguments are a mapping, positional ones a list. Without a file the weights keep their initial values.

    Raises:
        UsageError: the call fails, or returns no module.
        InputRefusedError: the weights do not fit the module.
    """
    model = named.value if isinstance(named.value, nn.Module) else _call(named, init)
    if model is named.value and init is not None:
        raise UsageError(f"'{named.text}' is a model already, which takes no arguments; leave out init=ARGUMENTS.")
    if not isinstance(model, nn.Module):
        raise UsageError(f"'{named.text}' should give a torch.nn.Module, but gave a {type(model).__name__}.")
    if stored is not None and stored.state is not None:
        _load_into(model, stored.path, stored.state)
    return model


def _call(named: NamedCode, init: Any) -> object:  # noqa: ANN401 (JSON)
    arguments, keywords = (init, {}) if isinstance(init, list) else ([], init or {})
    try:
        return named.value(*arguments, **keywords)
    except Exception as error:
        raise UsageError(
            f"'{named.text}' could not be built ({type(error).__name__}: “{reason_of(error)}”); give the arguments of "
            "its class with init=ARGUMENTS."
        ) from error


def _load_into(model: nn.Module, path: Path, state: StateDict) -> None:
    """Load a state dict; a prefix `module.` of all names is dropped, tied tensors may be stored once."""
    wanted = model.state_dict(keep_vars=True)
    if state.keys() != wanted.keys() and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    # A tensor that the model holds under several names is copied to all of them: some writers store it once.
    stored = {_identity(wanted[name]): tensor for name, tensor in state.items() if name in wanted}
    tied = [name for name in wanted if name not in state and _identity(wanted[name]) in stored]
    state = state | {name: stored[_identity(wanted[name])] for name in tied}
    missing, extra = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or extra:
        lacks = f"lacks {name_some(map(repr, missing), 4)}" if missing else ""
        holds = f"holds {name_some(map(repr, extra), 4)}, which the model does not have" if extra else ""
        raise MalformedInputError(
            f"'{path}' does not fit the model: it {' and '.join(filter(None, (lacks, holds)))}; check the class and "
            "its arguments."
        )
    for name, tensor in state.items():
        # A lazy parameter takes its shape from the loaded tensor.
        if not nn.parameter.is_lazy(wanted[name]) and tensor.shape != wanted[name].shape:
            raise MalformedInputError(
                f"'{path}' does not fit the model: '{name}' is of shape {tuple(tensor.shape)}, but the model has "
                f"{tuple(wanted[name].shape)}; check the arguments of its class."
            )
    model.load_state_dict(state)


def _identity(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Identify a tensor by its memory; one that has none is only itself."""
    if not isinstance(tensor, torch.Tensor) or nn.parameter.is_lazy(tensor) or not tensor.numel() or tensor.is_meta:
        return (id(tensor),)
    return (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
