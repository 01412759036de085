"""File formats; `deconv_cli.parts.CODECS` lists them. Each imports its library when it is used."""
