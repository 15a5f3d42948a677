"""What outsiders found: sets where order matters, numbers beyond 64 bits, fits with little L2, tags of pictures."""

import dataclasses
import os
import struct
import zlib

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression

import lvlm_interp as li
from lvlm_interp.checkpoints import need_place
from lvlm_interp.engine.score import score_answers
from lvlm_interp.errors import ArgumentError, InputError, LvlmInterpError, OutputError, VisibilityError
from lvlm_interp.inputs.media import open_image
from lvlm_interp.reference import make_scene
from tests.made import made, made_map
from tests.tiny import tiny_inputs, tiny_llava


@pytest.fixture(scope="module")
def vlm():
    return li.wrap(tiny_llava())


@pytest.fixture(scope="module")
def x(vlm):
    return tiny_inputs(vlm)


def apart(seed, sites=2):
    """Classes that come apart at the first site, so that little L2 makes large coefficients."""
    drawn = np.random.default_rng(seed)
    features, labels = drawn.normal(size=(40, sites, 4)), np.array([0, 1] * 20)
    features[:, 0, 0] += 6 * labels
    return features, labels


def held_out(features, labels, fold, l2):
    """By scikit-learn, scaled within each fold."""
    margins = np.zeros(len(labels))
    for number in np.unique(fold):
        train = fold != number
        mean, spread = features[train].mean(0), features[train].std(0)
        oracle = LogisticRegression(C=1 / l2, solver="newton-cholesky", tol=1e-14, max_iter=10_000)
        oracle.fit((features[train] - mean) / spread, labels[train])
        margins[~train] = oracle.decision_function((features[~train] - mean) / spread)
    return margins


@pytest.mark.parametrize("l2", [1e-3, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12])
@pytest.mark.parametrize("seed", [0, 1])
def test_little_l2_has_scikit_learn_s_answer(seed, l2):
    features, labels = apart(seed)
    given = torch.tensor(features, dtype=torch.float32)
    found = li.fit_probes(given, labels.tolist(), folds=2, l2=l2, permutations=0, bootstrap=2)
    for site in range(2):
        right = held_out(given[:, site].double().numpy(), labels, found.fold.numpy(), l2)
        got = found.margins[site, :, 0].double().numpy()
        assert np.abs(got - right).max() < 2e-3 * np.abs(right).max()
        assert ((got > 0) == (right > 0)).all()


@pytest.mark.parametrize("l2", [1e-13, 1e31, [1.0, 1e39]])
def test_l2_beyond_what_can_be_computed_is_refused(l2):
    features, labels = apart(0)
    with pytest.raises(InputError, match="l2 is from 1e-12 to 1e"):
        li.fit_probes(torch.tensor(features), labels, l2=l2)


@pytest.mark.parametrize(("mean", "spread"), [(1e3, 1e-3), (1e5, 0.1), (1e3, 1e-2)])
def test_a_small_spread_beside_a_large_mean_is_a_feature(mean, spread):
    drawn, labels = np.random.default_rng(0), np.arange(80) % 2
    features = drawn.normal(size=(80, 6))
    features[:, 0] = mean + spread * (2 * labels - 1 + 0.3 * drawn.normal(size=80))
    given = torch.tensor(features).float()
    found = li.fit_probes(given[:, None], labels, l2=10.0, permutations=0, bootstrap=2)
    right = held_out(given.double().numpy(), labels, found.fold.numpy(), 10.0)
    got = found.margins[0, :, 0].double().numpy()
    assert np.abs(got - right).max() < 1e-2 * np.abs(right).max()
    same = li.fit_probes(torch.full((80, 1, 1), 3.3), labels, permutations=0, bootstrap=2)
    assert same.coef.abs().max() == 0 and any("constant features" in note for note in same.notes)


