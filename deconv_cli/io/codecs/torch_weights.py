"""Reading what `torch.save` wrote, by torch's weights-only reader: tensors and allowed classes, and nothing else.

Constructors of layers and functions that a pickle calls may allocate a limited memory.
"""

from __future__ import annotations

import contextlib
import pickle
import re
import shlex
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from deconv_cli.errors import MalformedInputError, TooLargeError, UnsafeInputError, warnings_here
from deconv_cli.io import limits
from deconv_cli.io.files import read_head, refusing_damage
from deconv_cli.io.tensors import TensorFile
from deconv_cli.vocabulary import format_memory, name_some

_MAX_DEPTH, _MAX_MEMBERS = 32, 100_000
"""Of containers: a pickle may hold ones that contain themselves, or one another in ever more ways."""

AllowedGlobals = Sequence[tuple[Any, str]]
"""Classes and functions that a pickle may name, each with its name in the pickle."""


_EXTRACT = "extract a layer with deconv kernel extract {file} --model {place} --layer NAME --output layer.safetensors"


def load_weights_only(
    path: Path,
    allowed: AllowedGlobals = (),
    *,
    advice: str = "save its tensors or state_dict() alone",
    of_model: str = _EXTRACT,
) -> object:
    """Read a file of `torch.save`.

    Args:
        path: the file; its suffix does not matter.
        allowed: names that the pickle may hold beyond tensors and plain containers.
        advice: for the user about names that are not allowed.
        of_model: the same for a whole module, whose class is at `{place}`; empty for none.

    Raises:
        InputRefusedError: unsafe, damaged, or larger than half of the memory.
    """
    if read_head(path).startswith(b"PK"):
        _refuse_program(path, limits.check_zip(path))
    n_stored = path.stat().st_size
    limits.check_budget(path, n_stored)
    limit = AllocationLimit(str(path), limits.most_bytes(n_stored))
    # torch warns of its own older formats, and uses another reader for some suffixes.
    with refusing_damage(path, "a file of torch.save"), warnings_here("ignore"), limit:
        if zipfile.is_zipfile(path):  # torch compares no checksums
            with zipfile.ZipFile(path) as archive:
                entry = archive.testzip()
            if entry is not None:
                raise ValueError(f"the checksum of its entry {entry} does not match")
        try:
            with (
                path.open("rb") as stream,
                torch.serialization.safe_globals(list(allowed)),
                torch.sparse.check_sparse_tensor_invariants(),
            ):
                found: object = torch.load(stream, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise _refusal(path, str(error), {name for _, name in allowed}, advice, of_model) from error
    return found


_PROGRAMS = (
    ({"extern_modules"}, "a torch.package archive", "torch.package.PackageImporter"),
    ({"constants.pkl", "code"}, "a TorchScript file", "torch.jit.load"),
    (
        {"archive_format", "archive_version", "serialized_exported_program.json"},
        "an exported program",
        "torch.export.load",
    ),
)
"""Archives that hold code: entries of theirs, what they are, and what opens them."""


def _refuse_program(path: Path, names: list[str]) -> None:
    """Refuse an archive with these entries if opening it can run its code, or if `torch.save` did not write it."""
    parts = {part for name in names for part in name.split("/")}
    for entries, kind, opener in _PROGRAMS:
        if parts & entries:
            raise UnsafeInputError(
                f"'{path}' is {kind}, which can run its own code when opened, so deconv does not open it; open it with "
                f"{opener} and save its state_dict() with torch.save."
            )
    if not any(name.endswith("data.pkl") for name in names):
        raise MalformedInputError(
            f"'{path}' is a zip archive, but not a file of torch.save, which has an entry data.pkl; this one has "
            f"{name_some(names, 3) or 'no entry'}; give a file of torch.save, or extract the file you need."
        )


def globals_in(path: Path) -> list[str]:
    """List the classes and functions that a pickle names beyond tensors, without running it."""
    with contextlib.suppress(Exception), warnings_here("ignore"), path.open("rb") as stream:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(stream))
    return []


def tensors_in(path: Path, found: object) -> TensorFile:
    """List the tensors in what was loaded; names of nested dictionaries are joined by dots, a bare one is empty.

    Raises:
        MalformedInputError: they nest without end, a small file refers to the same ones again and again, or one is
            nested itself.
        TooLargeError: views that repeat a few samples, which would unfold to much more than the file holds.
    """
    tensors = _named_tensors(path, found)
    for name, tensor in tensors.items():
        if tensor.is_nested:  # its shape cannot even be listed
            check_dense(path, tensor, name)

    def read(name: str) -> torch.Tensor:
        tensor = tensors[name]
        check_dense(path, tensor, name)
        limits.check_budget(path, tensor.numel() * tensor.element_size())
        return tensor.detach().contiguous()

    return TensorFile(path, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, read)


