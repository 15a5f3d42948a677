"""Every error that the package raises on purpose.

Each says what was asked, what was found, and what would work; each is a `LvlmInterpError`, so that a
script can catch them all, and the command line can print them without a traceback.
"""

from lvlm_interp.shown import printable


class LvlmInterpError(Exception):
    """Base of all errors of this package. What others named or wrote is in its text so that no terminal obeys it."""

    def __str__(self) -> str:
        return printable(super().__str__())


class ImageError(LvlmInterpError, ValueError):
    """An image is missing, broken, empty or animated."""


class InputError(LvlmInterpError, ValueError):
    """A question, context or answer cannot be made into model inputs."""


class ArgumentError(InputError):
    """An argument of the wrong kind."""


class MisfitError(InputError):
    """Tensors that do not fit each other, or the model that is called with them."""


class ModelError(LvlmInterpError, ValueError):
    """A model cannot be found, opened or read."""


class MissingError(LvlmInterpError, KeyError):
    """A name under which there is nothing."""

    def __str__(self) -> str:  # KeyError would show the repr
        return printable(self.args[0]) if self.args else ""


class SiteError(MissingError):
    """A site name matches nothing, or a site did not fire."""


class VisibilityError(LvlmInterpError, ValueError):
    """A visibility matrix or a role that does not fit the inputs."""


class DownloadError(LvlmInterpError, OSError):
    """A file of the reference model cannot be fetched, or is not the one expected."""


class OutputError(LvlmInterpError, OSError):
    """Results cannot be written."""


class SceneError(LvlmInterpError, ValueError):
    """A scene that cannot be drawn."""


class LvlmInterpWarning(UserWarning):
    """What is done as asked, and may not mean what it seems to."""

    def __str__(self) -> str:
        return printable(super().__str__())
