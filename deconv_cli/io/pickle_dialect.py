"""Why torch's safe reader does not understand a pickle, found from its opcodes; nothing of it is run."""

from __future__ import annotations

import contextlib
import io
import pickle
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path

from torch import _weights_only_unpickler as safe_reader
from torch.serialization import MAGIC_NUMBER

_N_PICKLES = 4
"""The old format of torch.save pickles a magic number, a version and sizes of the machine before the object."""

_KNOWN = {
    code
    for name, code in vars(safe_reader).items()
    if name.isupper() and isinstance(code, bytes) and getattr(pickle, name, None) == code
}


def strangeness(path: Path) -> str | None:
    """Say what a pickled file has that the safe reader does not understand; None if nothing was found.

    Returns:
        The rest of a sentence that begins with the file's name, without its final stop.
    """
    try:
        is_archive = zipfile.is_zipfile(path)
        found = list(_opcodes(_pickle_in(path) if is_archive else path.read_bytes(), 1 if is_archive else _N_PICKLES))
    except Exception:  # noqa: BLE001  (a damaged file may raise anything; it is refused all the same)
        return None
    protocol = max((int(str(value)) for name, _, value in found if name == "PROTO"), default=0)
    lacking = list(dict.fromkeys(name for name, code, _ in found if code not in _KNOWN))
    if lacking and protocol > 2:
        return (
            f"is a pickle of protocol {protocol}, but the safe reader of torch understands protocol 2 only (not "
            f"{', '.join(lacking[:3])}); save it again with torch.save, which writes protocol 2 by "
            "default, or save the state_dict() as .safetensors"
        )
    if lacking:
        return (
            f"uses {', '.join(lacking[:3])} of the pickle language, which the safe reader of torch does not "
            "understand; save the state_dict() alone with torch.save"
        )
    is_whole = any(name == "STOP" for name, _, _ in found)
    if is_whole and not is_archive and MAGIC_NUMBER not in [value for _, _, value in found[:3]]:
        return "was written by pickle itself and not by torch.save; save the state_dict() with torch.save"
    return None


def _pickle_in(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(next(name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"))


def _opcodes(data: bytes, n_pickles: int) -> Iterator[tuple[str, bytes, object]]:
    stream = io.BytesIO(data)
    with contextlib.suppress(ValueError, EOFError):
        for _ in range(n_pickles):
            for opcode, value, _ in pickletools.genops(stream):
                yield opcode.name, opcode.code.encode("latin-1"), value
