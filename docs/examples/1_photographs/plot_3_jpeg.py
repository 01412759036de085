"""
A noisy JPEG
============

High ISO and JPEG compression leave noise that is not white: fine detail carries less of it than coarse detail. A
filter for white noise restores that noise. ``deconv`` estimates the spectrum of the noise from the file.
"""

from PIL import Image
from shown import open_folder, prompt, psnr, read, show

folder = open_folder()

# %%
# A sharp portrait is blurred in linear light by an out-of-focus lens, gets noise, and is saved as a JPEG of quality
# 80.

prompt(
    "deconv forward sample_images/astronaut.png --kernel disk:3 --boundary reflect "
    "--noise gaussian:4 -o noisy.png --quiet"
)
Image.open(folder / "noisy.png").save(folder / "noisy.jpg", quality=80)

# %%
# Three ways to restore it. ``--prior quadratic`` adds nothing to the data. ``--noise white`` is what most filters
# assume. The last line is the default for a JPEG.

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
