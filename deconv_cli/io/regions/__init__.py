"""Large arrays in files, read and written a part at a time."""
