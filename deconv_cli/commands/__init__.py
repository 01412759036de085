"""The command line: a file for each command, or for a few commands of `deconv kernel`.

Nothing here imports torch before a command runs.
"""
