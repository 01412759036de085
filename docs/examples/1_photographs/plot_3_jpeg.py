"""
A noisy JPEG
============

High ISO and JPEG compression leave noise that is not white: it is weaker in fine detail than in coarse detail. A
filter for white noise mistakes some of it for detail. ``deconv`` estimates the spectrum of the noise from the file.
"""

from PIL import Image
from shown import open_folder, prompt, psnr, read, show

folder = open_folder()

# %%
# First make the picture: a lens out of focus blurs a sharp portrait in linear light, noise is added, and the result
# is saved as a JPEG of quality 80.

prompt(
    "deconv forward sample_images/astronaut.png --kernel disk:3 --boundary reflect "
    "--noise gaussian:4 -o noisy.png --quiet"
)
Image.open(folder / "noisy.png").save(folder / "noisy.jpg", quality=80)

# %%
# Restore it in three ways. The first command assumes white noise, as most filters do. The second estimates the noise,
# and ``--prior quadratic`` invents no detail. The third is the default for a JPEG.

prompt("deconv invert noisy.jpg --kernel disk:3 --noise white -o white.png --quiet")
prompt("deconv invert noisy.jpg --kernel disk:3 --prior quadratic -o quadratic.png --quiet")
prompt("deconv invert noisy.jpg --kernel disk:3 -o photo.png")

# %%
truth = read("sample_images/astronaut.png")
pictures = {
    "the JPEG": read("noisy.jpg"),
    "as white noise": read("white.png"),
    "noise estimated, quadratic prior": read("quadratic.png"),
    "prior for photographs (default)": read("photo.png"),
}
show({f"{name}: {psnr(picture, truth):.1f} dB": picture for name, picture in pictures.items()}, crop=(20, 60, 150, 150))
