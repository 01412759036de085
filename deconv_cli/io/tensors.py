"""Files of named tensors: the common part of .pt, .safetensors, .npy and .npz."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deconv_cli.errors import MalformedInputError, UsageError
from deconv_cli.io import records
from deconv_cli.io.codec import Codec, StoredImage, WriteRequest, codec_of_content
from deconv_cli.io.files import read_head, refusing_damage
from deconv_cli.io.layout import Layout, Samples, letters_of_tensor

if TYPE_CHECKING:
    import torch

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
    """Of the run that wrote the file."""
    read_rows: Callable[[str, int, int], Samples] | None = None
    """Reads a part of one tensor along its first axis, from start to stop, in formats that need not read it whole."""

    def find(self, *names: str) -> str:
        """Find the first of some names that a tensor has, or without names the only tensor.

        Raises:
            UsageError: no tensor has one of these names.
            MalformedInputError: the file holds no tensor, or several and no name was given.
        """
        if not names and len(self.shapes) != 1:
            held = f"{describe_tensors(self.shapes)}; choose with tensor=NAME" if self.shapes else "none"
            raise MalformedInputError(f"'{self.path}' should hold one tensor, but holds {held}.")
        if not names:
            return next(iter(self.shapes))
        found = next((name for name in names if name and name in self.shapes), None)
        if found is None and list(self.shapes) == [""]:
            raise UsageError(f"'{self.path}' holds a single tensor without a name; leave out tensor=\"{names[0]}\".")
        if found is None:
            raise UsageError(f"'{self.path}' holds no tensor named '{names[0]}', only {describe_tensors(self.shapes)}.")
        return found

    @property
    def n_samples(self) -> int:
        """Number of samples; a `MalformedInputError` if the tensors do not agree on it."""
        sizes = {name: shape[0] for name, shape in self.shapes.items() if shape}
        if len(set(sizes.values())) != 1:
            listed = ", ".join(f"'{name}' {size}" for name, size in sizes.items())
            raise MalformedInputError(
                f"'{self.path}' should hold tensors with the same number of samples along their first axis, but holds "
                f"{listed or 'single numbers'}."
            )
        return next(iter(sizes.values()))

    def rows(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        """Read samples `start` to `stop` of every tensor; single numbers whole."""
        import torch

        def part(name: str, shape: tuple[int, ...]) -> Samples:
            if shape and self.read_rows is not None:
                return self.read_rows(name, start, min(stop, shape[0]))
            return self.read(name)[start:stop] if shape else self.read(name)

        return {name: torch.as_tensor(part(name, shape)) for name, shape in self.shapes.items()}

    def samples(self, n: int | None) -> dict[str, torch.Tensor]:
        """Read `n` samples of every tensor at most; None reads tensors whole, whichever axis counts the samples.

        Raises:
            MalformedInputError: the tensors do not agree on the number of samples, or hold none.
        """
        import torch

        if n is None:
            return {name: torch.as_tensor(self.read(name)) for name in self.shapes}
        if not self.n_samples:
            raise MalformedInputError(f"'{self.path}' should hold samples along its first axis, but holds none.")
        return self.rows(0, n)


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
        name = opened.find() if member is None else opened.find(str(member))
        return StoredImage(opened.read(name), record=opened.record)

    def order_axes(self, request: WriteRequest, layout: Layout) -> tuple[Layout, str, tuple[str, ...]]:
        """Keep the axes of a tensor; those of a picture become YX, CYX or BCYX, with a Z for a stack."""
        if not request.from_picture:
            return layout, layout.axes, ()
        space = [layout.sizes[layout.axes.index(letter)] for letter in layout.space]
        n_axes = layout.dimensions + (2 if layout.n_batch > 1 else 1 if layout.n_channels > 1 else 0)
        axes = letters_of_tensor(n_axes, layout.dimensions) or ""
        before = request.layout
        notes = (f"axes {before.axes} were written as {axes}",) if len(before.batch_axes) > 1 else ()
        sizes = (layout.n_batch, layout.n_channels, *space)[-n_axes:]
        return Layout(axes, sizes, layout.dimensions), axes, notes


def open_tensors(path: Path, codec: TensorCodec) -> TensorFile:
    """List the tensors of a file, one at least, with the record of its run; raises `InputRefusedError`."""
    with refusing_damage(path, f"a {codec.name} file"):
        opened = codec.list_tensors(path)
    if not opened.shapes:
        raise MalformedInputError(f"'{path}' should hold a tensor, but holds none.")

    def checked(read: Callable[..., Samples], *part: Any) -> Samples:  # noqa: ANN401 (a name, and rows)
        with refusing_damage(path, f"a {codec.name} file"):
            return read(*part)

    return replace(
        opened,
        read=functools.partial(checked, opened.read),
        record=opened.record if codec.record_inside else records.read_beside(path),
        read_rows=opened.read_rows and functools.partial(checked, opened.read_rows),
    )


def describe_tensors(shapes: dict[str, tuple[int, ...]]) -> str:
    """List tensors with their shapes, a dozen at most."""
    named = [f"{name[:80]} {shape}" for name, shape in list(shapes.items())[:12]]
    more = len(shapes) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")


def open_data(path: Path) -> TensorFile:
    """Open a file of tensors whose first axis counts samples; a bare tensor gets the name `input`.

    Raises:
        UsageError: no such file.
        InputRefusedError: unsafe, damaged, too large, or no file of tensors.
    """
    codec = codec_of_content(path, read_head(path))
    if not isinstance(codec, TensorCodec):
        raise MalformedInputError(f"'{path}' should be a file of tensors, but is a {codec.name} picture.")
    opened = open_tensors(path, codec)
    shapes, read = opened.shapes, functools.cache(opened.read)
    if list(shapes) == [""]:
        return TensorFile(path, {"input": shapes[""]}, lambda _: read(""), opened.record)
    return replace(opened, read=read)
