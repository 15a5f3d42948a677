"""What a diagnosis says, how it is drawn, and what is written."""

import base64
import dataclasses
import errno
import inspect
import io
import json
import math
import re
from html.parser import HTMLParser
from importlib import resources

import numpy as np
import pytest
import torch
from PIL import Image

import lvlm_interp as li
from lvlm_interp.attribution.credit import shares
from lvlm_interp.errors import ImageError, InputError, OutputError
from lvlm_interp.inputs.example import Answer
from lvlm_interp.report import diagnosis as diagnosing
from lvlm_interp.report import explorer, export, figures, pictures, sentences
from lvlm_interp.report.palette import SUPPORTS
from tests.made import made, made_map, with_odds

HOSTILE = """<script>alert("1")</script><img src=x onerror='alert(2)'> & "quoted" 'single' {{ 7*7 }} $5$"""
LONG = tuple(f" word{i}" for i in range(40))


@pytest.fixture(scope="module")
def banana(reference):
    from lvlm_interp.reference import make_scene

    scene = make_scene(2, objects=["banana"], colors=["purple"])
    return li.diagnose(reference, scene.image, "What color is the banana?")


class Page(HTMLParser):
    """The tags and texts of a page, as a browser would read them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.inside = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside.append(tag)

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data):
        if self.inside[-1:] not in (["script"], ["style"]):
            self.texts.append(data)

    def of(self, tag, kind=None):
        return [a for t, a in self.tags if t == tag and (kind is None or kind in a.get("class", "").split())]


# --- the diagnosis --------------------------------------------------------------------------------


def test_the_purple_banana(banana):
    """The answer is seen, not known: the banana is purple in the picture and yellow everywhere else."""
    assert banana.answer == "Purple." and banana.answer_generated and banana.answer_finished
    assert banana.words == ("Purple", ".")
    purple, stop = banana.reports
    assert purple.source == "image" and purple.odds["image"] > purple.odds["prior"]
    assert sum(purple.credits.values()) == pytest.approx(purple.odds["total"], abs=1e-4)
    with_image, without = purple.likely
    assert with_image > without and math.log(with_image / without) == pytest.approx(purple.delta_nats, abs=1e-4)
    assert len(banana.sentences) == 1 and banana.sentences[0].startswith('"Purple" came ')
    assert not stop.word.is_content


def test_a_diagnosis_says_what_the_methods_say(reference, banana):
    x = reference.prepare(
        "What color is the banana?", banana.image, answer=Answer("Purple.", banana_ids(banana, reference))
    )
    row = banana.to_frame().iloc[0]
    contrast, credit = li.contrast(reference, x), li.credit(reference, x, unit="word")
    assert row["delta_nats"] == pytest.approx(float(contrast.delta_nats[:2].sum()), abs=1e-4)
    assert row["image"] == pytest.approx(float(credit.image[0]), abs=1e-4)
    assert row["full_prior"] == pytest.approx(float(credit.with_value("full").prior[0]), abs=1e-4)
    assert row["peak_nats"] == pytest.approx(float(li.attribute(reference, x).values[:2].sum(0).max()), abs=1e-4)


def banana_ids(banana, reference):
    return reference.answered(reference.prepare("Q?", banana.image), banana.answer).answer_ids.tolist()


def test_given_answer_context_and_system(reference, banana):
    found = li.diagnose(reference, banana.image, "What is it?", "Tom", "Its name is Tom.", "Be brief.", against=["Max"])
    assert (found.answer_generated, found.context, found.system) == (False, "Its name is Tom.", "Be brief.")
    assert list(found.reports[0].credits) == ["prior", "question", "context", "system", "image"]
    assert found.reports[0].alternatives == ("Max",)
    assert "Its name is Tom." in explorer.page(found)


def test_an_answer_that_is_cut_off_is_said_to_be(reference, banana, monkeypatch):
    monkeypatch.setattr(reference, "generate", lambda x, most: Answer("Purple", [28353, 1072][:most], finished=False))
    found = li.diagnose(reference, banana.image, "What color is it?", max_new_tokens=1)
    assert not found.answer_finished and "cut off" in explorer.page(found) and "Cut off" in found._repr_html_()
    monkeypatch.setattr(reference, "generate", lambda x, most: Answer("", [], finished=True))
    with pytest.raises(InputError, match="answered with nothing"):
        li.diagnose(reference, banana.image, "What color is it?")


def test_an_image_without_a_grid_has_no_map(reference, banana, monkeypatch, tmp_path):
    def no_grid(*args, **kwargs):
        raise ImageError("its tokens have no place in the picture")

    monkeypatch.setattr(diagnosing, "attribute", no_grid)
    monkeypatch.setattr(diagnosing, "credit", lambda *args, **kwargs: banana.credit)
    found = li.diagnose(reference, banana.image, "What color is the banana?", "Purple.")
    assert found.patches is None and found.to_frame()["peak_left"].isna().all()
    page = explorer.page(found)
    assert "No heatmap: its tokens have no place" in page and not Page(page).of("rect")
    assert "No heatmap" in found._repr_html_()
    export.write(found, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.png"))
    with np.load(tmp_path / "out" / "heatmaps.npz", allow_pickle=False) as arrays:
        assert arrays["values"].shape == (2, 0, 0)


def test_words_are_decoded_as_wholes(reference, banana):
    """One token may hold a part of a letter."""
    x = reference.prepare("What is it?", banana.image, answer="日本 café.")
    assert "�" in "".join(x.answer_tokens)
    assert diagnosing._texts(reference, x) == ("日本", "café", ".")


def test_save_and_load(tmp_path):
    before = made(context="Some context.", roles=("question", "context", "image"))
    after = li.Diagnosis.load(before.save(tmp_path / "d.safetensors"))
    assert torch.equal(after.picture, before.picture) and torch.equal(after.credit.odds, before.credit.odds)
    assert after.credit.odds.dtype == torch.float64
    assert after.words == before.words and after.provenance == before.provenance
    assert after.sentences == before.sentences and explorer.page(after) == explorer.page(before)
    without = li.Diagnosis.load(made(patches=None, no_map="none").save(tmp_path / "n.safetensors"))
    assert without.patches is None and without.no_map == "none"
    with pytest.raises(OutputError, match="not a PatchMap"):
        li.PatchMap.load(tmp_path / "d.safetensors")


def test_once_asked_the_question_is_always_visible():
    """Coalition 1 of (question, image) sees the question alone, coalition 3 sees both."""
    asked = with_odds(made(("Yes",)), 1.0, 2.0, 3.0, 5.0).reports[0].asked
    assert asked == pytest.approx({"prior": 2.0, "image": 3.0, "total": 5.0})


def test_to_dict_is_json():
    told = json.loads(json.dumps(made().to_dict(), allow_nan=False))
    assert told["words"] == ["Purple", "."] and told["image"]["size"] == [60, 40] and "picture" not in told
    assert len(told["credit"]["odds"][0]) == 4 and told["by_word"][0]["word"] == "Purple"
    assert told["provenance"]["method"] == "diagnosis"


# --- sentences ------------------------------------------------------------------------------------


def told(credits, peak=None):
    return sentences.sentence("Red", credits, shares(credits), peak)


@pytest.mark.parametrize(
    ("credits", "expected"),
    [
        ({"prior": 3.0, "question": 1.0, "image": 0.0}, '"Red": the language model knew already (75%).'),
        ({"prior": 1.0, "question": 0.0, "image": 3.0}, '"Red" came 75% from the image.'),
        ({"prior": 0.0, "question": 4.0, "image": 0.0}, '"Red" came 100% from the prompt (the question).'),
        (  # two halves of the prompt outweigh the image, though each is less
            {"prior": 0.0, "question": 3.0, "context": 3.0, "image": 4.0},
            '"Red" came 60% from the prompt (the question 30%, the context 30%).',
        ),
        (
            {"prior": -2.0, "question": 1.0, "image": 3.0},
            '"Red" came 75% from the image; what the language model knew (−2.0 nats) spoke against it.',
        ),
        (
            {"prior": 1.0, "question": 0.0, "image": -3.0},
            '"Red" is not what the model would say: −2.0 nats against the words it is compared with; '
            "the image (−3.0 nats) spoke against it.",
        ),
    ],
)
def test_sentences(credits, expected):
    assert told(credits) == expected


def test_a_sentence_names_a_patch_only_if_one_matters():
    seen, box = {"prior": 0.0, "question": 0.0, "image": 1.0}, (56.0, 28.0, 70.0, 42.0)
    assert told(seen, (box, 0.5)) == '"Red" came 100% from the image, strongest at the patch (56, 28)–(70, 42).'
    assert "no single patch" in told(seen, (box, 0.001))
    assert "patch" not in told({"prior": 1.0, "image": 0.0}, (box, 0.5))


def test_numbers_do_not_claim_certainty():
    assert [sentences.percent(p) for p in (0, 0.001, 0.5, 0.999, 1)] == ["0%", "<1%", "50%", ">99%", "100%"]
    assert [sentences.signed(v) for v in (1.26, -1.26, 0.01, -0.01)] == ["+1.3", "−1.3", "0.0", "0.0"]


# --- figures --------------------------------------------------------------------------------------


def pixels(axes, dpi=100):
    """The drawn figure, and where a point of the data stands in it."""
    stream = io.BytesIO()
    axes.figure.savefig(stream, format="png", dpi=dpi)
    drawn = np.asarray(Image.open(stream).convert("RGB")).astype(int)

    def at(x, y):
        column, row = axes.transData.transform((x, y)) * dpi / axes.figure.dpi
        return drawn[drawn.shape[0] - 1 - round(row), round(column)]

    return at


@pytest.mark.parametrize("hot", [(0, 0), (0, 2), (1, 1)])
def test_the_hottest_patch_is_drawn_where_its_box_is(hot):
    patches = made_map(("cat",), torch.zeros)
    patches.values[0][hot] = 2.0
    axes = figures.heatmap(patches, picture=Image.new("RGB", (60, 40), "white"))
    at = pixels(axes)
    for row, column in np.ndindex(2, 3):
        left, top, right, bottom = patches.boxes[row, column].tolist()
        red, _, blue = at((left + right) / 2, (top + bottom) / 2)
        assert (red - blue > 100) == ((row, column) == hot)  # orange, and white elsewhere


def test_what_speaks_against_is_purple_and_scales_are_symmetric():
    patches = made_map(("cat",), torch.zeros)
    patches.values[0, 0, 0], patches.values[0, 1, 2] = -2.0, 1.0
    axes = figures.heatmap(patches, picture=Image.new("RGB", (60, 40), "white"))
    red, green, blue = pixels(axes)(10, 10)
    assert blue > red > green
    assert axes.collections[0].get_clim() == (-2.0, 2.0)
    assert "nats" in axes.figure.axes[1].get_ylabel()


def test_heatmap_is_over_the_picture_and_checks_it():
    patches = made_map(("cat",), torch.zeros)
    half = Image.new("RGB", (60, 40), "white")
    half.paste("black", (0, 0, 30, 40))
    at = pixels(figures.heatmap(patches, picture=half, fade=0.0))
    assert at(5, 20).tolist() == [0, 0, 0] and at(55, 20).tolist() == [255, 255, 255]
    with pytest.raises(InputError, match="60, 40"):
        figures.heatmap(patches, picture=Image.new("RGB", (61, 40)))
    with pytest.raises(InputError, match="no token 1"):
        figures.heatmap(patches, 1)
    assert figures.heatmap(patches).get_xlabel() == "pixels of the original image"
    unknown = made_map(("cat",), torch.zeros, size=(3, 2))  # as `attribute` makes it of processed pixels
    assert figures.heatmap(unknown).get_xlabel() == "patches"


def test_a_faded_picture_has_no_colours_of_its_own():
    purple = Image.new("RGB", (60, 40), "white")
    purple.paste("#b020f0", (10, 10, 30, 30))
    pale = np.asarray(pictures.faded(purple)).astype(int)
    assert (pale == pale[..., :1]).all() and pale.min() > 100 and pale[20, 20, 0] < pale[0, 0, 0] - 30
    assert pictures.faded(purple, 0.0) is purple


def test_large_pictures_are_embedded_smaller():
    uri = pictures.embedded(Image.effect_noise((3000, 1500), 90).convert("RGB"), 1024)
    assert uri.startswith("data:image/jpeg;base64,")
    assert Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).size == (1024, 512)


def test_credit_bars_add_up():
    split = made(roles=("question", "context", "image")).credit
    axes = figures.credit_bars(split)
    bars = [patch for patch in axes.patches if patch.get_height() < 1]
    drawn = sum(np.array([bar.get_width() for bar in bars]).reshape(4, 2))
    assert drawn == pytest.approx(split.total.numpy(), abs=1e-6)
    assert axes.lines[0].get_xdata() == pytest.approx(split.total.numpy())
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "Prior",
        "Question",
        "Context",
        "Image",
        "Total",
    ]


def test_bars_of_players_that_are_no_roles():
    """Parts of one role have its colour, ever paler, and their own names; the unit is the value's."""
    import dataclasses

    split = made(roles=("question", "context", "image")).credit
    split = dataclasses.replace(
        split,
        players=("question", "sentence 0", "sentence 1"),
        player_roles=("question", "context", "context"),
        units=("logits", "nats"),
    )
    axes = figures.credit_bars(split)
    labels = {text.get_text(): bar for text, bar in zip(*legend_of(axes), strict=True)}
    assert list(labels) == ["Prior", "Question", "sentence 0", "sentence 1", "Total"]
    colors = [labels[name].get_facecolor()[:3] for name in ("Question", "sentence 0", "sentence 1")]
    assert len({*colors}) == 3 and sum(colors[2]) > sum(colors[1])
    assert axes.get_xlabel().startswith("logits")


