"""Results made readable: a diagnosis, figures, HTML, and files to keep."""

# Whatever is imported from here, a diagnosis knows how to show itself in a notebook: the explorer registers that.
from lvlm_interp.report import explorer

__all__ = ["explorer"]
