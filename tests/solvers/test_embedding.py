"""Images with their borders on a torus: the circular convolution there is the real one, in one to three dimensions."""

import math

import pytest
import torch
from cases import random
from custom_rules import CUSTOM_RULES

from deconv_cli.operators.axes import crop, space_axes
from deconv_cli.operators.boundaries.rule import as_rule
from deconv_cli.operators.circulant import FrequencyBlocks
from deconv_cli.operators.convolution import Convolution
from deconv_cli.parts import BOUNDARIES
from deconv_cli.solvers.embedding import TorusEmbedding, TorusLayout

RULES = [*(as_rule(name) for name in BOUNDARIES), *CUSTOM_RULES]
PROBLEMS = [((6,), (2, 2, 3)), ((5, 6), (1, 2, 3, 2)), ((4, 5), (2, 1, 4, 4)), ((3, 4, 3), (2, 1, 2, 3, 2))]
EVERY = [
    pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name),
    pytest.mark.parametrize(("size", "shape"), PROBLEMS),
    pytest.mark.parametrize("padding", ["same", "valid", "full"]),
]


def every(test):
    for mark in EVERY:
        test = mark(test)
    return test


def lay_out(rule, size, shape, padding, twists=None):
    operator = Convolution(random(shape), size, padding=padding, boundary=rule)
    return operator, TorusEmbedding.of(operator.geometry, rule, torch.device("cpu"), twists)


def on_torus(operator, embedding, x):
    """Lay an image with its border onto the torus: the image at the start, what is before it at the end."""
    n_axes = len(embedding.torus)
    if not operator.boundary.copies_pixels:
        field = x.new_zeros(*x.shape[:-n_axes], *embedding.torus)
        crop(field, (0,) * n_axes, embedding.image_size).copy_(x)
        return field
    return operator.extension.forward(x).roll([-n for n in embedding.origin], space_axes(n_axes))


@every
def test_the_convolution_on_the_torus_is_the_real_one(rule, size, shape, padding):
    operator, embedding = lay_out(rule, size, shape, padding)
    x = random((3, *operator.input_shape), seed=1)
    field = on_torus(operator, embedding, x)
    assert torch.equal(embedding.crop_image(field), x)
    assert float(embedding.take_tied(field).abs().sum()) == 0.0
    fourier = embedding.fourier
    blocks = FrequencyBlocks(fourier.symbol(operator.kernel, embedding.origin))
    outputs = fourier.restore(blocks.multiply(fourier.transform(field)))
    found = crop(outputs, (0,) * len(size), embedding.output_size)
    torch.testing.assert_close(found, operator(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["zero", "unknown"])
@pytest.mark.parametrize(("size", "shape"), PROBLEMS)
def test_twisted_tori_carry_the_same_convolution(name, size, shape):
    """What comes around a twisted axis has the other sign, and nothing that was observed comes around."""
    twists = (True,) * len(size)
    operator, embedding = lay_out(as_rule(name), size, shape, "same", twists)
    x = random(operator.input_shape, seed=1)
    fourier, field = embedding.fourier, on_torus(operator, embedding, x)
    if name == "zero":
        # Zeros stand for what lies before the image and behind it alike, so that no twist can show.
        assert not embedding.take_tied(field).any()
    blocks = FrequencyBlocks(fourier.symbol(operator.kernel, embedding.origin))
    found = crop(fourier.restore(blocks.multiply(fourier.transform(field))), (0,) * len(size), embedding.output_size)
    torch.testing.assert_close(found, operator(x), rtol=0, atol=1e-12)
    # Gathered, too, a step backwards around the torus changes the sign.
    kernel = random((1, 1, *embedding.torus), seed=2)
    start = torch.zeros(1, dtype=torch.long)
    last = torch.tensor([math.prod(embedding.torus) - 1])
    sign = (-1.0) ** sum(n > 1 for n in embedding.torus)
    forwards, backwards = embedding.gather(kernel, last, start), embedding.gather(kernel, start, last)
    assert float(forwards) == float(kernel.flatten()[-1])
    ones = tuple(1 % n for n in embedding.torus)
    assert float(backwards) == sign * float(kernel[(0, 0, *ones)])


def test_a_layout_counts_without_memory():
    geometry = Convolution(random((1, 1, 3, 3)), (8, 8), padding=10**6).geometry
    layout = TorusLayout.plan(geometry, as_rule("symmetric"))
    assert layout.torus == (2000008, 2000008)
    assert layout.n_tied == 2000008**2 - 64
    assert TorusLayout.plan(geometry, as_rule("zero")).torus == (2000006, 2000006)
