"""The page and the notebook's cell: safe, whole, and true to the numbers."""

import dataclasses
import re
from importlib import resources

import numpy as np
import pytest
import torch

from lvlm_interp.report import explorer
from lvlm_interp.report.explorer.section import section
from lvlm_interp.report.palette import SUPPORTS
from tests.made import made, with_odds
from tests.pages import Page

HOSTILE = """<script>alert("1")</script><img src=x onerror='alert(2)'> & "quoted" 'single' {{ 7*7 }} $5$"""
LONG = tuple(f" word{i}" for i in range(40))


def test_everything_from_outside_is_escaped():
    hostile = made(
        tokens=tuple(HOSTILE),
        question=HOSTILE,
        context=HOSTILE,
        system=HOSTILE,
        answer=HOSTILE,
        provenance=dataclasses.replace(made().provenance, model=HOSTILE),
    )
    for text in (explorer.page(hostile, title=HOSTILE), hostile._repr_html_()):
        page = Page(text)
        assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on")]
        assert all(attributes["src"].startswith("data:image/") for attributes in page.of("img"))
        assert HOSTILE in "".join(page.texts)
    scripts = [attributes.get("type") for attributes in Page(explorer.page(hostile)).of("script")]
    assert scripts == ["application/json", None]
    assert not Page(hostile._repr_html_()).of("script")


def test_characters_that_a_browser_drops_are_spelled_out():
    text = explorer.page(made(tokens=("a\x1b[31mb", "c\x00d"), question="\x07What?"))
    assert not set(text) & {chr(n) for n in range(32) if chr(n) not in "\t\n"}
    assert "c\\x00d" in text and "\\x07What?" in text


def test_the_page_needs_no_network_and_runs_one_script():
    page = explorer.page([made(), made(seed=1)])
    assert not re.search(
        r"""(?:src|href|url)\s*[=(]\s*["']?(?:https?:)?//""", page
    ) and "http" not in page.lower().replace("http-equiv", "")
    policy = next(a["content"] for a in Page(page).of("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "sha256-" in policy
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert script == (resources.files("lvlm_interp.report.explorer.templates") / "page.js").read_text(encoding="utf-8")


def test_the_overlay_uses_the_pixel_boxes():
    one = made()
    tiles = Page(explorer.page(one)).of("rect", "tile")
    found = [[float(tile[side]) for side in ("x", "y", "width", "height")] for tile in tiles]
    left, top, right, bottom = one.patches.boxes.reshape(-1, 4).T
    expected = torch.stack([left, top, right - left, bottom - top], 1)
    assert torch.allclose(torch.tensor(found), expected, atol=1e-3)
    values = one.patches.values[0].flatten()
    assert int(np.argmax([float(t["fill-opacity"]) for t in tiles])) == int(values.abs().argmax())
    assert {t["fill"] for t, v in zip(tiles, values, strict=True) if v > 0} == {SUPPORTS}


@pytest.mark.parametrize("tokens", [("Yes",), (".",), ("\n", "Yes"), LONG])
def test_answers_of_any_length(tokens, tmp_path):
    one = made(tokens=tokens)
    page = Page(explorer.page(one))
    assert len(page.of("button", "chip")) == len(one.words) == len(page.of("article"))
    assert len([a for a in page.of("article") if "hidden" not in a]) == 1  # one word shows where scripts do not run
    assert one._repr_html_() and len(one.to_frame()) == len(one.words)
    assert len(one.sentences) == sum(word.strip(".\n") != "" for word in tokens)


def test_shown_first_is_the_word_that_the_image_changes_most():
    one = made(tokens=LONG)
    (shown,) = [a["id"] for a in Page(explorer.page(one)).of("article") if "hidden" not in a]
    assert shown == f"d1-w{int(one.contrast.delta_nats.argmax())}"


def test_bars_stay_in_their_tracks():
    for bars in (with_odds(made(("Yes",)), *v) for v in ((1, 2, 3, 4), (-1, -2, -3, -4), (0, 0, 0, 0), (-5, 9, 2, 1))):
        word = section(bars, "d")["words"][0]
        for bar in word["values"][0]["bars"]:
            assert float(bar["left"]) >= 0 and float(bar["left"]) + float(bar["width"]) <= 100.01
