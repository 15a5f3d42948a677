"""The numbers of one word, said in one sentence that claims no more than they do."""

from __future__ import annotations

from collections.abc import Mapping

from lvlm_interp.attribution.definitions import PROMPT, dominant
from lvlm_interp.inputs.view import Box
from lvlm_interp.report.palette import FAINT, SOURCES

AGAINST = -1.0  # nats of credit from which a source is said to speak against a word


def box_text(box: Box) -> str:
    """`(56, 28)–(70, 42)`: two corners in pixels of the original image."""
    left, top, right, bottom = (round(side) for side in box)
    return f"({left}, {top})–({right}, {bottom})"


def percent(share: float) -> str:
    """`66%`; `<1%` and `>99%` where rounding would claim certainty."""
    if 0 < share < 0.01:
        return "<1%"
    return ">99%" if 0.99 < share < 1 else f"{share:.0%}"


def signed(value: float, digits: int = 1) -> str:
    """`+4.5`, `−1.9`, and `0.0` without a sign."""
    shown = f"{value:+.{digits}f}".replace("-", "−")
    return shown if float(f"{value:.{digits}f}") else shown[1:]


def sentence(
    text: str,
    credits: Mapping[str, float],
    shares: Mapping[str, float],
    peak: tuple[Box, float] | None = None,
) -> str:
    """Where one word came from.

    Args:
        text: the word.
        credits: nats of `prior` and each role present, of the value `odds`.
        shares: the positive ones as shares of their sum.
        peak: box of the patch that supports the word most, and by how many nats.
    """
    source, total = dominant(shares), sum(credits.values())
    if source is None or total < 0:
        told = f'"{text}" is not what the model would say: {signed(total)} nats against the words it is compared with'
    else:
        told = f'"{text}"{_origin(source, shares)}' + (_place(peak) if source == "image" else "")
    against = [f"{SOURCES[n].phrase} ({signed(v)} nats)" for n, v in credits.items() if v <= AGAINST]
    return told + (f"; {_listed(against)} spoke against it." if against else ".")


def _origin(source: str, shares: Mapping[str, float]) -> str:
    share = percent(shares[source])
    if source == "prior":
        return f": the language model knew already ({share})"
    if source == "image":
        return f" came {share} from the image"
    prompt = {name: shares[name] for name in PROMPT if shares.get(name, 0.0) > 0}
    if len(prompt) == 1:
        return f" came {share} from the prompt ({SOURCES[source].phrase})"
    parts = ", ".join(f"{SOURCES[name].phrase} {percent(value)}" for name, value in prompt.items())
    return f" came {percent(sum(prompt.values()))} from the prompt ({parts})"


def _place(peak: tuple[Box, float] | None) -> str:
    if peak is None:
        return ""
    box, nats = peak
    if nats < FAINT:
        return ", from no single patch of it alone"
    return f", strongest at the patch {box_text(box)}"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
