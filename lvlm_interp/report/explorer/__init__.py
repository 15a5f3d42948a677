"""A diagnosis as HTML: one file, or a cell of a notebook. No network, no library.

What is shown is worked out here as plain values; the templates only lay it out, and escape all of it.
"""

from lvlm_interp.report.explorer.cell import fragment
from lvlm_interp.report.explorer.document import page

__all__ = ["fragment", "page"]