def _named_tensors(path: Path, found: object) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    waiting: list[tuple[str, object, int]] = [("", found, 0)]
    n_containers = 0
    while waiting:
        name, member, depth = waiting.pop()
        if isinstance(member, torch.Tensor):
            tensors[name] = member
        elif isinstance(member, dict | list | tuple):
            n_containers += 1
            if depth > _MAX_DEPTH or n_containers + len(waiting) > _MAX_MEMBERS:
                raise MalformedInputError(f"'{path}' nests its dictionaries without end; save its state_dict() alone.")
            keyed = list(member.items() if isinstance(member, dict) else enumerate(member))
            waiting += [
                (f"{name}.{key}" if name else str(key), part, depth + 1)
                for key, part in reversed(keyed)
                if isinstance(part, torch.Tensor | dict | list | tuple)
            ]
    dense = [tensor for tensor in tensors.values() if _storage_kind(tensor) is None]
    n_bytes = sum(tensor.numel() * tensor.element_size() for tensor in dense)
    limits.check_expansion(path, n_bytes, path.stat().st_size, n_parts=len(tensors))
    return tensors


def check_dense(path: Path, tensor: torch.Tensor, name: str = "") -> None:
    """Refuse a tensor that is not stored sample by sample, or that repeats one sample.

    Raises:
        MalformedInputError: sparse, nested, quantized or without data.
        TooLargeError: a view that would unfold to much more than the file holds.
    """
    named = f"'{name}' of '{path}'" if name else f"'{path}'"
    kind = _storage_kind(tensor)
    if kind is not None:
        raise MalformedInputError(f"{named} should be a dense tensor, but is {kind}; convert it first.")
    # By strides of zero a few stored bytes become any number of samples.
    limits.check_expansion(path, tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _storage_kind(tensor: torch.Tensor) -> str | None:
    if tensor.is_nested:
        return "nested"
    if tensor.layout is not torch.strided:
        return "sparse"
    if tensor.is_quantized:
        return "quantized"
    return "without data (meta device)" if tensor.is_meta else None


def _refusal(
    path: Path, reason: str, allowed: set[str], advice: str, of_model: str
) -> UnsafeInputError | MalformedInputError:
    # torch's own message advises to load such a file without its safeguard; it is not passed on.
    names = [name for name in globals_in(path) if name not in allowed] or re.findall(r"GLOBAL ([\w.]+)", reason)
    if names:
        module, _, own = names[0].rpartition(".")
        source = Path(f"{module.replace('.', '/')}.py")
        is_found = len(names) == 1 and source.is_file()
        place = f"{source.as_posix()}:{own}" if is_found else "file.py:Class"
        named = of_model.format(file=shlex.quote(str(path)), place=shlex.quote(place))
        advice = ", or, if it is a whole model, ".join(filter(None, (None if named and is_found else advice, named)))
        return UnsafeInputError(
            f"'{path}' names Python objects ({', '.join(names[:8])}) that are not allowed, since loading them could "
            f"run code; {advice}."
        )
    lacking = re.search(r"Unsupported operand \d+", reason)
    if lacking or "Unsupported" in reason:
        return UnsafeInputError(
            f"'{path}' is a pickle with operations that torch's weights-only reader lacks "
            f"({lacking[0] if lacking else 'unsupported class'}); save it again with torch.save and its default pickle "
            "protocol, or its state_dict() alone."
        )
    return MalformedInputError(
        f"'{path}' should be a file that torch.save wrote, but is damaged or cut short; copy or save it again."
    )


class AllocationLimit(TorchDispatchMode):
    """Refuse, before the memory is taken, to allocate tensors of more than `n_most` bytes together.

    Every operation that makes a tensor is first run on the `meta` device, which knows sizes and holds no samples.
    Raises `TooLargeError`, which names the file `what`.
    """

    def __init__(self, what: str, n_most: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._what, self._n_most, self._n_bytes = what, min(n_most, limits.memory_budget()), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Count the bytes that an operation allocates, then run it."""
        keywords = kwargs or {}
        self._n_bytes += _new_bytes(func, args, keywords)
        if self._n_bytes > self._n_most:
            raise TooLargeError(
                f"'{self._what}' would allocate {format_memory(self._n_bytes)}, but at most "
                f"{format_memory(self._n_most)} may be used; make its layers smaller."
            )
        return func(*args, **keywords)


def _new_bytes(function: Any, arguments: Any, keywords: dict[str, Any]) -> int:  # noqa: ANN401 (an operation of torch)
    """Compute the bytes of the tensors that an operation makes; 0 for views and writes, and where no size is known."""
    schema = function._schema
    if any(returned.alias_info is not None for returned in schema.returns) or str(keywords.get("device")) == "meta":
        return 0
    device = {"device": "meta"} if any(argument.name == "device" for argument in schema.arguments) else {}
    try:
        arguments, keywords = pytree.tree_map_only(
            torch.Tensor, lambda tensor: tensor.to("meta"), (arguments, keywords)
        )
        leaves = pytree.tree_leaves(function(*arguments, **keywords | device))
    except Exception:  # noqa: BLE001  sizes that depend on samples are unknown on this device
        return 0
    return sum(leaf.nbytes for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided)
