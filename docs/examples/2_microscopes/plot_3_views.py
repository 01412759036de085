"""
Several views of one object
===========================

A microscope blurs far more along its axis than across it. A second view from the side has the detail that the first
one lacks. ``deconv`` computes one object from both views.
"""

import numpy as np
import tifffile
import torch
from shown import SAMPLES, show

import deconv_cli

stack = torch.from_numpy(tifffile.imread(SAMPLES / "pollen.ome.tif").astype(np.float32))
scene = (stack / stack.max())[None, :, 20:68, 20:68]

# %%
# One kernel is long along Z. The other is the same, turned to be long along X. A kernel of shape
# ``(views, 1, D, H, W)`` turns one object into two stacks.

upright = deconv_cli.make_kernel("gaussian3d:2.5@0.8", size=(25, 25, 25)).float()
from_the_side = upright.permute(2, 1, 0)
kernels = torch.stack([upright, from_the_side])[:, None]
views = deconv_cli.forward(scene, kernels, dimensions=3, boundary="reflect")
views = views + 0.01 * torch.randn(views.shape, generator=torch.Generator().manual_seed(0))

# %%
# ``invert`` takes all views and gives one object. One view alone, for comparison:

options = {"dimensions": 3, "boundary": "reflect", "lam": "auto", "penalty": "gradient"}
both = deconv_cli.invert(views, kernels, **options)
one = deconv_cli.invert(views[:1], kernels[:1], **options)
for name, result in {"one view": one, "both views": both}.items():
    print(f"{name}: error {float((result.image - scene).norm() / scene.norm()):.0%}")

# %%
# Cuts along the axis. In the view from above, structures that lie above each other run together.

row = 24
cuts = {"view from above": views[0, :, row], "view from the side": views[1, :, row], "truth": scene[0, :, row]}
cuts |= {"restored from one": one.image[0, :, row], "restored from both": both.image[0, :, row]}
show(cuts, columns=3, high=1.0, cmap="magma")
