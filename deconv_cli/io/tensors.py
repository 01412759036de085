"""Files of named tensors: what .pt, .safetensors, .npy and .npz have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deconv_cli.errors import MalformedInputError, UsageError
from deconv_cli.io import records
from deconv_cli.io.codec import Array, Codec, WriteRequest, from_images
from deconv_cli.io.layout import Layout, letters_of_tensor
from deconv_cli.io.samples import Samples
from deconv_cli.io.sources import refusing_damage
from deconv_cli.io.stored_image import StoredImage

IMAGE_NAME = "image"
"""The name under which an image is written into a file of named tensors."""


@dataclass(frozen=True, eq=False)
class TensorFile:
    """The tensors of a file by name; a bare tensor has the empty name."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], Samples]
    """Reads one tensor, of the shape listed."""
    record: dict[str, Any] | None = None
    """What an earlier run wrote into the file."""
    read_rows: Callable[[str, int, int], Samples] | None = None
    """Reads a part of one tensor along its first axis, where the format allows it."""

    def find(self, *names: str) -> str:
        """Give the first of some names that a tensor has; refuse by `UsageError` what none has."""
        found = next((name for name in names if name and name in self.shapes), None)
        if found is None and list(self.shapes) == [""]:
            raise UsageError(
                f"'{self.path}' holds a single tensor without a name, so tensor=\"{names[0]}\" has no choice to make."
            )
        if found is None:
            raise UsageError(f"'{self.path}' holds no tensor named '{names[0]}', only {describe_tensors(self.shapes)}.")
        return found


class TensorCodec(Codec):
    """A format of one or several tensors."""

    is_picture = False
    selects = "tensor"

    @abstractmethod
    def list_tensors(self, path: Path) -> TensorFile:
        """List the tensors of a file, after comparing what its header promises with the file."""

    def read(self, path: Path, member: str | int | None = None) -> StoredImage:
        """Read one tensor."""
        opened = self.list_tensors(path)
        return StoredImage(opened.read(choose_tensor(opened, member)), record=opened.record)

    def arrange(self, request: WriteRequest, samples: Array, alpha: Array | None) -> StoredImage:
        """Keep the axes of a tensor; those of a picture become YX, CYX or BCYX, with a Z where it is a stack."""
        layout, notes = order_axes(request, request.layout_of_result(samples.shape[1], samples.shape[2:]))
        return StoredImage(from_images(layout, samples), layout.axes, notes=notes)


def order_axes(request: WriteRequest, layout: Layout) -> tuple[Layout, tuple[str, ...]]:
    """Order the axes of a result as a tensor has them; gives what is to be said of it too."""
    if not request.from_picture:
        return layout, ()
    sizes = (layout.n_batch, layout.n_channels, *(layout.sizes[layout.axes.index(letter)] for letter in layout.space))
    n_axes = layout.dimensions + (2 if layout.n_batch > 1 else 1 if layout.n_channels > 1 else 0)
    axes = letters_of_tensor(n_axes, layout.dimensions) or ""
    before = request.layout
    notes = (f"axes {before.axes} were written as {axes}",) if len(before.batch_axes) > 1 else ()
    return Layout(axes, sizes[-n_axes:], layout.dimensions), notes


def open_tensors(path: Path, codec: TensorCodec) -> TensorFile:
    """List the tensors of a file, with the record of the run that wrote it.

    Raises:
        InputRefusedError: unsafe, damaged, too large, or without a tensor.
    """
    with refusing_damage(path, f"a {codec.name} file"):
        opened = codec.list_tensors(path)
    if not opened.shapes:
        raise MalformedInputError(f"'{path}' should hold a tensor, but holds none.")

    def read(name: str) -> Samples:
        with refusing_damage(path, f"a {codec.name} file"):
            return opened.read(name)

    record = opened.record if codec.record_inside else records.read_beside(path)
    return TensorFile(path, opened.shapes, read, record, opened.read_rows)


def describe_tensors(shapes: dict[str, tuple[int, ...]]) -> str:
    """Name tensors with their shapes, a dozen at most."""
    named = [f"{name[:80]} {shape}" for name, shape in list(shapes.items())[:12]]
    more = len(shapes) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")


def choose_tensor(opened: TensorFile, name: str | int | None) -> str:
    """Give the name of a tensor if the file has it, or of the only one.

    Raises:
        UsageError: none has that name.
        MalformedInputError: there is none, or there are several and no name.
    """
    if isinstance(name, str):
        return opened.find(name)
    if not opened.shapes:
        raise MalformedInputError(f"'{opened.path}' should hold a tensor, but holds none.")
    if len(opened.shapes) > 1:
        raise MalformedInputError(
            f"'{opened.path}' should hold one tensor, but holds {describe_tensors(opened.shapes)}; choose with "
            "tensor=NAME."
        )
    return next(iter(opened.shapes))
