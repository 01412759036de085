"""Unknowns outside a box at the origin of a torus, in any number of dimensions, as one vector.

They lie in a slab across each axis, and each slab is closed: it goes around the torus along every other axis. The slabs
meet in edges and corners, so that the vector holds them cut into pieces that do not: of the slab across an axis what
lies inside the box along all axes before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from deconv_cli.vocabulary import Size


class OutsideBox:
    """What lies outside a box: `C` channels, in vectors of shape `(B, n)`.

    Args:
        n_channels: C.
        box: size of the box.
        torus: pixels along each axis, at least as many as the box has.
    """

    def __init__(self, n_channels: int, box: Size, torus: Size) -> None:
        self.n_channels = n_channels
        self.box = box
        self.torus = torus
        self.axes = [axis for axis, (n, whole) in enumerate(zip(box, torus, strict=True)) if n < whole]
        self.n_unknowns = n_channels * (math.prod(torus) - math.prod(box))

    def put(self, vector: Tensor, field: Tensor, planes: slice) -> None:
        """Write a vector into planes of a field.

        Args:
            vector: shape `(B, n)`.
            field: shape `(B, C, n_planes, *torus[1:])`; what is in the box stays as it is.
            planes: which planes these are, along the first axis.
        """
        for place, piece in self._planes_of_pieces(vector, field, planes):
            place.copy_(piece)

    def take(self, field: Tensor, vector: Tensor, planes: slice) -> None:
        """Read planes of a field, shape `(B, C, n_planes, *torus[1:])`, into their part of a vector `(B, n)`."""
        for place, piece in self._planes_of_pieces(vector, field, planes):
            piece.copy_(place)

    def slab(self, vector: Tensor, axis: int) -> Tensor:
        """Assemble the whole slab across an axis, shape `(B, C, w, *others)`."""
        shape = list(self.torus)
        shape[axis] -= self.box[axis]
        slab = vector.new_zeros(len(vector), self.n_channels, *shape)
        for place, piece in self._pieces_of_slab(vector, slab, axis):
            place.copy_(piece)
        return slab.movedim(2 + axis, 2)

    def add_slab(self, slab: Tensor, vector: Tensor, axis: int) -> None:
        """Add a slab `(B, C, w, *others)` to a vector `(B, n)`."""
        for place, piece in self._pieces_of_slab(vector, slab.movedim(2, 2 + axis), axis):
            piece.add_(place)

    def _pieces(self, vector: Tensor) -> list[tuple[int, Tensor]]:
        """View a vector as the pieces of its slabs, each with its axis."""
        pieces, first = [], 0
        for axis in self.axes:
            shape = (*self.box[:axis], self.torus[axis] - self.box[axis], *self.torus[axis + 1 :])
            n = self.n_channels * math.prod(shape)
            pieces.append((axis, vector[:, first : first + n].unflatten(-1, (self.n_channels, *shape))))
            first += n
        return pieces

    def _planes_of_pieces(self, vector: Tensor, field: Tensor, planes: slice) -> list[tuple[Tensor, Tensor]]:
        """Pair what planes of a field hold of each piece with what the piece holds of them."""
        pairs = []
        for axis, piece in self._pieces(vector):
            # Where the piece lies along the first axis.
            first, last = (self.box[0], self.torus[0]) if axis == 0 else (0, self.box[0])
            start, stop = max(planes.start, first), min(planes.stop, last)
            if start >= stop:
                continue
            place = field[:, :, start - planes.start : stop - planes.start]
            for other in range(1, axis):
                place = place.narrow(2 + other, 0, self.box[other])
            if axis > 0:
                place = place.narrow(2 + axis, self.box[axis], self.torus[axis] - self.box[axis])
            pairs.append((place, piece[:, :, start - first : stop - first]))
        return pairs

    def _pieces_of_slab(self, vector: Tensor, slab: Tensor, axis: int) -> list[tuple[Tensor, Tensor]]:
        """Pair what a slab across an axis, its axes in the order of the torus, shares with each piece."""
        pairs, width = [], self.torus[axis] - self.box[axis]
        for own, piece in self._pieces(vector):
            if own > axis:
                continue
            place = slab
            for other in range(own):
                place = place.narrow(2 + other, 0, self.box[other])
            if own < axis:
                place = place.narrow(2 + own, self.box[own], self.torus[own] - self.box[own])
                piece = piece.narrow(2 + axis, self.box[axis], width)
            pairs.append((place, piece))
        return pairs


class OutsideBoxes:
    """Unknowns of several kinds, each outside a box of its own; their channels follow one another in fields.

    Args:
        boxes: one for each kind.
    """

    def __init__(self, boxes: list[OutsideBox]) -> None:
        self.boxes = boxes
        self.n_channels = sum(box.n_channels for box in boxes)
        self.n_unknowns = sum(box.n_unknowns for box in boxes)

    def split(self, vector: Tensor) -> list[Tensor]:
        """View a vector `(B, n)` as one for each kind."""
        return list(vector.split([box.n_unknowns for box in self.boxes], dim=-1))

    def put(self, vector: Tensor, field: Tensor, planes: slice) -> None:
        """Write a vector into planes of a field, as `OutsideBox.put`."""
        for box, part, channels in self._kinds(vector, field):
            box.put(part, channels, planes)

    def take(self, field: Tensor, vector: Tensor, planes: slice) -> None:
        """Read planes of a field into their part of a vector, as `OutsideBox.take`."""
        for box, part, channels in self._kinds(vector, field):
            box.take(channels, part, planes)

    def _kinds(self, vector: Tensor, field: Tensor) -> Iterator[tuple[OutsideBox, Tensor, Tensor]]:
        channels = field.split([box.n_channels for box in self.boxes], dim=1)
        return zip(self.boxes, self.split(vector), channels, strict=True)