NAMES = [f"blocks.{n}.hook_resid_post" for n in range(2)]
ORDERED = {
    "sites": lambda vlm, x: li.fit_probes(torch.tensor(apart(0)[0]), [0, 1] * 20, sites=set(NAMES)),
    "objects": lambda vlm, x: make_scene(1, objects={"banana", "cat"}),
    "colors": lambda vlm, x: make_scene(1, objects=["banana", "cat"], colors=frozenset({"red", "blue"})),
    "redrawn": lambda vlm, x: make_scene(1, objects=["banana", "cat"]).redrawn(colors={"red", "blue"}),
    "examples": lambda vlm, x: li.collect_features(vlm, {x, tiny_inputs(vlm, seed=2)}, {"all": "*.hook_resid_post"}),
    "batch": lambda vlm, x: vlm.batch({x, tiny_inputs(vlm, seed=2)}),
    "lens": lambda vlm, x: li.fit_tuned_lens(vlm, {x, tiny_inputs(vlm, seed=2)}),
}


@pytest.mark.parametrize("case", ORDERED)
def test_sets_have_no_order(vlm, x, case):
    with pytest.raises((ArgumentError, TypeError), match=r"in order; got|takes .*; got|violates|Type"):
        ORDERED[case](vlm, x)


def test_sets_of_roles_need_none(vlm, x):
    want = vlm.capture(x, "blocks.1.hook_resid_post", positions=["image", "question"])["blocks.1.hook_resid_post"]
    got = vlm.capture(x, "blocks.1.hook_resid_post", positions=("question", "image"))["blocks.1.hook_resid_post"]
    assert torch.equal(want, got)


def test_examples_of_any_iterable(vlm, x):
    each = [x, tiny_inputs(vlm, seed=2), tiny_inputs(vlm, seed=3)]
    how = li.Fitting(steps=1, positions=2)
    want = li.fit_tuned_lens(vlm, each, how)
    for given in (iter(each), dict(enumerate(each)).values()):
        assert li.fit_tuned_lens(vlm, given, how) == want


def test_answers_are_several(vlm, x):
    want = score_answers(vlm, x, x.everything[None], [x.answer_ids])[0]
    got = score_answers(vlm, x, x.everything[None], iter([x.answer_ids]))[0]
    assert torch.equal(got.logprob, want.logprob)
    with pytest.raises(InputError, match="in a list; got one"):
        score_answers(vlm, x, x.everything[None], x.answer_ids)


BEYOND = {
    "positions": lambda vlm, x: li.lens(vlm, x, positions=[2**63]),
    "heads": lambda vlm, x: vlm.capture(x, "blocks.1.attn.hook_z", heads=2**64),
    "an answer": lambda vlm, x: li.Answer("x", [2**63]),
    "a start": lambda vlm, x: vlm.inputs(x.input_ids, 2**70, pixel_values=x.model_inputs["pixel_values"]),
    "a batch": lambda vlm, x: li.collect_features(vlm, [x], {"all": "*.hook_resid_post"}, batch=2**64),
    "permutations": lambda vlm, x: li.fit_probes(torch.tensor(apart(0)[0]), [0, 1] * 20, permutations=2**64),
    "steps": lambda vlm, x: li.attribute(vlm, x, "integrated_gradients", steps=2**64),
    "a box": lambda vlm, x: li.located(made_map(["a"], torch.randn), (0, 0, 10**400, 20)),
    "a scale": lambda vlm, x: li.report.figures.heatmap(made().patches, 0, limit=1e308),
    "a longer scale": lambda vlm, x: li.report.figures.heatmap(made().patches, 0, limit=10**400),
}


@pytest.mark.parametrize("case", BEYOND)
def test_numbers_beyond_what_can_be_computed_with(vlm, x, case):
    with pytest.raises(LvlmInterpError):
        BEYOND[case](vlm, x)


def test_messages_name_what_was_given(vlm, x):
    with pytest.raises(VisibilityError, match=r"a=\('image',\) is of one"):
        made().credit.group(a="image")
    patches = li.attribute(vlm, x, unit="answer")
    both = li.faithfulness(vlm, x, patches, substrates=iter(["tokens"]), orders=2, sets=5, unit="answer")
    assert both.substrates == ("tokens",)


