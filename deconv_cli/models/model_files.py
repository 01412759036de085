"""Reading a model from a file without running what the file carries."""

from __future__ import annotations

import contextlib
import io
import pickle
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from deconv_cli.errors import InputRefusedError, MalformedInputError, UnsafeInputError, UsageError
from deconv_cli.io.limits import check_budget
from deconv_cli.io.pickle_dialect import strangeness
from deconv_cli.io.sources import open_source, reason_of, refusing_damage
from deconv_cli.models.model_format import ModelFormat, model_format
from deconv_cli.models.module_structure import check_structure
from deconv_cli.models.named_code import NamedCode, find_global

if TYPE_CHECKING:
    from deconv_cli.models.exported_program import ExportedModel

_ACTIVATIONS = ("relu", "gelu", "elu", "selu", "silu", "softplus", "tanh", "sigmoid", "leaky_relu", "mish")
_STATE_KEYS = ("state_dict", "model_state_dict", "model", "net", "network", "weights")


@dataclass(frozen=True, eq=False)
class ModelFile:
    """What a model file holds: a whole module, a state dict or an exported program, one of the three.

    Attributes:
        path: the file.
        kind: told from its content.
        sha256: fingerprint of the file.
        module: a whole module.
        state: tensors by name.
        exported: a program of `torch.export`.
        notes: what was done on reading, a sentence each.
    """

    path: Path
    kind: ModelFormat
    sha256: str
    module: nn.Module | None = None
    state: dict[str, torch.Tensor] | None = None
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
        path: the file; its kind is told from its content.
        named: the class that the user named, which a pickle may then hold.
        allowed_globals: further classes and functions that a pickle may name, as `package.module.Name`.
        trusted_sha256: the fingerprint of a TorchScript file that the user trusts to run.

    Raises:
        UsageError: no such file, or an allowed name that is not there.
        UnsafeInputError: opening the file could run code.
        InputRefusedError: damaged, too large, or no model.
    """
    head, sha256 = open_source(path)
    check_budget(path, path.stat().st_size)
    kind = model_format(path, head)
    if kind is ModelFormat.SAFETENSORS:
        return ModelFile(path, kind, sha256, state=_read_safetensors(path))
    if kind is ModelFormat.EXPORTED:
        from deconv_cli.models.exported_program import read_exported_program

        return ModelFile(path, kind, sha256, exported=read_exported_program(path))
    if kind is ModelFormat.TORCHSCRIPT:
        return ModelFile(path, kind, sha256, module=_read_torchscript(path, sha256, trusted_sha256))
    found = _read_pickle(path, named, allowed_globals)
    if isinstance(found, nn.Module):
        check_structure(path, found)
        with refusing_damage(path, "a model"):
            tensors = dict(found.state_dict(keep_vars=True))
        _check_tensors(path, tensors)
        return ModelFile(path, kind, sha256, module=found)
    state, notes = _state_in(path, found)
    _check_tensors(path, state)
    return ModelFile(path, kind, sha256, state=state, notes=notes)


def build_model(named: NamedCode, init: Any, stored: ModelFile | None) -> nn.Module:  # noqa: ANN401
    """Call the class or function that the user named, and fill in the weights of a file.

    Args:
        named: what `--model` named.
        init: keyword arguments as a mapping, positional ones as a list, or None.
        stored: a file that holds a state dict, or None to leave the weights as they are made.

    Raises:
        UsageError: the call fails, or gives no module.
        InputRefusedError: the weights do not fit the module.
    """
    arguments = list(init) if isinstance(init, list) else []
    keywords = dict(init) if isinstance(init, dict) else {}
    try:
        model = named.value(*arguments, **keywords)
    except Exception as error:
        raise UsageError(
            f"--model: '{named.text}' could not be built ({type(error).__name__}: {reason_of(error)}); give its "
            "arguments with --init JSON."
        ) from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"--model: '{named.text}' should give a torch.nn.Module, but gave a {type(model).__name__}.")
    if stored is not None and stored.state is not None:
        _fill_in(model, stored.path, stored.state)
    return model


def _fill_in(model: nn.Module, path: Path, state: dict[str, torch.Tensor]) -> None:
    wanted = model.state_dict(keep_vars=True)
    if state.keys() != wanted.keys() and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    state = _with_tied(state, wanted)
    missing, extra = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or extra:
        lacks = f"lacks {_listed(missing)}" if missing else ""
        holds = f"holds {_listed(extra)}, which the model has not" if extra else ""
        raise MalformedInputError(
            f"'{path}' does not fit the model: it {' and '.join(filter(None, (lacks, holds)))}; check --model and "
            "--init."
        )
    for name, tensor in state.items():
        if tensor.shape != wanted[name].shape:
            raise MalformedInputError(
                f"'{path}' does not fit the model: '{name}' is of shape {tuple(tensor.shape)}, but the model has "
                f"{tuple(wanted[name].shape)}; check --init."
            )
    model.load_state_dict(state)


def _with_tied(state: dict[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give tensors that the model holds under several names under all of them: some writers store them once."""
    stored = {_identity(wanted[name]): tensor for name, tensor in state.items() if name in wanted}
    missing = [name for name in wanted if name not in state and _identity(wanted[name]) in stored]
    return state | {name: stored[_identity(wanted[name])] for name in missing}


