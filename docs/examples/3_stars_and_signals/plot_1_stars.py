"""
Stars: FITS, a Moffat profile, counts of light
==============================================

The atmosphere spreads a star into a Moffat profile. A camera counts photons, so the noise is Poisson noise.
Richardson–Lucy finds the most likely sky for such counts.
"""

import numpy as np
import torch
from astropy.io import fits
from shown import open_folder, prompt, show

import deconv_cli

folder = open_folder()

# %%
# First make the picture: a field with 60 stars and a faint nebula, blurred by ``moffat:4@2.8``, a seeing of 4 pixels.

random = np.random.default_rng(3)
rows, columns = np.mgrid[:160, :160]
sky = 120 * np.exp(-((rows - 90) ** 2 + (columns - 70) ** 2) / (2 * 28**2)) + 20
for flux in 3000 * (1 - random.random(60)) ** -1.1:
    sky[random.integers(6, 154), random.integers(6, 154)] += min(flux, 4e5)
sky[100, 80] += 2e5
sky[100, 85] += 1.5e5  # a double star, five pixels apart
truth = torch.from_numpy(sky)[None]
counts = torch.poisson(
    deconv_cli.forward(truth, deconv_cli.make_kernel("moffat:4@2.8"), boundary="replicate"),
    generator=torch.Generator().manual_seed(0),
)
header = fits.Header({"OBJECT": "simulated field", "GAIN": 1.0})
fits.PrimaryHDU(counts[0].numpy().astype(np.float32), header).writeto(folder / "field.fits")

# %%
# The iteration stops where the estimate best predicts samples that it did not use.

prompt("deconv invert field.fits --kernel moffat:4@2.8 --method richardson-lucy -o sharp.fits")

# %%
# Both pictures on the same logarithmic scale, and the double star magnified:

sharp = fits.getdata(folder / "sharp.fits")
views = {"exposed": np.log(np.clip(counts[0].numpy(), 10, None)), "restored": np.log(np.clip(sharp, 10, None))}
show(views, low=2.5, high=11.0, cmap="inferno")

# %%
show(views, low=2.5, high=11.0, cmap="inferno", crop=(80, 62, 40, 40))

# %%
# The method causes the dark rings around bright stars: do not measure faint neighbors there. The total light stays: the
# sum over the field changes by less than a percent.

print(f"counts in the field: {counts.sum():.0f} exposed, {sharp.sum():.0f} restored")
