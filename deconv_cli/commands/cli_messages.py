"""Sentences of the library in the words of the command line."""

from deconv_cli.settings import with_options as with_options
