"""Filters that undo a blur by plain convolution, held against the estimate of Tikhonov."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from blurred_pictures import SAMPLES
from cases import random
from PIL import Image

import deconv_cli
from deconv_cli import ShapeError


def photograph(size=64):
    array = np.asarray(Image.open(SAMPLES / "camera.png").convert("L"))
    return torch.from_numpy(array.copy()).double()[None, 40 : 40 + size, 60 : 60 + size]


def test_filters_restore_about_as_well_as_tikhonov():
    blur = deconv_cli.make_kernel("gaussian:1")
    pairs = deconv_cli.simulate_pairs([photograph()], blur, noise="gaussian:2", seed=1)
    found = deconv_cli.learn_inverse_filters(pairs, (9, 9), kernel=blur)
    quality = found.quality
    assert quality.learned > quality.blurred + 1
    assert quality.learned > quality.tikhonov - 0.5
    restored = deconv_cli.forward(pairs[0][1], found.learning.taps, boundary="replicate")
    error = (restored - pairs[0][0]).square().mean()
    assert 10 * math.log10(pairs[0][0].max() ** 2 / error) == pytest.approx(quality.learned, abs=1.5)


def test_a_bank_undoes_a_layer_that_mixes_channels():
    layer, images = random((3, 2, 1, 1)), random((2, 24, 22))
    pairs = deconv_cli.simulate_pairs([images], layer)
    bank = deconv_cli.learn_inverse_filters(pairs, (1, 1), channels="mix").learning.taps
    assert bank.shape == (2, 3, 1, 1)
    assert torch.allclose(deconv_cli.forward(pairs[0][1], bank), images, atol=1e-6)


@pytest.mark.parametrize("size", [(3, 5), (4, 2)])
def test_simulated_pairs_lie_upon_one_another(size):
    """An impulse at the middle tap of a kernel moves nothing."""
    impulse = torch.zeros(size)
    impulse[(size[0] - 1) // 2, (size[1] - 1) // 2] = 1.0
    ((sharp, blurred),) = deconv_cli.simulate_pairs([photograph(20)], impulse)
    assert torch.equal(sharp, blurred)
    assert sharp.shape == (1, 21 - size[0], 21 - size[1])
    first, second = deconv_cli.simulate_pairs([photograph(20)] * 2, impulse, noise="gaussian:3", seed=7)
    assert float((first[1] - first[0]).std()) == pytest.approx(3, rel=0.2)
    assert not torch.equal(first[1], second[1])
    assert torch.equal(
        deconv_cli.simulate_pairs([photograph(20)], impulse, noise="gaussian:3", seed=8)[0][1], second[1]
    )


def test_sizes_that_differ_are_refused():
    with pytest.raises(ShapeError, match="crop one to the other"):
        deconv_cli.learn_inverse_filters([(torch.ones(1, 9, 9), torch.ones(1, 8, 9))], (3, 3))
