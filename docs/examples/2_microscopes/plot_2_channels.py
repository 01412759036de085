"""
A microscope with several channels
==================================

An OME-TIFF often names the wavelength of each channel, and the objective. ``--kernel microscope`` computes one
point-spread function for each channel from that. Every channel also gets a λ of its own.
"""

import numpy as np
import tifffile
import torch
from shown import open_folder, prompt, show

import deconv_cli

folder = open_folder()

# %%
# First make a picture with two channels: blue at 460 nm, red at 620 nm. The red channel is more blurred, since its
# wavelength is longer.

stack = torch.from_numpy(tifffile.imread(folder / "sample_images/pollen.ome.tif").astype(np.float32))
scene = torch.stack([stack[12], stack[6].flip(1)]) / stack.max()
optics = {"numerical_aperture": 0.3, "immersion_index": 1.0, "spacing": (0.2, 0.2)}
kernels = [
    deconv_cli.microscope_psf(deconv_cli.Microscope(emission=e, **optics), size=(25, 25)).float() for e in (460, 620)
]
blurred = torch.cat([deconv_cli.forward(scene[c : c + 1], kernels[c], boundary="reflect") for c in (0, 1)])
seen = torch.poisson(blurred * 400, generator=torch.Generator().manual_seed(0)).numpy()
channels = {"Name": ["DAPI", "Texas Red"], "EmissionWavelength": [460.0, 620.0], "EmissionWavelengthUnit": ["nm", "nm"]}
size = {"PhysicalSizeX": 0.2, "PhysicalSizeY": 0.2, "PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}
tifffile.imwrite(
    folder / "cells.ome.tif", seen.astype(np.uint16), ome=True, metadata={"axes": "CYX", "Channel": channels, **size}
)

# %%
# The file names the wavelengths, but not the aperture. So the command gives the aperture.

prompt("deconv invert cells.ome.tif --kernel microscope:na=0.3 -o sharp.ome.tif")


# %%
def colored(channels):
    """Show the first channel in blue and the second one in orange."""
    colors = np.array([[0.25, 0.45, 1.0], [1.0, 0.55, 0.15]])
    return np.clip(np.tensordot(np.clip(channels, 0, 1), colors, axes=(0, 0)), 0, 1)


sharp = tifffile.imread(folder / "sharp.ome.tif")
show(
    {"seen": colored(seen / 400), "restored": colored(sharp / 400), "truth": colored(scene.numpy())},
    columns=3,
    high=1.0,
)

# %%
# The result is an OME-TIFF too, with the names of the channels and the size of a pixel.

prompt("deconv inspect sharp.ome.tif")
