"""Kernels from formulas, against sums over fine grids and against what is known of them in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from deconv_cli.errors import UsageError
from deconv_cli.kernels.sources.formula import make_kernel
from deconv_cli.kernels.sources.kernel_source import MAX_REACH, KernelSource
from deconv_cli.kernels.sources.subpixels import integrate_over_pixels
from deconv_cli.parts import KERNEL_SOURCES

FINE = 200
"""Samples along each side of a pixel."""

TEXTS = [
    *("gaussian:0.3", "gaussian:1.2", "gaussian:4", "disk:0.4", "disk:1.5", "disk:5.2", "disk:20", "box:1", "box:4"),
    *("box:6.3", "motion:0.2@70", "motion:7@0", "motion:15@30", "motion:8@45", "motion:9.5@-62", "motion:11@90"),
]


def fine_grid(size: int) -> np.ndarray:
    """Middles of equal parts of pixels, whose central one is around 0."""
    return (np.arange(size * FINE) + 0.5) / FINE - size / 2


def over_pixels(density, size: int) -> np.ndarray:
    """Sum a density on a fine grid within each pixel, to the sum 1."""
    grid = fine_grid(size)
    fine = density(grid[:, None], grid[None, :]).astype(float)
    taps = fine.reshape(size, FINE, size, FINE).sum(axis=(1, 3))
    return taps / taps.sum()


@pytest.mark.parametrize("text", TEXTS)
def test_what_every_source_gives(text):
    taps = make_kernel(text)
    assert taps.dtype == torch.float64
    assert taps.ndim == 2
    assert all(size % 2 == 1 for size in taps.shape)
    assert abs(float(taps.sum()) - 1) < 1e-12
    assert float(taps.min()) >= 0
    assert float((taps - taps.flip((0, 1))).abs().max()) < 1e-12  # centered
    assert bool(taps[0].any())  # no empty frame
    assert bool(taps[:, 0].any())


@pytest.mark.parametrize("text", [text for text in TEXTS if not text.startswith("motion")])
def test_those_without_a_direction_have_none(text):
    taps = make_kernel(text)
    for turned in (taps.T, taps.flip(0), taps.flip(1)):
        assert float((taps - turned).abs().max()) < 1e-12


@pytest.mark.parametrize("sigma", [0.3, 0.8, 2.0])
def test_gaussian(sigma):
    taps = make_kernel(f"gaussian:{sigma}").numpy()
    expected = over_pixels(lambda y, x: np.exp(-(x**2 + y**2) / (2 * sigma**2)), len(taps))
    np.testing.assert_allclose(taps, expected, atol=1e-5)


def test_the_variance_of_a_gaussian():
    line = make_kernel("gaussian:2").sum(0)
    places = torch.arange(len(line)) - len(line) // 2
    # Integrating over pixels adds the variance of a pixel, 1/12.
    assert float((line * places**2).sum()) == pytest.approx(4 + 1 / 12, rel=1e-4)


def test_gaussian_far_from_the_center_keeps_its_digits():
    line = make_kernel("gaussian:1")[5]
    exact = [math.erfc((i - 0.5) / math.sqrt(2)) / 2 - math.erfc((i + 0.5) / math.sqrt(2)) / 2 for i in range(1, 6)]
    np.testing.assert_allclose((line[6:] / line[6]).numpy(), np.array(exact) / exact[0], rtol=1e-12)


@pytest.mark.parametrize("radius", [0.4, 0.75, 1.5, 3.0, 5.2])
def test_disk(radius):
    taps = make_kernel(f"disk:{radius}").numpy()
    expected = over_pixels(lambda y, x: x**2 + y**2 <= radius**2, len(taps))
    np.testing.assert_allclose(taps, expected, atol=2e-4 / max(1, radius))


@pytest.mark.parametrize("radius", [1.5, 2.5, 5.2, 33.3])
def test_a_pixel_inside_the_disk_is_covered_whole(radius):
    taps = make_kernel(f"disk:{radius}")
    center = taps.shape[0] // 2
    assert float(taps[center, center]) * math.pi * radius**2 == pytest.approx(1, rel=1e-12)


def test_the_area_of_a_disk_cut_by_one_edge():
    # Of a disk of radius 1, the pixel beside the center holds the circular segment beyond x = 1/2, within |y| < 1/2.
    taps = make_kernel("disk:1")
    strip = 2 * (0.5 * math.sqrt(0.75) + math.asin(0.5)) / 2  # ∫√(1 − y²) dy over |y| < 1/2
    assert float(taps[1, 2]) == pytest.approx((strip - 0.5) / math.pi, rel=1e-12)


@pytest.mark.parametrize("size", [0.5, 1.0, 2.0, 3.0, 4.6])
def test_box(size):
    taps = make_kernel(f"box:{size}").numpy()
    expected = over_pixels(lambda y, x: (abs(x) < size / 2) & (abs(y) < size / 2), len(taps))
    np.testing.assert_allclose(taps, expected, atol=1e-12)
    odd = make_kernel("box:3")
    assert torch.equal(odd, torch.full((3, 3), 1 / 9, dtype=torch.float64))


@pytest.mark.parametrize("angle", [0, 17, 30, 45, 60.5, 90, 135, -20, 200])
@pytest.mark.parametrize("length", [0.5, 4, 9.3])
def test_motion(length, angle):
    taps = make_kernel(f"motion:{length}@{angle}").numpy()
    along = ((np.arange(200_000) + 0.5) / 200_000 - 0.5) * length
    rows = np.rint(-along * math.sin(math.radians(angle))).astype(int) + taps.shape[0] // 2
    columns = np.rint(along * math.cos(math.radians(angle))).astype(int) + taps.shape[1] // 2
    expected = np.zeros(taps.shape)
    np.add.at(expected, (rows, columns), 1 / 200_000)
    np.testing.assert_allclose(taps, expected, atol=2e-5)


def test_motion_along_an_axis_and_a_diagonal():
    fifth = torch.full((1, 5), 0.2, dtype=torch.float64)
    torch.testing.assert_close(make_kernel("motion:5@0"), fifth, rtol=0, atol=1e-15)
    torch.testing.assert_close(make_kernel("motion:5@90"), fifth.T, rtol=0, atol=1e-15)
    diagonal = make_kernel(f"motion:{3 * math.sqrt(2)}@45")
    torch.testing.assert_close(diagonal, torch.eye(3, dtype=torch.float64).flip(0) / 3, rtol=0, atol=1e-12)
    torch.testing.assert_close(make_kernel("motion:7@20"), make_kernel("motion:7@-20").flip(0), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "kernel source must be one of gaussian, disk, box, motion"),
        ("lens:3", "but is 'lens'"),
        ("disk", "written disk:RADIUS"),
        ("disk:", "written disk:RADIUS"),
        ("disk:1@2", "written disk:RADIUS"),
        ("disk:wide", "but is 'disk:wide'"),
        ("disk:nan", "with a number for each"),
        ("motion:3", "written motion:LENGTH@ANGLE"),
        ("motion:3@1e999", "with a number for each"),
        ("motion:3@" + "9" * 5000, "with a number for each"),
        ("disk:0", "RADIUS must be positive"),
        ("gaussian:-1", "SIGMA must be positive"),
        ("box:-0.5", "SIZE must be positive"),
        ("motion:0@30", "LENGTH must be positive"),
        ("disk:1e9", f"at most {MAX_REACH} pixels"),
        ("gaussian:300", f"at most {MAX_REACH} pixels"),
        ("motion:5000@45", f"at most {MAX_REACH} pixels"),
    ],
)
def test_what_is_none_is_refused_in_one_short_sentence(text, says):
    with pytest.raises(UsageError) as caught:
        make_kernel(text)
    assert says in str(caught.value)
    assert str(caught.value).endswith(".")
    assert len(str(caught.value)) < 200


def test_a_source_of_the_callers_own():
    def ring(radius: float) -> torch.Tensor:
        return make_kernel(f"disk:{radius}") * 2

    KERNEL_SOURCES.register("ring", KernelSource(("RADIUS",), ring))
    try:
        assert float(make_kernel("ring:3").sum()) == pytest.approx(2)
    finally:
        KERNEL_SOURCES.unregister("ring")


def test_large_kernels_are_integrated_band_by_band():
    n_points = []

    def density(y, x):
        n_points.append(y.numel())
        return (1 + y.square() + 2 * x.square()).reciprocal() + 0.01 * y

    taps = integrate_over_pixels(density, 60)
    assert max(n_points) <= 2**19 < sum(n_points)
    at = (torch.arange(121 * 8, dtype=torch.float64) + 0.5) / 8 - 60.5
    whole = (1 + at[:, None].square() + 2 * at.square()).reciprocal() + 0.01 * at[:, None]
    assert torch.allclose(taps, whole.reshape(121, 8, 121, 8).mean(dim=(1, 3)), rtol=1e-12, atol=0)


@pytest.mark.parametrize("text", ["disk:2*motion:5@30", "gaussian:1 * gaussian:1.5", "box:3*disk:1.5*motion:4@80"])
def test_a_product_is_one_blur_after_another(text):
    taps = make_kernel(text)
    wanted = np.ones((1, 1))
    for factor in text.split("*"):
        one = make_kernel(factor.strip()).numpy()
        wide = np.zeros([a + b - 1 for a, b in zip(wanted.shape, one.shape, strict=True)])
        for i, j in np.ndindex(*one.shape):
            wide[i : i + wanted.shape[0], j : j + wanted.shape[1]] += one[i, j] * wanted
        wanted = wide
    assert taps.shape == wanted.shape
    assert np.abs(taps.numpy() - wanted).max() < 1e-15
    assert float(taps.sum()) == pytest.approx(1.0)


def test_products_that_cannot_be():
    with pytest.raises(UsageError, match="must be one of"):
        make_kernel("disk:2*")
    with pytest.raises(UsageError, match="may reach at most"):
        make_kernel("box:1500*box:1500")


@pytest.mark.parametrize(("depth", "sigma"), [(2.5, 0.7), (0.4, 1.5)])
def test_a_gaussian_of_three_axes_is_one_along_each(depth, sigma):
    taps = make_kernel(f"gaussian3d:{depth}@{sigma}")
    deep, flat = make_kernel(f"gaussian:{depth}").sum(0), make_kernel(f"gaussian:{sigma}")
    assert (taps.shape, taps.dtype) == ((len(deep), *flat.shape), torch.float64)
    assert torch.allclose(taps, deep[:, None, None] * flat, atol=1e-14)
    with pytest.raises(UsageError, match="DEPTH must be positive"):
        make_kernel("gaussian3d:-1@2")


@pytest.mark.parametrize(
    ("text", "spacing", "same"),
    [
        ("disk:0.6um", (0.2, 0.2), "disk:3"),
        ("gaussian3d:1µm@300nm", (0.5, 0.2, 0.2), "gaussian3d:2@1.5"),
        ("motion:0.002mm@30", (0.5, 0.2, 0.2), "motion:10@30"),
    ],
)
def test_lengths_in_units_are_counted_in_samples(text, spacing, same):
    torch.testing.assert_close(make_kernel(text, spacing=spacing), make_kernel(same), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("text", "spacing", "says"),
    [
        ("disk:0.6um", None, "how far apart the samples are is not known"),
        ("gaussian3d:1um@2", (0.2, 0.2), "not known"),
        ("disk:0.6um", (0.2, 0.3), "pixels should be squares"),
        ("motion:9@30um", (0.2, 0.2), "ANGLE is no length"),
        ("disk:3in", (0.2, 0.2), "is written disk:RADIUS"),
    ],
)
def test_units_that_say_nothing_are_refused(text, spacing, says):
    with pytest.raises(UsageError, match=says):
        make_kernel(text, spacing=spacing)
