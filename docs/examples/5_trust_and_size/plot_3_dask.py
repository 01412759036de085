"""
Larger than memory, on Dask
===========================

``deconv`` restores a picture that does not fit the memory in blocks. It reads each block with a margin around it, the
*halo*. It measures how wide the halo must be, and the error at the seams between blocks.
"""

import logging

import numpy as np
import tifffile
from distributed import LocalCluster
from shown import open_folder, prompt, read, show

# %%
# A mosaic of a photograph imitates a large scan. Dask's workers import this file, so the code is inside
# ``if __name__ == "__main__"``.

if __name__ == "__main__":
    folder = open_folder()
    camera = read("sample_images/camera.png")
    scan = np.block([[camera, camera[:, ::-1]], [camera[::-1], camera[::-1, ::-1]]]).astype(np.float32)
    tifffile.imwrite(folder / "scan.tif", scan)
    prompt("deconv forward scan.tif --kernel gaussian:1.5 --boundary reflect --noise gaussian:1 -o large.tif --quiet")
    prompt("deconv invert large.tif --kernel gaussian:1.5 --lambda 0.01 -o plan.npy --block-size 192 --dry-run")

# %%
# The dry run prints the blocks, the halo and the expected error at the seams. The run itself uses a cluster of two
# workers, which this example starts. On one machine, ``--jobs 2`` does the same without Dask.

if __name__ == "__main__":
    options = {"dashboard_address": ":0", "silence_logs": logging.ERROR}
    with LocalCluster(n_workers=2, threads_per_worker=1, **options) as cluster:
        prompt(
            "deconv invert large.tif --kernel gaussian:1.5 --lambda 0.01 -o blocks.npy --block-size 192 "
            f"--scheduler {cluster.scheduler_address}"
        )

# %%
# Restore the same picture as a whole, and compare. The difference shows no seams.

if __name__ == "__main__":
    prompt("deconv invert large.tif --kernel gaussian:1.5 --lambda 0.01 -o whole.npy --quiet")
    blocks, whole = np.load(folder / "blocks.npy").squeeze(), np.load(folder / "whole.npy").squeeze()
    difference = abs(blocks - whole)
    print(f"largest difference {difference.max():.3f} gray levels of 255")
    show({"restored in blocks": blocks, "difference × 10,000": 10000 * difference})
