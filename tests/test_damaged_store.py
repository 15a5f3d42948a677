"""Whatever becomes of the files of a store: what is read of it are the numbers that were written, or an error says
which store, which features, and what to remove."""

import copy
import functools
import shutil

import numpy as np
import pytest
import torch
import zarr

import lvlm_interp as li
from lvlm_interp.errors import InputError, OutputError
from tests import storing
from tests.tiny import tiny_inputs, tiny_llava

SITES = {"stream": "blocks.*.hook_resid_post"}
QUICK = {"folds": 2, "permutations": 0, "bootstrap": 0, "l2": 1.0}


def turned(file):
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 1
    file.write_bytes(whole)


DAMAGES = {
    "a turned bit": turned,
    "half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "nothing": lambda file: file.write_bytes(b""),
    "no file": lambda file: file.unlink(),
    "a directory": lambda file: (file.unlink(), file.mkdir()),
}
READERS = {
    "slicing": lambda found: found.values[:],
    "a row": lambda found: found.values[0],
    "a number": lambda found: found.values[1, 0, 0],
    "numpy": lambda found: np.asarray(found.values),
    "oindex": lambda found: found.values.oindex[[0, 2]],
    "vindex": lambda found: found.values.vindex[np.ones(found.values.shape, bool)],
    "coordinates": lambda found: found.values.vindex[[0, 1], [0, 0], [2, 1]],
    "blocks": lambda found: found.values.blocks[0],
    "by head": lambda found: found.by_head[:, 0:1],
    "a copy": lambda found: copy.deepcopy(found).values[:],
    "probes": lambda found: li.fit_probes(found.by_head, [0, 1, 0, 1, 0, 1], sites=found.sites, **QUICK),
}


@pytest.fixture(scope="module")
def vlm():
    return li.wrap(tiny_llava())


@pytest.fixture(scope="module")
def examples(vlm):
    return [tiny_inputs(vlm, seed=seed) for seed in range(6)]


@pytest.fixture(scope="module")
def whole(vlm, examples, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "store"
    li.collect_features(vlm, examples, SITES, store=path)
    return path


@pytest.fixture
def store(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "store")


def first_chunk(store, name="stream"):
    return min(file for file in (store / name / "c").rglob("*") if file.is_file())


def says_what_to_do(store, name="'stream'"):
    return rf"^\S*{store.name} is damaged: .*{name}.*remove the directory \S*{store.name}, and collect anew"


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("read", READERS)
def test_no_way_of_reading_gives_other_numbers(vlm, examples, store, damage, read):
    found = li.collect_features(vlm, examples, SITES, store=store)["stream"]
    READERS[read](found)
    DAMAGES[damage](first_chunk(store))
    with pytest.raises(OutputError, match=says_what_to_do(store)):
        READERS[read](found)


@pytest.mark.parametrize("damage", DAMAGES)
def test_nothing_damaged_is_saved_or_gone_on_with(vlm, examples, store, tmp_path, damage):
    found = li.collect_features(vlm, examples, SITES, store=store)["stream"]
    DAMAGES[damage](first_chunk(store))
    with pytest.raises(OutputError, match=r"'stream'.*remove the directory"):
        found.save(tmp_path / "lost.safetensors")
    assert not (tmp_path / "lost.safetensors").exists()
    with pytest.raises(OutputError, match=says_what_to_do(store)):
        li.collect_features(vlm, [*examples, examples[0]], SITES, store=store)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    "file",
    ["zarr.json", "stream/zarr.json", "examples/zarr.json", "examples/c/0", ".places/stream/zarr.json"],
)
def test_whatever_file_is_damaged(vlm, examples, store, damage, file):
    """Either it is refused, or what it told is known without it."""
    before = li.collect_features(vlm, examples, SITES)["stream"].values
    DAMAGES[damage](store / file)
    found, said = outcome(lambda: li.collect_features(vlm, examples, SITES, store=store)["stream"])
    if said is None:
        assert torch.equal(torch.as_tensor(found.values[:]), before)
    else:
        assert str(store) in said and ("remove the directory" in said or "holds" in said or damage == "a directory")