def legend_of(axes):
    legend = axes.get_legend()
    return legend.get_texts(), legend.legend_handles


def test_contrast_bars_and_given_axes():
    contrast = made(tokens=("$x$", " <b>", ".")).contrast  # dollars are text, not mathematics
    given = figures.contrast_bars(contrast).figure.add_subplot()
    assert figures.contrast_bars(contrast, given, quantity="delta") is given and "logits" in given.get_xlabel()
    pixels(given)
    with pytest.raises(InputError, match="got 'hellinger'"):
        inspect.unwrap(figures.contrast_bars)(contrast, quantity="hellinger")  # without the tests' own type checks


# --- the page -------------------------------------------------------------------------------------


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


def test_the_page_needs_no_network_and_runs_one_script():
    page = explorer.page([made(), made(seed=1)])
    assert not re.search(
        r"""(?:src|href|url)\s*[=(]\s*["']?(?:https?:)?//""", page
    ) and "http" not in page.lower().replace("http-equiv", "")
    policy = next(a["content"] for a in Page(page).of("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "sha256-" in policy
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert script == (resources.files("lvlm_interp.report") / "templates" / "page.js").read_text(encoding="utf-8")


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
        word = explorer._section(bars, "d")["words"][0]
        for bar in word["values"][0]["bars"]:
            assert float(bar["left"]) >= 0 and float(bar["left"]) + float(bar["width"]) <= 100.01


# --- files ----------------------------------------------------------------------------------------


def test_written_files(tmp_path):
    one = made()
    assert export.write(one, tmp_path / "new" / "out") == tmp_path / "new" / "out" / "report.html"
    names = {path.name for path in (tmp_path / "new" / "out").iterdir()}
    assert names == {"report.html", "diagnosis.json", "tokens.csv", "heatmaps.npz", "00-purple.png"}
    out = tmp_path / "new" / "out"
    assert json.loads((out / "diagnosis.json").read_text())["answer"] == "Purple."
    assert (out / "tokens.csv").read_text().startswith("word,prior,question,image,total,")
    with np.load(out / "heatmaps.npz", allow_pickle=False) as arrays:
        assert arrays["words"].tolist() == ["Purple", "."] and arrays["values"].shape == (2, 2, 3)
        assert arrays["boxes"].shape == (2, 3, 4) and arrays["size"].tolist() == [60, 40]
        assert not any(arrays[name].dtype == object for name in arrays)
    assert Image.open(out / "00-purple.png").format == "PNG"


def test_several_share_a_page(tmp_path):
    export.write([made(), made(question="Where?")], tmp_path / "out", title="Two")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"report.html", "01-what-color-is-it", "02-where"}
    assert (tmp_path / "out" / "02-where" / "00-purple.png").is_file()
    assert len(Page((tmp_path / "out" / "report.html").read_text()).of("section", "diagnosis")) == 2


def test_what_is_there_is_refused_and_kept(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "report.html").write_text("old")
    with pytest.raises(OutputError, match="not empty"):
        export.write(made(), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt", "report.html"]
    export.write(made(), tmp_path, force=True)
    assert (tmp_path / "notes.txt").read_text() == "mine" and "<html" in (tmp_path / "report.html").read_text()
    with pytest.raises(OutputError, match="is a file"):
        export.write(made(), tmp_path / "notes.txt")
    (tmp_path / "tokens.csv").unlink()
    (tmp_path / "tokens.csv").mkdir()
    with pytest.raises(OutputError, match="is a directory"):
        export.write(made(), tmp_path, force=True)


@pytest.mark.parametrize("there", [True, False])
def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch, there):
    out = tmp_path / "deep" / "out"
    if there:
        out.mkdir(parents=True)
    write_bytes = export.Path.write_bytes

    def full(path, data):
        if path.name == "heatmaps.npz":
            write_bytes(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_bytes(path, data)

    monkeypatch.setattr(export.Path, "write_bytes", full)
    with pytest.raises(OutputError, match="No space left"):
        export.write(made(), out)
    assert list(out.iterdir()) == [] if there else list(tmp_path.iterdir()) == []


def test_file_names_are_plain():
    assert [export.slug(t) for t in ("Purple", "../../etc/passwd", "日本", "Café!", "a" * 90)] == [
        "purple",
        "etc-passwd",
        "word",
        "cafe",
        "a" * 40,
    ]
