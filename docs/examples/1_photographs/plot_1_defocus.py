"""
A photograph out of focus, blur unknown
=======================================

You have one JPEG and nothing else. ``--kernel estimate`` finds the blur in the picture and removes it.
"""

from shown import open_folder, prompt, read, show

open_folder()
prompt("deconv invert sample_images/osprey.jpg --kernel estimate -o sharp.jpg")

# %%
# The table names the blur that it found: a disk of 3.3 pixels. A lens out of focus blurs with a disk, and the true
# radius is 3.3 pixels.

before, after = read("sample_images/osprey.jpg"), read("sharp.jpg")
show({"before": before, "after": after}, columns=1, width=6.0)

# %%
# The head, magnified. The feathers come from the picture and, where they are finer than about 2.5 pixels, from what
# the prior learned on other photographs. The table names that width.

show({"before": before, "after": after}, crop=(0, 205, 150, 170))

# %%
# ``deconv kernel estimate`` shows how sure it is, and which other blurs it considered.

prompt("deconv kernel estimate sample_images/osprey.jpg")
