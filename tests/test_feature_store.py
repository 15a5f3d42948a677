"""Features on disk are those of memory; a run that was cut off goes on; nothing of another model gets in."""

import contextlib
import dataclasses
import functools
import itertools
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from zarr.storage import _local

import lvlm_interp as li
from lvlm_interp.errors import InputError, ModelError, OutputError
from lvlm_interp.probes.store import on_disk
from tests import storing
from tests.tiny import tiny_inputs, tiny_llava

ROOT = Path(__file__).resolve().parents[1]

SITES = {"heads": "blocks.*.attn.hook_z", "stream": "blocks.*.hook_resid_post"}


@pytest.fixture(scope="module")
def vlm():
    return li.wrap(tiny_llava())


@pytest.fixture(scope="module")
def examples(vlm):
    return [tiny_inputs(vlm, seed=seed) for seed in range(7)]


@pytest.fixture(scope="module")
def expected(vlm, examples):
    return li.collect_features(vlm, examples, SITES, batch=2)


def same(found, expected):
    return all(
        torch.equal(torch.as_tensor(found[name].values[:]), expected[name].values)
        and found[name].sites == expected[name].sites
        for name in SITES
    )


def test_disk_and_memory_agree(vlm, examples, expected, tmp_path):
    found = li.collect_features(vlm, examples, SITES, batch=2, store=tmp_path / "features")
    assert isinstance(found["heads"].values, zarr.Array) and same(found, expected)
    again = li.collect_features(vlm, examples, SITES, batch=2, store=tmp_path / "features")
    saved = li.load_result(found["heads"].save(tmp_path / "heads.safetensors"))
    assert found["heads"] == again["heads"] == saved == found["heads"] != found["stream"]
    assert found["heads"] != dataclasses.replace(again["heads"], values=again["heads"].values[:] + 1)
    by_head, whole = found["heads"].by_head, expected["heads"].by_head
    assert by_head.shape == tuple(whole.shape) and (by_head[:, 1:3] == whole[:, 1:3].numpy()).all()
    assert (by_head[2:4, :2] == whole[2:4, :2].numpy()).all()


def test_probes_read_them(vlm, examples, expected, tmp_path):
    found = li.collect_features(vlm, examples * 4, SITES, batch=4, store=tmp_path / "features")["heads"]
    memory = li.collect_features(vlm, examples * 4, SITES, batch=4)["heads"]
    labels, quick = [i % 2 for i in range(28)], {"folds": 2, "permutations": 0, "bootstrap": 0, "l2": 1.0}
    from_disk, whole = (li.fit_probes(f.by_head, labels, sites=f.sites, **quick) for f in (found, memory))
    assert torch.equal(from_disk.coef, whole.coef) and from_disk.site_shape == whole.site_shape


class CutOffError(Exception):
    pass


def test_a_run_that_was_cut_off_goes_on(vlm, examples, expected, tmp_path, monkeypatch):
    def some(count):
        yield from examples[:count]
        raise CutOffError

    with pytest.raises(CutOffError):
        li.collect_features(vlm, some(4), SITES, batch=2, store=tmp_path)
    ran = []
    capture = vlm.capture
    monkeypatch.setattr(vlm, "capture", lambda x, *args, **kwargs: ran.append(x) or capture(x, *args, **kwargs))
    assert same(li.collect_features(vlm, iter(examples), SITES, batch=2, store=tmp_path), expected)
    assert len(ran) == 2  # three examples in batches of two, where all would be four
    assert same(li.collect_features(vlm, examples, SITES, store=tmp_path), expected) and len(ran) == 2


def test_what_was_half_written_is_written_again(vlm, examples, expected, tmp_path):
    """The digests come last: rows without one are of no example."""
    li.collect_features(vlm, examples[:4], SITES, batch=2, store=tmp_path)
    array = zarr.open_group(tmp_path, mode="a")["heads"]
    array.resize((6, *array.shape[1:]))
    array[4:] = 99.0
    found = li.collect_features(vlm, examples[:4], SITES, store=tmp_path)["heads"]
    assert found.values.shape[0] == 4
    assert same(li.collect_features(vlm, examples, SITES, batch=2, store=tmp_path), expected)


