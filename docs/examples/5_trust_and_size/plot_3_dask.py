"""
Larger than memory, on Dask
===========================

A picture that does not fit the memory is restored in blocks. Each block is read with a halo around it. How wide the
halo has to be is measured, and so is the error at the seams.
"""

import logging

import numpy as np
import tifffile
from distributed import LocalCluster
from shown import open_folder, prompt, read, show

# %%
# A mosaic of a photograph imitates a large scan. Workers of Dask import this file, so the work waits behind a guard.

if __name__ == "__main__":
    folder = open_folder()
    camera = read("sample_images/camera.png")
    scan = np.block([[camera, camera[:, ::-1]], [camera[::-1], camera[::-1, ::-1]]]).astype(np.float32)
    tifffile.imwrite(folder / "scan.tif", scan)
    prompt("deconv forward scan.tif --kernel gaussian:1.5 --boundary reflect --noise gaussian:1 -o large.tif --quiet")
    prompt("deconv invert large.tif --kernel gaussian:1.5 --lambda 0.01 -o plan.npy --block-size 192 --dry-run")

# %%
# The dry run names the blocks, the halo and the expected error at the seams. The run itself, on a cluster of two
# workers that this example starts. On one machine ``--jobs 2`` does the same without Dask.

if __name__ == "__main__":
    options = {"dashboard_address": ":0", "silence_logs": logging.ERROR}
    with LocalCluster(n_workers=2, threads_per_worker=1, **options) as cluster:
        prompt(
            "deconv invert large.tif --kernel gaussian:1.5 --lambda 0.01 -o blocks.npy --block-size 192 "
            f"--scheduler {cluster.scheduler_address}"
        )

# %%
# The same picture as a whole, and the difference. Nothing is to be seen at the seams.

if __name__ == "__main__":
    prompt("deconv invert large.tif --kernel gaussian:1.5 --lambda 0.01 -o whole.npy --quiet")
    blocks, whole = np.load(folder / "blocks.npy").squeeze(), np.load(folder / "whole.npy").squeeze()
    difference = abs(blocks - whole)
    print(f"largest difference {difference.max():.3f} gray levels of 255")
    show({"restored in blocks": blocks, "difference × 10,000": 10000 * difference})