def _identity(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Tell one tensor from another; what has no memory of its own is only itself."""
    if not isinstance(tensor, torch.Tensor) or not tensor.numel() or tensor.is_meta:
        return (id(tensor),)
    return (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(f"'{name}'" for name in names[:4]) + more


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    with refusing_damage(path, "a .safetensors file"):
        state: dict[str, torch.Tensor] = load_file(path)
    if not state:
        raise MalformedInputError(f"'{path}' should hold the weights of a model, but holds no tensor.")
    return state


def _read_torchscript(path: Path, sha256: str, trusted_sha256: str | None) -> nn.Module:
    if trusted_sha256 is None:
        raise UnsafeInputError(
            f"'{path}' is a TorchScript program, which runs its own code when opened; if you trust it, pass "
            f"--trust-file {sha256}."
        )
    if trusted_sha256.lower() != sha256:
        raise UnsafeInputError(
            f"'{path}' is not the file that --trust-file names: its SHA-256 is {sha256}; nothing of it was run."
        )
    content = path.read_bytes()
    import hashlib

    # Hashed again on the bytes that are opened: the file may have been exchanged since.
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UnsafeInputError(f"'{path}' changed while it was read; nothing of it was run.")
    with refusing_damage(path, "a TorchScript program"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module: nn.Module = torch.jit.load(io.BytesIO(content), map_location="cpu")
    return module


def _read_pickle(path: Path, named: NamedCode | None, allowed_globals: Sequence[str]) -> object:
    allowed: list[Any] = [*_torch_globals()]
    for name in allowed_globals:
        allowed.append((find_global(name, named), name))
    asked = globals_asked_for(path)
    if named is not None and isinstance(named.value, type):
        allowed += [(named.value, name) for name in asked if name.rpartition(".")[2] == named.value.__name__]
    try:
        with (
            path.open("rb") as stream,  # not by its name, whose suffix torch would go by
            warnings.catch_warnings(),
            torch.serialization.safe_globals(allowed),
            torch.sparse.check_sparse_tensor_invariants(),
        ):
            warnings.simplefilter("ignore")
            found: object = torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own words advise to load such a file without its safeguard; they are not passed on.
        refused = sorted(set(asked) - {name for _, name in allowed})
        strange = None if refused else strangeness(path)
        if strange is not None:
            raise UnsafeInputError(f"'{path}' {strange}.") from error
        if refused or "GLOBAL" in str(error) or "Unsupported" in str(error):
            listed = ", ".join(refused[:8]) or "objects that are not named plainly"
            raise UnsafeInputError(
                f"'{path}' asks for {listed}, which is not allowed to run; name the model's class with --model "
                "file.py:Class, allow a class that you trust with --allow-global NAME, or save the state_dict() alone."
            ) from error
        raise _damaged(path) from error
    except (UsageError, InputRefusedError):
        raise
    except Exception as error:
        strange = strangeness(path)
        raise (_damaged(path) if strange is None else UnsafeInputError(f"'{path}' {strange}.")) from error
    return found


def _damaged(path: Path) -> MalformedInputError:
    return MalformedInputError(
        f"'{path}' should be a file that torch.save wrote, but is damaged or cut short; copy or save it again."
    )


def globals_asked_for(path: Path) -> list[str]:
    """List the classes and functions that a pickle names beyond tensors, without running any of them."""
    with contextlib.suppress(Exception), warnings.catch_warnings(), path.open("rb") as stream:
        warnings.simplefilter("ignore")
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(stream))
    return []


def _torch_globals() -> list[tuple[Any, str]]:
    """List what a pickle of a module made of torch.nn names: the module classes and the activation functions."""
    allowed: list[tuple[Any, str]] = []
    for name in dir(nn.modules):
        package = getattr(nn.modules, name)
        if not (isinstance(package, type) and issubclass(package, nn.Module)):
            continue
        allowed.append((package, f"{package.__module__}.{package.__name__}"))
    linear = nn.modules.linear.NonDynamicallyQuantizableLinear
    allowed.append((linear, f"{linear.__module__}.{linear.__name__}"))
    for name in _ACTIVATIONS:
        function = getattr(functional, name)
        allowed.append((function, f"{function.__module__}.{function.__name__}"))
    return allowed


def _state_in(path: Path, found: object) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Find the state dict in what torch.save wrote: bare, or inside a checkpoint."""
    if isinstance(found, Mapping):
        if found and all(isinstance(value, torch.Tensor) for value in found.values()):
            return {str(name): tensor for name, tensor in found.items()}, ()
        for key in _STATE_KEYS:
            inner = found.get(key)
            if isinstance(inner, Mapping) and inner and all(isinstance(v, torch.Tensor) for v in inner.values()):
                note = f"the weights were taken from the entry '{key}' of a checkpoint"
                return {str(name): tensor for name, tensor in inner.items()}, (note,)
    raise MalformedInputError(
        f"'{path}' should hold a model or a state dict, but holds a {type(found).__name__}"
        f"{_keys_of(found)}; save model.state_dict() alone."
    )


def _keys_of(found: object) -> str:
    if not isinstance(found, Mapping):
        return ""
    return f" with the entries {', '.join(repr(str(key)) for key in list(found)[:6])}"


def _check_tensors(path: Path, tensors: Mapping[str, Any]) -> None:
    for name, tensor in _tensors(tensors):
        kind = (
            "sparse"
            if tensor.layout is not torch.strided or tensor.is_nested
            else "quantized"
            if tensor.is_quantized
            else "without data (meta device)"
            if tensor.is_meta
            else None
        )
        if kind:
            raise MalformedInputError(
                f"'{name}' of '{path}' should be a dense tensor, but is {kind}; convert it first."
            )


def _tensors(found: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in found.items():
        if isinstance(value, torch.Tensor):
            yield name, value
