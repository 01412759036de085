"""Run the command line as `python -m deconv_cli`."""

from deconv_cli.commands.app import main

main()
