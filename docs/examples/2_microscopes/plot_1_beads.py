"""
Beads, kernel, stack
====================

Beads that are smaller than the resolution show the point-spread function of a microscope. Record a stack of them,
average them, and restore your stack with the result.
"""

import numpy as np
import tifffile
import torch
from shown import open_folder, prompt, show

import deconv_cli

folder = open_folder()
spacing = (0.5, 0.2, 0.2)  # of planes, rows and columns in µm

# %%
# This example makes its own beads: points of light in a confocal stack, with a background and Poisson noise.

optics = deconv_cli.Microscope(
    numerical_aperture=0.5,
    emission=560,
    excitation=520,
    mode="confocal",
    pinhole=4.0,
    immersion_index=1.0,
    spacing=spacing,
)
psf = deconv_cli.microscope_psf(optics, size=(17, 19, 19)).float()
random = np.random.default_rng(0)
points = torch.zeros(1, 30, 120, 120)
for row in range(18, 110, 28):
    for column in range(18, 110, 28):
        points[0, 15, row + random.integers(-3, 4), column + random.integers(-3, 4)] = 1.0
light = deconv_cli.forward(points, psf, dimensions=3) / psf.max() * 900 + 20
beads = torch.poisson(light, generator=torch.Generator().manual_seed(0))[0].numpy()
keep = {"imagej": True, "resolution": (1 / 0.2, 1 / 0.2), "metadata": {"axes": "ZYX", "spacing": 0.5, "unit": "um"}}
tifffile.imwrite(folder / "beads.tif", beads.astype(np.uint16), **keep)
prompt("deconv kernel from-beads beads.tif -o measured.tif")

# %%
# The true and the measured point-spread function, cut along the optical axis. The pictures show square roots, so that
# faint parts are visible.

measured = tifffile.imread(folder / "measured.tif")
true = psf.numpy()


def cut(psf, reach=(7, 7)):
    """Cut a point-spread function through its middle, along the axis."""
    planes, rows, columns = (n // 2 for n in psf.shape)
    side = psf[planes - reach[0] : planes + reach[0] + 1, rows, columns - reach[1] : columns + reach[1] + 1]
    return np.sqrt(side / side.max())


show({"true": cut(true), "measured": cut(measured)}, high=1.0, width=5.0)

# %%
# A stack of pollen seen through the same microscope, restored with the measured function:

tifffile.imwrite(folder / "true.tif", true, **keep)
prompt(
    "deconv forward sample_images/pollen.ome.tif --kernel true.tif --boundary reflect "
    "--noise poisson:300 -o seen.ome.tif --quiet"
)
prompt("deconv invert seen.ome.tif --kernel measured.tif --method richardson-lucy -o restored.ome.tif")

# %%
plane, truth = 12, tifffile.imread(folder / "sample_images/pollen.ome.tif")
stacks = {
    "seen": tifffile.imread(folder / "seen.ome.tif"),
    "restored": tifffile.imread(folder / "restored.ome.tif"),
    "truth": truth,
}
high = float(truth[plane].max())
show({name: stack[plane] for name, stack in stacks.items()}, columns=3, high=high, cmap="magma")
