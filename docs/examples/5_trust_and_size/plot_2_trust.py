"""
Where to trust the result
=========================

``deconv`` predicts the error of every pixel without knowing the truth. Here the truth is known, so you can compare.
"""

import numpy as np
import tifffile
from shown import open_folder, prompt, read, show

folder = open_folder()
prompt(
    "deconv invert sample_images/camera_blurred.png --kernel sample_images/motion.npy -o restored.png "
    "--error-map error.tif --trust-mask trust.png --truth sample_images/camera.png"
)

# %%
# The result with its trust mask, and the predicted error beside the real one, smoothed over 6 pixels. You can trust the
# white pixels of the mask: there what lies outside adds little to the error, and the error is smaller than the detail.


def smoothed(picture, width=6):
    """Take the root mean square over a square."""
    window = np.ones(2 * width + 1) / (2 * width + 1)
    for axis in (0, 1):
        picture = np.apply_along_axis(np.convolve, axis, picture, window, "same")
    return np.sqrt(picture)


truth = read("sample_images/camera.png")
restored = read("restored.png")
real = smoothed((restored - truth) ** 2)
predicted = tifffile.imread(folder / "error.tif")
show({"restored": restored, "trust mask": read("trust.png")})

# %%
show({"predicted error": predicted, "real error": real}, high=25.0, cmap="magma")

# %%
# Both maps are bright at the camera and at the stripes on the coat, and dark in the sky.
# The prediction does not cover a wrong kernel. The wrong kernel here makes many samples far too bright or too dark, so
# the tool prints a warning and ends with exit code 3:

prompt("deconv invert sample_images/camera_blurred.png --kernel gaussian:4 -o wrong.png", expect=3)
show({"right kernel": restored, "wrong kernel": read("wrong.png")})
