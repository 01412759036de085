"""What lies outside a box is read, written and put together without a gap and without counting anything twice."""

import pytest
import torch
from cases import random

from deconv_cli.solvers.closed_slab import OutsideBox, OutsideBoxes

BOXES = [((3, 4), (5, 7)), ((1, 4), (1, 7)), ((2, 3, 4), (4, 5, 5)), ((2, 3, 4), (2, 5, 5)), ((2, 3, 4), (3, 3, 6))]


def written(box, vector, torus, n_channels):
    field = vector.new_zeros(len(vector), n_channels, *torus)
    for planes in (slice(0, 1), slice(1, torus[0])):
        box.put(vector, field[:, :, planes], planes)
    return field


@pytest.mark.parametrize(("size", "torus"), BOXES)
def test_a_vector_fills_all_but_the_box(size, torus):
    box = OutsideBox(2, size, torus)
    vector = random((3, box.n_unknowns)).abs() + 1
    field = written(box, vector, torus, 2)
    inside = field[(slice(None), slice(None), *(slice(n) for n in size))]
    assert bool((inside == 0).all())
    assert int((field > 0).sum()) == vector.numel() == field.numel() - inside.numel()
    again = torch.zeros_like(vector)
    for planes in (slice(0, 1), slice(1, torus[0])):
        box.take(field[:, :, planes], again, planes)
    assert torch.equal(again, vector)


@pytest.mark.parametrize(("size", "torus"), BOXES)
def test_slabs_are_those_of_the_field_and_are_added_where_they_come_from(size, torus):
    box = OutsideBox(2, size, torus)
    vector = random((3, box.n_unknowns))
    field = written(box, vector, torus, 2)
    assert box.axes == [axis for axis, (n, whole) in enumerate(zip(size, torus, strict=True)) if n < whole]
    for axis in box.axes:
        slab = box.slab(vector, axis)
        width = torus[axis] - size[axis]
        assert torch.equal(slab, field.narrow(2 + axis, size[axis], width).movedim(2 + axis, 2))
        total = torch.zeros_like(vector)
        box.add_slab(slab, total, axis)
        only = torch.zeros_like(field)
        only.narrow(2 + axis, size[axis], width).copy_(slab.movedim(2, 2 + axis))
        assert torch.equal(written(box, total, torus, 2), only)


def test_kinds_of_unknowns_share_a_field_but_no_place():
    torus = (4, 5, 6)
    boxes = [OutsideBox(2, (3, 3, 4), torus), OutsideBox(1, (4, 4, 6), torus)]
    both = OutsideBoxes(boxes)
    vector = random((2, both.n_unknowns))
    field = written(both, vector, torus, both.n_channels)
    parts = [written(box, part, torus, box.n_channels) for box, part in zip(boxes, both.split(vector), strict=True)]
    assert torch.equal(field, torch.cat(parts, dim=1))
    again = torch.zeros_like(vector)
    both.take(field, again, slice(0, torus[0]))
    assert torch.equal(again, vector)
    assert both.n_unknowns == sum(int((part != 0).sum()) for part in parts) // 2
