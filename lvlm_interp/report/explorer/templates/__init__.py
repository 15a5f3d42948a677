"""The templates beside this file, and how they are filled in."""

from __future__ import annotations

import functools
from importlib import resources
from typing import Any

import jinja2

from lvlm_interp.shown import printable


def render(name: str, **values: Any) -> str:
    """A template with these values, all of them escaped; characters that a browser would drop are spelled out."""
    return _environment().get_template(name).render(**values)


def text(name: str) -> str:
    """A file as it is."""
    return (resources.files(__name__) / name).read_text(encoding="utf-8")


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(text),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
