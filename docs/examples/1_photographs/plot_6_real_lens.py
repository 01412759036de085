"""
A page that a real lens blurred
===============================

The other examples blur a sharp picture, so that the truth is known. This page was out of focus in the camera. Nobody
knows the truth, but a reader sees which words are legible again.
"""

from shown import open_folder, prompt, read, show

open_folder()
prompt("deconv invert sample_images/page_out_of_focus.jpg --kernel estimate -o page.png")

# %%
# The aperture of a lens has blades, so its blur is a polygon rather than a disk. A note names the disk that explains
# the picture about as well. It is worth a try: nobody can tell from the numbers which of the two reads better.

prompt("deconv invert sample_images/page_out_of_focus.jpg --kernel disk:9.75 --strength 2 -o disk.png --quiet")
pictures = {
    "as photographed": read("sample_images/page_out_of_focus.jpg"),
    "restored": read("page.png"),
    "a disk instead, smoother": read("disk.png"),
}
show(pictures, columns=1, width=6.0)

# %%
# The first line ends in a name. With the disk it reads "Govindaraju".

show(pictures, columns=1, crop=(20, 260, 110, 437), width=8.0)