def test_other_features_are_refused(vlm, examples, tmp_path):
    li.collect_features(vlm, examples[:4], SITES, store=tmp_path / "store")
    with pytest.raises(InputError, match="other examples, from number 2 on"):
        li.collect_features(vlm, [examples[0], *examples[2:]], SITES, store=tmp_path / "store")
    with pytest.raises(InputError, match="4 rows of features, more than the 2 given"):
        li.collect_features(vlm, examples[:2], SITES, store=tmp_path / "store")
    with pytest.raises(InputError, match="other sites"):
        li.collect_features(vlm, examples, {"heads": "blocks.0.attn.hook_z"}, store=tmp_path / "store")
    with pytest.raises(InputError, match="other weights"):
        li.collect_features(li.wrap(tiny_llava(seed=1)), examples, SITES, store=tmp_path / "store")


def test_directories_of_other_things_are_left_alone(vlm, examples, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="holds no features"):
        li.collect_features(vlm, examples, SITES, store=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    for name in ("", "//", "examples", "examples/a", ".places/a"):
        with pytest.raises(InputError, match=f"cannot be called '{name}'"), on_disk(tmp_path, {"sites": {name: ["a"]}}):
            pass
    for name in ("../a", "a//b", "a/", "a/./b", "zarr.json", ".lock", "a\0b"):
        with pytest.raises(InputError, match="cannot be called"), on_disk(tmp_path, {"sites": {name: ["a"]}}):
            pass
    with pytest.raises(InputError, match="'a' and 'a/b': an array holds no other"):
        on_disk(tmp_path, {"sites": {"a/b": ["a"], "c": ["a"], "a": ["a"]}}).__enter__()
    with pytest.raises(InputError, match="no features 'queries'"), on_disk(tmp_path / "new", {"sites": {}}) as kept:
        kept["queries"]


def test_an_array_of_something_else_is_left_alone(tmp_path):
    zarr.create_array(str(tmp_path / "mine"), shape=(3,), dtype="f4")
    with pytest.raises(InputError, match="is a zarr array of something else"):
        on_disk(tmp_path / "mine", {"sites": {"rows": ["a"]}}).__enter__()


def test_a_new_store_is_silent(tmp_path, recwarn):
    with on_disk(tmp_path, {"sites": {"rows": ["a"]}}):
        assert not recwarn.list


def test_a_group_of_something_else_is_left_alone(tmp_path):
    theirs = zarr.open_group(str(tmp_path), mode="w").create_array("rows", shape=(10, 3, 5), dtype="f4", fill_value=7)
    with pytest.raises(InputError, match=r"is a zarr group of something else \('rows'\)"):
        on_disk(tmp_path, {"sites": {"rows": ["a"]}}).__enter__()
    assert zarr.open_group(str(tmp_path))["rows"].shape == theirs.shape and (theirs[:] == 7).all()


# --- killed at any moment ---------------------------------------------------------------------------------------------


class KilledError(Exception):
    pass


def killed(monkeypatch, count, after, run):
    """Run until a number of files were written, and stop before or after the next one is; whether that came."""
    put, written = _local._put, 0

    def counted(*args, **kwargs):
        nonlocal written
        written += 1
        if written > count and not after:
            raise KilledError
        done = put(*args, **kwargs)
        if written > count:
            raise KilledError
        return done

    with monkeypatch.context() as patch:
        patch.setattr(_local, "_put", counted)
        try:
            run()
        except KilledError:
            return True
    return False


@pytest.mark.parametrize("after", [False, True])
def test_a_run_that_is_killed_at_any_file_goes_on(tmp_path, monkeypatch, after):
    """Whatever file was the last to be written, and whether or not it was: all rows are whole in the end."""
    for moment in itertools.count():
        store = tmp_path / str(moment)
        if not killed(monkeypatch, moment, after, functools.partial(storing.fill, store, 6)):
            break
        storing.fill(store, 8)
        storing.check(store, 8)
    assert moment > 10


@pytest.mark.parametrize("kill", range(int(os.environ.get("TEST_KILLS", 2))))
def test_a_process_that_is_killed_leaves_whole_rows(tmp_path, kill):
    """`TEST_KILLS=20` kills twenty."""
    code = f"from tests import storing; storing.fill({str(tmp_path)!r}, 4000, tell=True)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT)
    process.stdout.readline()  # it writes from now on
    time.sleep(0.05 + 0.173 * kill)
    process.kill()
    process.wait()
    storing.fill(tmp_path, storing.rows_in(tmp_path) + 20)
    storing.check(tmp_path, storing.rows_in(tmp_path))


def test_two_processes_do_not_write_to_one_store(tmp_path, vlm, examples):
    code = f"from tests import storing; storing.fill({str(tmp_path)!r}, 10_000, tell=True)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT)
    try:
        process.stdout.readline()
        with pytest.raises(InputError, match="another process is writing"):
            storing.fill(tmp_path, 4)
        with pytest.raises(InputError, match="another process is writing"):
            li.collect_features(vlm, examples, SITES, store=tmp_path)
    finally:
        process.kill()
        process.wait()
    storing.fill(tmp_path, storing.rows_in(tmp_path) + 4)  # what was locked is free again


@pytest.mark.parametrize("lost", ["chunk", "array"])
def test_a_file_that_is_lost_is_not_read_as_zeros(vlm, examples, tmp_path, lost):
    """zarr reads what has no file as the value that arrays are filled with."""
    li.collect_features(vlm, examples, SITES, store=tmp_path)
    held = tmp_path / "heads"
    shutil.rmtree(held) if lost == "array" else next(p for p in (held / "c").rglob("*") if p.is_file()).unlink()
    for given in (examples, examples * 2):
        with pytest.raises(OutputError, match="files of the features 'heads' are gone"):
            li.collect_features(vlm, given, SITES, store=tmp_path)


def test_features_of_zeros_are_whole(vlm, examples, tmp_path):
    """The control: zarr writes no file for what is nothing but the filling."""
    with vlm.visiting({"blocks.1.hook_resid_post": torch.zeros_like}):
        for _ in range(2):
            found = li.collect_features(vlm, examples, {"a": "blocks.1.hook_resid_post"}, store=tmp_path)
    assert (found["a"].values[:] == 0).all()


def test_a_store_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be kept in"):
        storing.fill(tmp_path / "file" / "store", 1)
    with pytest.raises(OutputError, match=r"cannot be kept in .*aaa"):
        storing.fill(tmp_path / ("a" * 300), 1)


# --- one model, one kind of row ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [False, True])
def test_weights_that_change_meanwhile_are_noticed(examples, tmp_path, stored):
    model = li.wrap(tiny_llava())
    weight = model.model.get_output_embeddings().weight

    def changing():
        yield from examples[:3]
        with torch.no_grad():
            weight.mul_(2)
        yield from examples[3:]

    with pytest.raises(InputError, match="weights or settings changed"):
        li.collect_features(model, changing(), SITES, batch=2, store=tmp_path / "store" if stored else None)
    if stored:
        with pytest.raises(InputError, match="other weights"):
            li.collect_features(model, examples, SITES, batch=2, store=tmp_path / "store")


def shifted(value):
    return value + 1


@pytest.mark.parametrize("way", ["visiting", "hook"])
def test_features_of_an_edited_model_stand_in_no_store_of_the_plain_one(examples, tmp_path, way):
    model = li.wrap(tiny_llava())
    collected = functools.partial(li.collect_features, model, sites=SITES, batch=1)  # rows round as in no other batch

    @contextlib.contextmanager
    def edited():
        if way == "visiting":
            with model.visiting({"blocks.0.hook_resid_post": shifted}):
                yield
        else:
            handle = model.decoder.layers[0].register_forward_hook(lambda module, args, output: shifted(output))
            yield
            handle.remove()

    collected(examples[:2], store=tmp_path / "plain")
    with edited():
        with pytest.raises(InputError, match="other edits"):
            collected(examples, store=tmp_path / "plain")
        of_edited = collected(examples, store=tmp_path / "edited")
        assert same(of_edited, collected(examples))
    with pytest.raises(InputError, match="other edits"):
        collected(examples, store=tmp_path / "edited")
    whole = collected(examples, store=tmp_path / "plain")  # what was refused left no trace
    assert same(whole, collected(examples))


def test_a_store_that_does_not_say_is_of_a_plain_model(vlm, examples, expected, tmp_path):
    """As those of older releases."""
    li.collect_features(vlm, examples[:2], SITES, store=tmp_path)
    del zarr.open_group(tmp_path, mode="a").attrs["edits"]
    with vlm.visiting({"blocks.0.hook_resid_post": shifted}), pytest.raises(InputError, match="other edits"):
        li.collect_features(vlm, examples, SITES, store=tmp_path)
    assert li.collect_features(vlm, examples, SITES, store=tmp_path)["heads"].values.shape[0] == len(examples)


def test_an_edit_that_comes_meanwhile_is_noticed(examples):
    model = li.wrap(tiny_llava())

    def changing():
        yield from examples[:3]
        with model.visiting({"blocks.0.hook_resid_post": shifted}):
            yield from examples[3:]

    with pytest.raises(InputError, match="what edits it"):
        li.collect_features(model, changing(), SITES, batch=2)


@pytest.mark.parametrize("batch", [0, -1])
def test_a_batch_is_a_number_of_examples(vlm, examples, batch):
    with pytest.raises(InputError, match="batch is how many examples"):
        li.collect_features(vlm, examples, SITES, batch=batch)


@pytest.mark.parametrize("said", [None, 3])
def test_a_function_says_which_positions(vlm, examples, said):
    with pytest.raises(InputError, match=f"of example 1, counted from 0, it says {said}"):
        li.collect_features(vlm, examples, SITES, positions=lambda x: [0] if x is examples[0] else said)


def test_values_that_are_no_numbers_are_refused(examples, tmp_path):
    model = li.wrap(tiny_llava())
    with torch.no_grad():
        model.model.get_input_embeddings().weight[examples[1].model_inputs["input_ids"][0, -1]] = torch.nan
    with pytest.raises(ModelError, match="NaN for this example, first at"):
        li.collect_features(model, examples, SITES)


def test_any_positions_are_read_in_one_call(vlm, examples, tmp_path):
    found = li.collect_features(vlm, examples[:3], SITES, batch=2, positions="image", store=tmp_path / "store")
    rows = found["stream"].rows
    at = [x.where("image").nonzero().flatten().tolist() for x in examples[:3]]
    assert rows["position"].tolist() == [p for where in at for p in where] and set(rows["role"]) == {"image"}
    assert rows["example"].tolist() == [i for i, where in enumerate(at) for _ in where]
    assert rows["example_id"].nunique() == 3 and found["heads"].values.shape[0] == len(rows)
    for i, x in enumerate(examples[:3]):
        alone = vlm.capture(x, "blocks.1.hook_resid_post", positions="image")["blocks.1.hook_resid_post"][0]
        stream = torch.as_tensor(found["stream"].values[:])[(rows["example"] == i).to_numpy()]
        assert torch.allclose(stream[:, found["stream"].sites.index("blocks.1.hook_resid_post")], alone, atol=2e-4)
    with pytest.raises(InputError, match="other positions"):
        li.collect_features(vlm, examples[:3], SITES, store=tmp_path / "store")


def test_features_of_memory_and_of_disk_are_saved(vlm, examples, tmp_path):
    for store in (None, tmp_path / "store"):
        found = li.collect_features(vlm, examples, SITES, store=store)["heads"]
        read = li.load_result(found.save(tmp_path / "features.safetensors"))
        assert (read.values.numpy() == np.asarray(found.values[:])).all() and read.sites == found.sites
        assert read.rows.equals(found.rows) and read.provenance == found.provenance
        assert read.provenance.weights == vlm.identity and read.provenance.parameters["positions"] == "last"
        assert f"{len(examples)} rows × {len(found.sites)} sites" in repr(found) and len(repr(found)) < 2000
    other = li.collect_features(vlm, examples[:2], SITES)["heads"]
    assert other.provenance.example != found.provenance.example
    with pytest.raises(InputError, match="features of 2 rows"):
        dataclasses.replace(found, rows=other.rows)


def test_positions_may_differ_between_examples(vlm, examples):
    found = li.collect_features(vlm, examples, SITES, positions=lambda x: [x.length - 2, 0])["heads"]
    assert found.rows["position"].tolist() == [p for x in examples for p in (x.length - 2, 0)]
    whole = li.collect_features(vlm, examples, SITES, positions=[-2, 0])["heads"]
    assert torch.equal(found.values, whole.values)
    last = li.collect_features(vlm, examples, SITES)["heads"].rows
    assert last["position"].tolist() == [x.length - 1 for x in examples]
    with pytest.raises(InputError, match="no position"):
        li.collect_features(vlm, examples, SITES, positions=lambda x: [])
    with pytest.raises(InputError, match="of example 0 twice"):
        li.collect_features(vlm, examples, SITES, positions=lambda x: [-1, x.length - 1])


def test_rows_say_what_they_are_of(vlm, examples):
    rows = li.collect_features(vlm, examples[:2], SITES)["heads"].rows
    assert list(rows) == ["example", "example_id", "position", "token", "role"]
    assert rows["example_id"][0] == vlm.provenance("any", examples[0]).example


def test_features_whose_store_is_gone_are_not_saved(vlm, examples, tmp_path):
    found = li.collect_features(vlm, examples, SITES, store=tmp_path / "store")["stream"]
    found.save(tmp_path / "whole.safetensors")
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(OutputError, match="are gone"):
        found.save(tmp_path / "lost.safetensors")
    assert not (tmp_path / "lost.safetensors").exists()
