"""Full samples are bounds in blocks as in the whole picture: parts agree at all others, and notes name the rest."""

import numpy as np
import torch
from block_cases import OPTIONS, scene

import deconv_cli
from deconv_cli.blocks.block_plan import BlockOptions
from deconv_cli.blocks.invert_blocks import LargeFileOptions, invert_blocks
from deconv_cli.solvers.clipped import CLOSE_TOLERANCE

KERNEL = deconv_cli.make_kernel("gaussian:1")
BLOCKS = BlockOptions(10**8, (96, 96))
CHOSEN = OPTIONS | {"lam": 0.03}


def exposed(folder, factor):
    """Write a picture whose ground is white on one side, overexposed by a factor."""
    picture = factor * scene(230, 220)
    picture[:, 130:][picture[:, 130:] == 100 * factor] = 262.0
    y = deconv_cli.forward(picture[None], KERNEL, boundary="reflect")
    y = (y + torch.randn(y.shape, generator=torch.Generator().manual_seed(1))).round().clamp(0, 255).byte()
    np.save(folder / "in.npy", y.numpy())
    return y


def restored(folder, **options):
    files = LargeFileOptions(force=True, axes="CYX")
    return invert_blocks(folder / "in.npy", KERNEL, folder / "out.npy", files=files, blocks=BLOCKS, **CHOSEN | options)


def test_blocks_agree_with_the_whole_at_all_samples_that_are_not_full(tmp_path):
    y = exposed(tmp_path, 1.5)
    found = restored(tmp_path)
    assert found.summary.n_blocks > 4
    assert found.doubts == ()
    assert found.summary.certificate < 5e-7  # what rounding leaves of the tolerance
    assert any("treated as lower bounds" in note for note in found.notes)
    whole = deconv_cli.invert(y, KERNEL, tolerance=CLOSE_TOLERANCE, **CHOSEN)
    differs = (torch.from_numpy(np.load(tmp_path / "out.npy")) - whole.image).abs()
    assert float(differs[y < 245].max()) < 1e-3 * 255
    assert float(whole.image.max()) > 300


def test_a_picture_with_hardly_any_full_sample_has_no_bounds(tmp_path):
    y = exposed(tmp_path, 0.8)
    y[y > 200] = 200
    y[0, 60, 70] = 255
    np.save(tmp_path / "in.npy", y.numpy())
    found = restored(tmp_path)
    assert found.plan.choices.has_bounds is False
    assert found.notes == ()


def test_the_halo_is_as_wide_along_all_axes_beside_a_white_background(tmp_path):
    """Along the edge of white, most samples that are deep along one axis are full, and not compared."""
    generator = torch.Generator().manual_seed(0)
    picture = torch.full((1, 480, 480), 275.0)
    picture[:, 60:210, 60:210] = torch.rand(1, 150, 150, generator=generator) * 120 + 60
    y = deconv_cli.forward(picture, KERNEL, boundary="reflect")
    np.save(tmp_path / "in.npy", (y + torch.randn(y.shape, generator=generator)).round().clamp(0, 255).byte().numpy())
    found = restored(tmp_path)
    assert len(set(found.plan.halo.halo)) == 1
    assert found.doubts == ()
