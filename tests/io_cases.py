"""Files of every format as other programs write them, to be damaged, and headers that promise what is not there."""

import struct

import imagecodecs
import numpy as np
import tifffile
import torch
from PIL import Image
from safetensors.torch import save_file

SPACING = (0.5, 0.2, 0.1)
"""Of stacks along Z, Y and X, in micrometers."""


def ome(path, array, axes="ZYX", spacing=SPACING):
    """Write an OME-TIFF as a microscope does, with sizes, names and times."""
    metadata = {"axes": axes, "TimeIncrement": 2.5, "TimeIncrementUnit": "s"}
    for letter, size in zip("ZYX", spacing, strict=True):
        metadata |= {f"PhysicalSize{letter}": size, f"PhysicalSize{letter}Unit": "µm"}
    if "C" in axes:
        metadata["Channel"] = {"Name": [f"dye {n}" for n in range(array.shape[axes.index("C")])]}
    tifffile.imwrite(path, array, ome=True, photometric="minisblack", metadata=metadata)
    return path


def imagej(path, array, axes="ZYX", spacing=SPACING):
    metadata = {"axes": axes, "spacing": spacing[0], "unit": "um", "finterval": 2.5}
    resolution = (1 / spacing[2], 1 / spacing[1])
    tifffile.imwrite(path, array, imagej=True, resolution=resolution, metadata=metadata)
    return path


def whole_files(folder):
    rng = np.random.default_rng(3)
    stack = rng.integers(0, 255, (4, 64, 64)).astype("uint8")
    rgb = rng.integers(0, 255, (48, 40, 3)).astype("uint8")
    axes = {"axes": "TYX"}
    tifffile.imwrite(folder / "imagej.tif", stack, imagej=True, metadata=axes)
    tifffile.imwrite(folder / "ome.ome.tif", stack, ome=True, photometric="minisblack", metadata=axes)
    tifffile.imwrite(
        folder / "omez.ome.tif", stack, ome=True, photometric="minisblack", metadata=axes, compression="zlib"
    )
    tifffile.imwrite(folder / "zlib.tif", stack, photometric="minisblack", compression="zlib", metadata=axes)
    tifffile.imwrite(folder / "plain.tif", stack, photometric="minisblack", metadata=None)
    tifffile.imwrite(folder / "plainz.tif", stack, photometric="minisblack", metadata=None, compression="zlib")
    tifffile.imwrite(folder / "tiled.tif", stack[0], tile=(16, 16), compression="lzw")
    tifffile.imwrite(folder / "strips.tif", rng.integers(0, 4000, (48, 56)).astype("uint16"), rowsperstrip=8)
    tifffile.imwrite(folder / "big.tif", stack, bigtiff=True, photometric="minisblack")
    frames = [Image.fromarray(frame) for frame in stack]
    frames[0].save(folder / "pillow.tif", save_all=True, append_images=frames[1:])
    Image.fromarray(rgb).save(folder / "a.png")
    Image.fromarray(rgb).save(folder / "a.bmp")
    (folder / "deep.png").write_bytes(imagecodecs.png_encode(rgb.astype("uint16") * 257))
    Image.fromarray(rgb).save(folder / "a.jpg")
    Image.fromarray(rgb).save(folder / "p.jpg", progressive=True)
    Image.fromarray(rgb).save(folder / "a.webp", lossless=True)
    Image.fromarray(rgb).save(folder / "lossy.webp")
    torch.save(torch.from_numpy(stack), folder / "a.pt")
    torch.save(torch.from_numpy(stack), folder / "old.pt", _use_new_zipfile_serialization=False)
    save_file({"image": torch.from_numpy(stack)}, folder / "a.safetensors")
    np.save(folder / "a.npy", stack)
    np.savez(folder / "a.npz", image=stack)
    np.savez_compressed(folder / "z.npz", image=stack)


FILES = [
    *("imagej.tif", "ome.ome.tif", "omez.ome.tif", "zlib.tif", "plain.tif", "plainz.tif", "tiled.tif", "pillow.tif"),
    *("strips.tif", "big.tif"),
    *("a.png", "a.bmp", "deep.png", "a.jpg", "p.jpg", "a.webp", "lossy.webp"),
    *("a.pt", "old.pt", "a.safetensors", "a.npy", "a.npz", "z.npz"),
]


def npy(shape, dtype="<f4"):
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (63 - (len(header) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"1234"
