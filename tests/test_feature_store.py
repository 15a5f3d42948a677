"""Features on disk are those of memory; a run that was cut off goes on; nothing of another model gets in."""

import pytest
import torch
import zarr

import lvlm_interp as li
from lvlm_interp.errors import InputError
from lvlm_interp.probes.store import OnDisk
from tests.tiny import tiny_inputs, tiny_llava

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
    with pytest.raises(InputError, match="4 examples, more than the 2 given"):
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
    with pytest.raises(InputError, match="'examples'"):
        OnDisk(tmp_path / "new", vlm, {"examples": ["blocks.0.hook_resid_post"]})
    with pytest.raises(InputError, match="no features 'queries'"):
        OnDisk(tmp_path / "new", vlm, {"queries": ["blocks.0.attn.hook_q"]})["queries"]
