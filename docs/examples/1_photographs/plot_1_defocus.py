"""
A photograph out of focus, blur unknown
=======================================

You have one JPEG and nothing else. ``--kernel estimate`` finds the blur in the picture and removes it.
"""

from shown import open_folder, prompt, read, show

open_folder()
prompt("deconv invert sample_images/osprey.jpg --kernel estimate -o sharp.jpg")

# %%
# The table names the blur that was found: a disk with a radius of 3.3 pixels. A lens out of focus blurs with a disk.
# The true radius is 3.3 pixels too.

before, after = read("sample_images/osprey.jpg"), read("sharp.jpg")
show({"before": before, "after": after}, columns=1, width=6.0)

# %%
# The head, magnified. Detail coarser than about 2.5 pixels comes from the picture. Finer detail of the feathers comes
# from other photographs, on which the restoration was trained. The table names that width.

show({"before": before, "after": after}, crop=(0, 205, 150, 170))

# %%
# ``deconv kernel estimate`` prints how certain the blur is, and the next best blurs.

prompt("deconv kernel estimate sample_images/osprey.jpg")