def exchanged(one, other):
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


MOVES = {"exchanged": exchanged, "copied over another": shutil.copy}


@pytest.mark.parametrize("places", [("0/0/0", "0/2/0"), ("0/1/0", "1/1/0")], ids=["sites", "rows"])
@pytest.mark.parametrize("move", MOVES)
def test_files_that_stand_in_the_place_of_others_are_noticed(tmp_path, move, places):
    """Each is whole by its own checksum."""
    storing.fill(tmp_path / "store", 300)
    whole = shutil.copytree(tmp_path / "store", tmp_path / "old")
    MOVES[move](*(tmp_path / "store" / storing.NAME / "c" / place for place in places))
    with pytest.raises(OutputError, match=r"is damaged: a file of .*'rows' is not the one .* collect anew"):
        storing.fill(tmp_path / "store", 301)
    shutil.rmtree(whole / ".places")  # as stores of earlier releases: they go on, and know what is written from then on
    storing.fill(whole, 301)
    storing.check(whole, 301)
    exchanged(*(whole / storing.NAME / "c" / f"1/{site}/0" for site in range(2)))
    with pytest.raises(OutputError, match="is damaged"):
        storing.fill(whole, 302)


NAMES = {
    "others": lambda names: ["x"] * len(names),
    "reversed": lambda names: names[::-1],
    "fewer": lambda names: names[:1],
    "a number": lambda names: 5,
    "numbers": lambda names: [5] * len(names),
    "none": None,
}


@pytest.mark.parametrize("told", NAMES)
@pytest.mark.parametrize("glob", ["blocks.*.hook_resid_post", "blocks.*.attn.hook_z"])
def test_names_of_sites_are_those_that_were_asked(vlm, examples, tmp_path, glob, told):
    collect = functools.partial(li.collect_features, vlm, examples, {"of": glob}, store=tmp_path / "store")
    before = collect()["of"].sites
    assert collect()["of"].sites == before  # the control
    attributes = zarr.open_group(tmp_path / "store", mode="a")["of"].attrs
    names = attributes.pop("sites")
    if NAMES[told]:
        attributes["sites"] = NAMES[told](names)
    with pytest.raises(OutputError, match=says_what_to_do(tmp_path / "store", "'of'")):
        collect()


def outcome(run):
    """What it gives, or what its error says."""
    try:
        return run(), None
    except (OutputError, InputError) as error:
        return None, str(error)


def test_what_is_asked_wrongly_is_no_damage(vlm, examples, store):
    """The control: zarr's own words for what no array has."""
    values = li.collect_features(vlm, examples, SITES, store=store)["stream"].values
    with pytest.raises(IndexError):
        values[99]
    with pytest.raises(ValueError, match="step cannot be zero") as found:
        values[::0]
    assert not isinstance(found.value, OutputError) and isinstance(values, zarr.Array)


def test_a_right_to_read_that_is_missing_is_no_damage(vlm, examples, store, monkeypatch):
    values = li.collect_features(vlm, examples, SITES, store=store)["stream"].values

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    for way in ("basic", "orthogonal"):
        monkeypatch.setattr(zarr.Array, f"get_{way}_selection", refused)
    with pytest.raises(OutputError, match=r"could not read the features 'stream' of .*Permission denied"):
        values[:]


def test_a_chunk_that_is_written_on_names_its_features(tmp_path):
    storing.fill(tmp_path / "store", 10)
    turned(first_chunk(tmp_path / "store", storing.NAME))
    with pytest.raises(OutputError, match=says_what_to_do(tmp_path / "store", f"'{storing.NAME}'")):
        storing.fill(tmp_path / "store", 12)


@pytest.mark.parametrize("kept", [np.ones((6, 2), np.uint64), np.ones(6, np.float32)], ids=["axes", "floats"])
def test_digests_of_another_kind_are_no_digests(vlm, examples, store, kept):
    group = zarr.open_group(store, mode="a")
    del group["examples"]
    group["examples"] = kept
    with pytest.raises(OutputError, match=r"is damaged: a file of the digests of its rows .*it holds"):
        li.collect_features(vlm, examples, SITES, store=store)
