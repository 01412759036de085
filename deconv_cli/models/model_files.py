"""Reading a model from a file without running what the file carries, and loading weights into a model of the user.

TorchScript and exported programs can run code when opened; only files whose fingerprint the user passed are opened.
"""

from __future__ import annotations

import hashlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from deconv_cli.errors import MalformedInputError, UnsafeInputError, UsageError
from deconv_cli.io.codecs.safetensors_file import SAFETENSORS
from deconv_cli.io.codecs.torch_file import program_kind
from deconv_cli.io.codecs.torch_weights import check_dense, globals_in, load_weights_only
from deconv_cli.io.files import open_source, reason_of, refusing_damage
from deconv_cli.io.limits import check_budget, check_zip
from deconv_cli.io.tensors import open_tensors
from deconv_cli.models.named_code import NamedCode, find_global

_CHECKPOINT_KEYS = ("state_dict", "model_state_dict", "model", "net", "network", "weights")
_ACTIVATIONS = ("relu", "gelu", "elu", "selu", "silu", "softplus", "tanh", "sigmoid", "leaky_relu", "mish")
_MAX_MODULES = 100_000

StateDict = dict[str, torch.Tensor]


class ModelFormat(StrEnum):
    """The kinds of files that hold models."""

    SAFETENSORS = "safetensors"
    """A state dict."""
    PICKLE = "PyTorch"
    """A state dict or a whole module by `torch.save`."""
    TORCHSCRIPT = "TorchScript"
    EXPORTED = "exported program"
    """By `torch.export.save`."""

    @property
    def is_program(self) -> bool:
        """True for files that can only be opened by running the code they carry."""
        return self in (ModelFormat.TORCHSCRIPT, ModelFormat.EXPORTED)


@dataclass(frozen=True, eq=False)
class ExportedModel:
    """An exported program as a module of nodes, and the inputs it was exported with."""

    module: torch.fx.GraphModule
    example_arguments: tuple[Any, ...] | None
    example_keywords: dict[str, Any]


@dataclass(frozen=True, eq=False)
class ModelFile:
    """The content of a model file: a whole module, a state dict or an exported program, one of the three."""

    path: Path
    kind: ModelFormat
    sha256: str
    module: nn.Module | None = None
    state: StateDict | None = None
    exported: ExportedModel | None = None
    notes: tuple[str, ...] = ()


def read_model(
    path: Path,
    *,
    named: NamedCode | None = None,
    allowed_globals: Sequence[str] = (),
    trusted_sha256: str | None = None,
) -> ModelFile:
    """Read a model file.

    Args:
        path: the file; its kind is recognized by its content.
        named: the class that the user named, which a pickle may then hold.
        allowed_globals: further classes and functions that a pickle may name, as `package.module.Name`.
        trusted_sha256: the SHA-256 of a TorchScript file or an exported program that the user trusts to run.

    Raises:
        UsageError: no such file, or an allowed name that does not exist.
        InputRefusedError: opening the file could run code, or it is damaged, too large, or no model.
    """
    head, sha256 = open_source(path)
    kind = model_format(path, head)
    check_budget(path, path.stat().st_size)
    if kind is ModelFormat.SAFETENSORS:
        opened = open_tensors(path, SAFETENSORS)
        state = {name: torch.as_tensor(opened.read(name)) for name in opened.shapes}
        return ModelFile(path, kind, sha256, state=state)
    if kind.is_program:
        return _read_program(path, kind, trusted_sha256)
    allowed = torch_globals()
    allowed += [(find_global(name, named), name) for name in allowed_globals]
    if named is not None and named.model_class is not None:
        # The script that saved the model knew the class under another module's name, for instance `__main__`.
        own = named.model_class
        allowed += [(own, name) for name in globals_in(path) if name.rpartition(".")[2] == own.__name__]
    advice = 'allow a class that you trust with allowed_globals="NAME", or save the state_dict() alone'
    by_name = 'name the model\'s class with model="{place}"'
    found = load_weights_only(path, allowed, advice=advice, of_model=by_name if named is None else advice)
    if isinstance(found, nn.Module):
        check_module(path, found)
        return ModelFile(path, kind, sha256, module=found)
    state, notes = _find_state_dict(path, found)
    return ModelFile(path, kind, sha256, state=state, notes=notes)


def model_format(path: Path, head: bytes) -> ModelFormat:
    """Recognize the kind of a model file by its first bytes and its directory; refuse other files."""
    if head.startswith(b"PK"):
        names = check_zip(path)
        parts = {part for name in names for part in name.split("/")}
        if "extern_modules" in parts:
            raise UnsafeInputError(
                f"'{path}' is a torch.package archive, which contains code, so deconv does not open it; save its "
                "state_dict() instead."
            )
        if kind := program_kind(names):
            return ModelFormat(kind)
        if "data.pkl" in parts:
            return ModelFormat.PICKLE
        raise MalformedInputError(
            f"'{path}' is a zip archive, but holds no supported model; it may be another kind of file."
        )
    if SAFETENSORS.recognizes(head):
        return ModelFormat.SAFETENSORS
    if head.startswith(b"\x80"):
        return ModelFormat.PICKLE
    raise MalformedInputError(
        f"'{path}' is not a supported model file (.safetensors, torch.save, TorchScript or .pt2); it may be cut short "
        "or damaged."
    )


def _read_program(path: Path, kind: ModelFormat, trusted_sha256: str | None) -> ModelFile:
    """Open a program on the CPU, once: the bytes that are opened are those whose fingerprint was compared."""
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    if trusted_sha256 is None:
        what = "a TorchScript file" if kind is ModelFormat.TORCHSCRIPT else "an exported program"
        raise UnsafeInputError(
            f"'{path}' is {what}, which can run its own code when opened; if you trust it, pass its fingerprint: "
            f'trusted_sha256="{sha256}".'
        )
    if trusted_sha256.lower() != sha256:
        raise UnsafeInputError(
            f"'{path}' is not the file that trusted_sha256 names: its SHA-256 is {sha256}; none of its code was run."
        )
    if kind is ModelFormat.TORCHSCRIPT:
        with refusing_damage(path, "TorchScript"), _silence():
            return ModelFile(path, kind, sha256, torch.jit.load(io.BytesIO(content), map_location="cpu"))
    with refusing_damage(path, f"an exported program of torch {torch.__version__}"), _silence():
        program = torch.export.load(io.BytesIO(content))
        # The forward pass itself refuses inputs that do not fit.
        module = program.module(check_guards=False)
    arguments, keywords = program.example_inputs or (None, {})
    return ModelFile(path, kind, sha256, exported=ExportedModel(module, arguments, keywords))


@contextmanager
def _silence() -> Iterator[None]:
    """Suppress torch's warnings and logs: one sentence describes a failure."""
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


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
        lacks = f"lacks {_listed(missing)}" if missing else ""
        holds = f"holds {_listed(extra)}, which the model does not have" if extra else ""
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


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(f"'{name}'" for name in names[:4]) + more
