"""Opening and making Zarr arrays by the package zarr, which is imported where one is met."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deconv_cli.errors import UsageError
from deconv_cli.io.folders import address_of, options_of, reaching
from deconv_cli.thread_warnings import warnings_here

FORMAT_FILE = "zarr.json"
"""What describes an array or a group, in the folder of each."""


@dataclass(frozen=True)
class ArraySpec:
    """An array that is to be made.

    Attributes:
        member: its path in the folder; empty for the folder itself.
        shape: of the whole.
        chunk: samples that are compressed together.
        shard: samples that lie in one file; `None` where each chunk has its own.
        dtype: NumPy name of the sample type.
        axes: a letter for each axis.
    """

    member: str
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    shard: tuple[int, ...] | None
    dtype: str
    axes: str


def open_stored(path: Path, member: str) -> Any:  # noqa: ANN401 (a zarr.Array)
    """Open an array for reading."""
    with _imported(path) as zarr:
        return zarr.open_array(store=_store(zarr, path, read_only=True), path=member, mode="r")


def open_described(path: Path, documents: dict[str, str], member: str) -> Any:  # noqa: ANN401 (a zarr.Array)
    """Open an array for writing that has no description of its own yet, only chunks.

    As long as a folder lacks its description, no program takes it for an array.
    """
    with _imported(path) as zarr:
        described = zarr.open_array(store=_memory(zarr, documents), path=member, mode="r")
        place = zarr.storage.StorePath(_store(zarr, path, read_only=False), member)
        # Chunks of zeros are written too, so that none that is missing is one that was forgotten.
        return zarr.Array(
            zarr.AsyncArray(metadata=described.metadata, store_path=place, config={"write_empty_chunks": True})
        )


def each_unit(array: Any) -> Iterator[tuple[slice, ...]]:  # noqa: ANN401 (a zarr.Array)
    """Go through the regions of an array that lie in one file each.

    Written one at a time, none is still on its way when another one fails.
    """
    axes = zip(array.shape, array.shards or array.chunks, strict=True)
    return itertools.product(*([slice(a, min(a + unit, n)) for a in range(0, n, unit)] for n, unit in axes))


def describe_arrays(path: Path, specs: Sequence[ArraySpec], attributes: dict[str, Any]) -> dict[str, str]:
    """Write the descriptions of arrays, and of the group around them; gives their texts by their names.

    An array without a member name stands alone, and has the attributes itself.
    """
    with _imported(path) as zarr:
        made: dict[str, Any] = {}
        store = zarr.storage.MemoryStore(store_dict=made)
        if specs[0].member:
            zarr.create_group(store=store, attributes=attributes)
        for spec in specs:
            zarr.create_array(
                store=store,
                name=spec.member or None,
                shape=spec.shape,
                chunks=spec.chunk,
                shards=spec.shard,
                dtype=spec.dtype,
                fill_value=0,
                # Of the whole chunk, so that a damaged one is noticed.
                compressors=zarr.codecs.ZstdCodec(level=1, checksum=True),
                dimension_names=[letter.lower() for letter in spec.axes],
                attributes=None if spec.member else attributes,
            )
        return {name: bytes(content.to_bytes()).decode() for name, content in made.items()}


def with_attributes(documents: dict[str, str], attributes: dict[str, Any]) -> dict[str, str]:
    """Add attributes to the description of the folder itself."""
    root = json.loads(documents[FORMAT_FILE])
    root["attributes"] = root.get("attributes", {}) | attributes
    return documents | {FORMAT_FILE: json.dumps(root, allow_nan=False, indent=2)}


def _store(zarr: Any, path: Path, *, read_only: bool) -> Any:  # noqa: ANN401
    address = address_of(path)
    if address is None:
        return zarr.storage.LocalStore(path, read_only=read_only)
    with reaching(path):
        return zarr.storage.FsspecStore.from_url(address, read_only=read_only, storage_options=options_of(address))


def _memory(zarr: Any, documents: dict[str, str]) -> Any:  # noqa: ANN401
    content = {name: zarr.core.buffer.cpu.Buffer.from_bytes(text.encode()) for name, text in documents.items()}
    return zarr.storage.MemoryStore(store_dict=content, read_only=True)


@contextmanager
def _imported(path: Path) -> Iterator[Any]:
    """Give the package; what it warns of, such as a codec outside of the standard, is no damage.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import zarr
    except ImportError as error:
        raise UsageError(
            f"'{path}' is a Zarr, for which the package zarr is missing: pip install 'deconv-cli[zarr]'."
        ) from error
    with warnings_here("ignore"):
        yield zarr