def test_metadata_is_as_its_file_has_it(tmp_path):
    days = pd.date_range("2020", periods=40)
    some = pd.array([1, None] * 20, dtype="Int64")
    frame = pd.DataFrame({"day": days, "late": days - days[0], "some": some, "text": ["a"] * 40})
    features, labels = apart(0)
    found = li.fit_probes(torch.tensor(features), labels, folds=2, permutations=0, bootstrap=2, metadata=frame)
    assert li.load_result(found.save(tmp_path / "probes.safetensors")) == found
    assert found.metadata["some"][:2] == [1, None] and found.metadata["day"][0].startswith("2020-01-01")


def test_results_of_halves_are_read_as_doubles(vlm, x):
    found = li.interactions(vlm, x, regions=1, unit="answer")
    half = dataclasses.replace(found, dividends=found.dividends.half())
    assert half.dividends.dtype == torch.float64 and half.shapley.shape == found.shapley.shape


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes have names here")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(OutputError, match="a pipe or a device"):
        made().contrast.save(tmp_path / "pipe.safetensors")


def test_the_steps_of_a_checkpoint_are_under_its_digest(vlm, x, tmp_path):
    path, each = tmp_path / "lens", [x, tiny_inputs(vlm, seed=2)]
    how = li.Fitting(steps=25, positions=2)
    li.fit_tuned_lens(vlm, each, how, checkpoint=path)
    written = bytearray(path.read_bytes())
    written[written.index(b'"step":"25"') + 9] ^= 1  # 24
    path.write_bytes(written)
    with pytest.raises(InputError, match="damaged"):
        li.fit_tuned_lens(vlm, each, how, checkpoint=path)


def test_a_checkpoint_s_name_is_tried_as_it_will_be_written(tmp_path):
    with pytest.raises(OutputError, match="could not write the checkpoint"):
        need_place(tmp_path / ("n" * 245))
    with pytest.raises(OutputError, match="could not write the checkpoint"):
        need_place(tmp_path / "n\0")
    need_place(tmp_path / "lens")
    assert not [*tmp_path.iterdir()]


def tiff(samples, bits, white_is_0=False):
    """A grey picture of one row, as the specification has it: numbers of 12 bits packed, those of 16 as they are."""
    data = struct.pack(f"<{len(samples)}H", *samples)
    if bits == 12:
        data = int("".join(f"{one:012b}" for one in samples), 2).to_bytes(len(samples) * 12 // 8, "big")
    tags = [
        *((256, 4, len(samples)), (257, 4, 1), (258, 3, bits), (259, 3, 1), (262, 3, 0 if white_is_0 else 1)),
        *((273, 4, 8 + 2 + 10 * 12 + 4), (277, 3, 1), (278, 4, 1), (279, 4, len(data)), (339, 3, 1)),
    ]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II" + struct.pack("<HI", 42, 8) + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0) + data


@pytest.mark.parametrize(("bits", "white_is_0"), [(12, False), (16, False), (16, True)])
def test_grey_of_many_bits_by_its_tags(bits, white_is_0):
    samples = [0, 1, 500, 2048, 3000, (1 << bits) - 1, 7, 7]
    right = np.rint(np.array(samples) * 255 / ((1 << bits) - 1))
    shown = np.asarray(open_image(tiff(samples, bits, white_is_0)))[0, :, 0]
    assert np.abs(shown - (255 - right if white_is_0 else right)).max() <= 1


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_the_clear_grey_of_few_bits(bits):
    """PNG's transparent value is in the numbers of its file."""
    key = 1 if bits == 1 else (1 << bits) - 2
    samples = [key, 0, key, 0, key, 0, 0, 0]
    rows = b"\0" + int("".join(f"{one:0{bits}b}" for one in samples), 2).to_bytes(bits, "big")
    header = struct.pack(">IIBBBBB", 8, 1, bits, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"tRNS", struct.pack(">H", key)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    written = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    shown = np.asarray(open_image(b"\x89PNG\r\n\x1a\n" + written))[0, :, 0]
    assert shown.tolist() == [255 if one == key else 0 for one in samples]


def test_gradients_whatever_torch_s_default_type_is(vlm, x):
    want = li.attribute(vlm, x, "integrated_gradients", steps=8)
    torch.set_default_dtype(torch.bfloat16)
    try:
        got = li.attribute(vlm, x, "integrated_gradients", steps=8)
        assert torch.get_default_dtype() == torch.bfloat16
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(got.values, want.values)
