"""
A chain of layers back to the picture
=====================================

A strided convolution, a LeakyReLU and another convolution turned a face into an activation of 24 channels.
``--layers`` undoes the whole chain at once.
"""

import torch
from safetensors.torch import load_file
from shown import open_folder, prompt, read, show

folder = open_folder()
activation = load_file(folder / "sample_images/activation.safetensors")["activation"]
print(torch.load(folder / "sample_images/encoder.pt", weights_only=False))
prompt("deconv invert sample_images/activation.safetensors --kernel sample_images/encoder.pt --layers 0..2 -o seen.png")

# %%
# Four of the 24 channels of the activation, and below them the picture computed from all 24.

show({f"channel {c}": activation[c] for c in range(4)}, columns=4, low=-2.0, high=2.0)

# %%
# sphinx_gallery_thumbnail_number = 2  # noqa: ERA001
show({"the input that was found": read("seen.png")}, columns=1, width=3.5)

# %%
# The row *determined* says how much of the picture follows from the activation. With max pooling, or with fewer outputs
# than inputs, it is only a part.
