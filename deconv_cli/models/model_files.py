"""Reading a model from a file without running what the file carries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from deconv_cli.io.limits import check_budget
from deconv_cli.io.sources import open_source
from deconv_cli.io.weights_only import globals_in, load_weights_only
from deconv_cli.models.model_format import ModelFormat, model_format
from deconv_cli.models.named_code import NamedCode, find_global
from deconv_cli.models.state_dicts import StateDict, find_state_dict, read_safetensors
from deconv_cli.models.trusted_programs import ExportedModel, read_exported_program, read_torchscript
from deconv_cli.models.whole_modules import check_module, torch_globals


@dataclass(frozen=True, eq=False)
class ModelFile:
    """What a model file holds: a whole module, a state dict or an exported program, one of the three."""

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
        return ModelFile(path, kind, sha256, state=read_safetensors(path))
    if kind is ModelFormat.EXPORTED:
        return ModelFile(path, kind, sha256, exported=read_exported_program(path, trusted_sha256))
    if kind is ModelFormat.TORCHSCRIPT:
        return ModelFile(path, kind, sha256, module=read_torchscript(path, trusted_sha256))
    found = _read_pickle(path, named, allowed_globals)
    if isinstance(found, nn.Module):
        check_module(path, found)
        return ModelFile(path, kind, sha256, module=found)
    state, notes = find_state_dict(path, found)
    return ModelFile(path, kind, sha256, state=state, notes=notes)


def _read_pickle(path: Path, named: NamedCode | None, allowed_globals: Sequence[str]) -> object:
    allowed = torch_globals()
    allowed += [(find_global(name, named), name) for name in allowed_globals]
    if named is not None and named.model_class is not None:
        # The script that saved the model knew the class under another module's name, for instance `__main__`.
        own = named.model_class
        allowed += [(own, name) for name in globals_in(path) if name.rpartition(".")[2] == own.__name__]
    return load_weights_only(
        path,
        allowed,
        advice='name the model\'s class with model="file.py:Class", allow a class that you trust with '
        'allowed_globals="NAME", or save the state_dict() alone',
    )
