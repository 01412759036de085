"""How the site is built: `sphinx-build -W docs build/site`, without a network."""

import logging
import os
import sys
import warnings
from pathlib import Path

import matplotlib

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE / "examples")]
matplotlib.use("agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # an example is to run in a minute on one core

import deconv_cli  # noqa: E402

project = "deconv"
author = "The deconv authors"
copyright = "the deconv authors, Apache-2.0"
release = version = deconv_cli.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "command_reference",
    "gallery_links",
    "native_math",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build", "_static", "_ext", "examples"]
myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
default_role = "literal"  # of docstrings, which are written with single backticks
nitpicky = False

html_theme = "furo"
html_title = "deconv"
html_static_path = ["_static"]
html_css_files = ["site.css"]
smartquotes = False  # a double dash begins an option
html_show_sphinx = False
html_show_sourcelink = False
html_copy_source = False
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True

html_math_renderer = "mathml"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_use_rtype = False

sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"/plot_",
    "ignore_pattern": r"(shown|__init__)\.py",
    "within_subsection_order": "FileNameSortKey",
    "remove_config_comments": True,
    "capture_repr": (),
    "show_memory": False,
    "write_computation_times": False,  # their pages would load scripts from elsewhere
    "show_signature": False,
    "download_all_examples": False,
    "abort_on_example_error": False,
    "only_warn_on_example_error": False,
    "min_reported_time": 0,
    "matplotlib_animations": False,
    "image_srcset": ["2x"],
    "thumbnail_size": (400, 280),
    "reset_modules": ("matplotlib",),
}

warnings.filterwarnings("ignore", message="Matplotlib is currently using agg")
logging.getLogger().addHandler(logging.NullHandler())  # or a package of the theme prints every note of every library
