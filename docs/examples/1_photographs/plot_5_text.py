"""
A page of text
==============

A page of print is out of focus, and the blur is unknown. This example compares two priors: the total variation, which
expects flat areas with sharp edges, and the default for photographs.
"""

import matplotlib.pyplot as plt
from PIL import Image
from shown import open_folder, prompt, psnr, read, show

folder = open_folder()

# %%
# First make the picture: a page, photographed out of focus and saved as a JPEG.

lines = [
    "The quick brown fox",
    "jumps over the lazy dog.",
    "0123456789  (λ = 0.02)",
    "pack my box with five",
    "dozen liquor jugs.",
]
figure = plt.figure(figsize=(3.6, 2.4), dpi=100)
for i, line in enumerate(lines):
    figure.text(0.05, 0.84 - 0.18 * i, line, fontsize=14, family="serif")
figure.savefig(folder / "page.png", facecolor="#e8e6e0")
plt.close(figure)
Image.open(folder / "page.png").convert("L").save(folder / "page.png")
prompt(
    "deconv forward page.png --kernel disk:3.5 --boundary replicate --noise gaussian:1.5 -o photographed.png --quiet"
)
Image.open(folder / "photographed.png").save(folder / "photographed.jpg", quality=90)

# %%
# The command finds a disk with a radius of 3.4 pixels. The true radius is 3.5.

prompt("deconv kernel estimate photographed.jpg -o blur.npy")
prompt("deconv invert photographed.jpg --kernel blur.npy --prior tv -o tv.png --quiet")
prompt("deconv invert photographed.jpg --kernel blur.npy -o photo.png --quiet")

# %%
truth = read("page.png")
pictures = {"the photograph": read("photographed.jpg"), "total variation": read("tv.png")}
pictures |= {"prior for photographs": read("photo.png"), "the page": truth}
show({f"{name}: {psnr(p, truth):.1f} dB" if p is not truth else name: p for name, p in pictures.items()})

# %%
# The prior for photographs is better here too. The total variation has one weight for the whole page, and at this
# blur the weight must be large.
