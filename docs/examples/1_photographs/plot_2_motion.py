"""
Camera shake
============

The camera moved while the shutter was open. If it moved along a line, two numbers describe the blur: its length and
its angle. ``deconv`` finds them in the picture.
"""

import numpy as np
from PIL import Image
from shown import open_folder, prompt, psnr, read, show

folder = open_folder()

# %%
# First make the picture: a portrait moves by 13 pixels at an angle of 25°, and is saved as a JPEG of quality 92.

prompt(
    "deconv forward sample_images/astronaut.png --kernel motion:13@25 --boundary reflect "
    "--noise gaussian:1 -o moved.png --quiet"
)
Image.open(folder / "moved.png").save(folder / "moved.jpg", quality=92)
prompt("deconv invert moved.jpg --kernel estimate -o sharp.jpg")

# %%
truth = read("sample_images/astronaut.png")
pictures = {"moved": read("moved.jpg"), "restored, motion estimated": read("sharp.jpg")}
show({f"{name}: {psnr(picture, truth):.1f} dB": picture for name, picture in pictures.items()})

# %%
# A path that is not a line
# -------------------------
#
# A hand that trembles draws a curve. If you know the curve, for instance from a point of light in the same picture,
# it is a kernel like any other:

prompt("deconv invert sample_images/camera_blurred.png --kernel sample_images/motion.npy -o known.png --quiet")
show({"shaken": read("sample_images/camera_blurred.png"), "restored with the known path": read("known.png")})

# %%
# If you do not know it, ``--free`` finds the kernel tap by tap. Here are the true path and the path that was found
# in the blurred picture alone:

prompt("deconv kernel estimate sample_images/camera_blurred.png --free --size 19 -o shake.npy --quiet")
found, true = np.load(folder / "shake.npy"), np.load(folder / "sample_images/motion.npy")
n = (found.shape[0] - true.shape[0]) // 2
show({"true path": np.pad(true / true.max(), n), "path found": found / found.max()}, high=1.0, width=5.0)

# %%
# The shape is right, and the left end of the path is too short. On so small a picture that is enough to leave
# stripes. Free kernels need larger pictures with many sharp edges: on five photographs under eight paths, 85 % of
# the paths were found well enough to restore the picture.
