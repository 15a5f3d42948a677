"""A padded row of a batch computes what its example computes alone, in every family."""

import dataclasses

import pytest
import torch

import lvlm_interp as li
from lvlm_interp.errors import InputError, SiteError
from lvlm_interp.inputs.batch import batched
from lvlm_interp.model.choice import Choice
from lvlm_interp.opening import checks
from lvlm_interp.opening.conformance import check
from tests.families import FAMILIES, tiny_example, tiny_model
from tests.families.shared.tiny import ANSWER, ROUNDING
from tests.tiny import tiny_inputs, tiny_llava

SIZES = {
    "qwen2_vl": ({"pixel_values": (16, 3 * 2 * 14 * 14), "image_grid_thw": torch.tensor([[1, 4, 4]])}, 4),
    "llava_next": ({"pixel_values": (1, 5, 3, 28, 28), "image_sizes": torch.tensor([[56, 56]])}, None),
    "idefics3": ({"pixel_values": (1, 2, 3, 56, 56)}, 8),
    "internvl": ({"pixel_values": (3, 3, 56, 56)}, 12),
}
SIZES |= {"qwen2_5_vl": SIZES["qwen2_vl"], "qwen3_vl": SIZES["qwen2_vl"]}
SIZES |= {"llava_onevision": SIZES["llava_next"], "smolvlm": SIZES["idefics3"]}
"""Pixels of another image size, and its number of tokens, for the families that have several."""

SITES = ["blocks.*.hook_resid_post", "blocks.*.hook_attn_out", "blocks.0.attn.hook_z"]


def short_and_long(vlm, name):
    """Two examples of different lengths, and of different image sizes where the family has them."""
    pixels, tokens = SIZES.get(name, (FAMILIES[name].pixels, FAMILIES[name].tokens))
    other = {name: dataclasses.replace(FAMILIES[name], pixels=pixels, tokens=tokens)}
    short, long = tiny_example(vlm, name), tiny_example(vlm, name, seed=2, rows=other)
    return short, long.with_answer([*ANSWER, *range(11, 17)], ["<11>"] * (len(ANSWER) + 6), "longer")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    vlm = li.wrap(tiny_model(request.param))
    return vlm, short_and_long(vlm, request.param)


def test_batched_is_single(family):
    vlm, examples = family
    batch = vlm.batch(examples)
    assert batch.length == examples[1].length > examples[0].length
    together = vlm.capture(batch, SITES)
    for number, x in enumerate(examples):
        alone = vlm.capture(x, SITES)
        assert set(alone) == set(together)
        for name in alone:
            assert torch.allclose(batch.of(number, together[name]), alone[name], atol=ROUNDING), name


def test_a_batch_without_its_mask_is_another(family):
    """The control: padding that is seen changes what is computed, and so does an example in another's row."""
    vlm, examples = family
    batch = vlm.batch(examples)
    seen = dict(batch.model_inputs, attention_mask=torch.ones_like(batch.model_inputs["attention_mask"]))
    with torch.no_grad():
        logits = vlm.model(**seen, use_cache=False).logits
    assert (batch.of(0, logits) - vlm.run(examples[0])).abs().max() > 1e-3
    assert (batch.of(1, vlm.run(batch))[:, -1] - vlm.run(examples[0])[:, -1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["kosmos-2", "kosmos-2.5"])
def test_padding_that_is_no_position(name):
    """Kosmos counts positions by the tokens that are not padding, whatever the mask says."""
    vlm = li.wrap(tiny_model(name))
    short, other = tiny_example(vlm, name), tiny_example(vlm, name, seed=2)
    long = other.with_answer([*ANSWER, *range(11, 17)], ["<11>"] * (len(ANSWER) + 6), "longer")
    alone, batch = vlm.run(short), vlm.batch([short, long])
    assert torch.allclose(batch.of(0, vlm.run(batch)), alone, atol=ROUNDING)
    assert not torch.allclose(batch.of(0, vlm.run(batched([short, long], 2))), alone, atol=1e-2)  # the control
    longer = padded(vlm, short, 3)
    assert torch.allclose(li.contrast(vlm, longer).delta, li.contrast(vlm, short).delta, atol=ROUNDING)


def test_patterns_of_a_row():
    vlm = li.wrap(tiny_model("llava"))
    examples = short_and_long(vlm, "llava")
    batch, name = vlm.batch(examples), "blocks.1.attn.hook_pattern"
    together = vlm.capture(batch, name)[name]
    for number, x in enumerate(examples):
        assert torch.allclose(batch.pattern_of(number, together), vlm.capture(x, name)[name], atol=1e-6)
    padding = int(batch.padding[0])
    assert together[0, :, padding:, :padding].abs().max() == 0  # padding is not read


def padded(vlm, x, extra):
    """The same example as a left-padding tokenizer would give it."""
    first = {
        name: torch.cat([value.new_zeros(1, extra, *value.shape[2:]), value], 1) if name in x.along else value
        for name, value in x.model_inputs.items()
    }
    return vlm.inputs(answer_start=x.answer_start + extra, roles=["template"] * extra + list(x.roles), **first)


def test_contrast_and_credit_of_a_padded_example(family):
    """Padding in front changes no contrast and no credit."""
    vlm, (x, _) = family
    longer = padded(vlm, x, 3)
    alone, behind = li.contrast(vlm, x), li.contrast(vlm, longer)
    assert torch.allclose(alone.delta, behind.delta, atol=ROUNDING)
    one, other = li.credit(vlm, x), li.credit(vlm, longer)
    assert one.roles == other.roles and torch.allclose(one.credits, other.credits, atol=ROUNDING)


def test_parts_of_a_batch_are_whole_or_refused():
    """What was chosen from or reduced has no padding to cut away; heads are no positions."""
    vlm = li.wrap(tiny_model("llava"))
    batch, sites = vlm.batch(short_and_long(vlm, "llava")), ["blocks.0.hook_resid_post", "blocks.0.attn.hook_pattern"]
    resid, pattern = (vlm.capture(batch, sites)[name] for name in sites)
    assert torch.equal(batch.of(-1, resid), resid[1:]) and torch.equal(batch.pattern_of(-1, pattern), pattern[1:])
    chosen, rows = (vlm.capture(batch, sites, positions=[-3, -2, -1])[name] for name in sites)
    for value in (chosen, pattern, resid.mean(1)):
        with pytest.raises(InputError, match="positions of this batch"):
            batch.of(0, value)
    with pytest.raises(InputError, match="positions of this batch"):
        batch.pattern_of(0, rows)


@pytest.mark.parametrize("reduce", ["mean", "last"])
def test_padding_takes_no_part_in_a_reduction(family, reduce):
    """Each row is reduced over its own positions, as its example is alone."""
    vlm, examples = family
    together = vlm.capture(vlm.batch(examples), SITES, reduce=reduce)
    for number, x in enumerate(examples):
        for name, value in vlm.capture(x, SITES, reduce=reduce).items():
            if name != "logits":
                assert torch.allclose(together[name][number], value[0], atol=ROUNDING), name


def test_what_a_reduction_of_a_padded_row_leaves_out():
    """Patterns keep their keys; padding of an example's own goes too; the tower has none."""
    vlm = li.wrap(tiny_model("llava"))
    short, long = short_and_long(vlm, "llava")
    batch, sites = vlm.batch([padded(vlm, short, 2), long]), ["blocks.0.attn.hook_pattern", "blocks.0.mlp.hook_post"]
    pattern, inner = (vlm.capture(batch, sites, reduce="mean")[name] for name in sites)
    alone, value = (vlm.capture(short, sites, reduce="mean")[name] for name in sites)
    assert pattern[0, :, : -short.length].abs().max() == 0
    assert torch.allclose(pattern[:1, :, -short.length :], alone, atol=ROUNDING)
    assert torch.allclose(inner[:1], value, atol=ROUNDING)
    whole = vlm.capture(batch, sites[1])[sites[1]]
    assert not torch.allclose(whole[:1].mean(1), value, atol=1e-2)  # the control
    assert len(vlm.capture(batch, "vision.blocks.0.hook_resid_post", reduce="mean")) == 2
    graph = vlm.capture(batch, sites[1], reduce="mean", grad=True)
    assert torch.allclose(graph[sites[1]], inner, atol=1e-6) and graph[sites[1]].requires_grad


def test_padding_of_an_example_in_a_batch_is_named():
    vlm = li.wrap(tiny_model("llava"))
    x = tiny_example(vlm, "llava")
    hidden = dict(x.model_inputs, attention_mask=torch.ones_like(x.input_ids).index_fill(1, torch.tensor([1]), 0))
    other = vlm.inputs(answer_start=x.answer_start, **hidden)
    with pytest.raises(InputError, match="attention_mask of example 1 of this batch is 0 at all"):
        vlm.capture(vlm.batch([x, other]), SITES, reduce="mean", positions=[1])


def test_a_value_without_the_rows_of_its_batch_is_not_reduced():
    seen = torch.tensor([[False, True, True], [True, True, True]])
    choice = Choice(3, reduce="mean", attended=seen)
    value = torch.arange(12.0).view(2, 3, 2)
    assert choice.taken("blocks.0.hook_mlp_out", value)[0].tolist() == [[3.0, 4.0], [8.0, 9.0]]
    with pytest.raises(SiteError, match=r"blocks.0.hook_mlp_out' is \(6, 2\) here, and not of 2 examples with 3 pos"):
        choice.taken("blocks.0.hook_mlp_out", value.flatten(0, 1))


@pytest.mark.parametrize("first", [True, False])
def test_a_batch_names_the_examples_that_have_what_others_lack(first):
    vlm = li.wrap(tiny_model("llava"))
    x = tiny_example(vlm, "llava")
    places = torch.arange(x.length)[None]
    own = vlm.inputs(answer_start=x.answer_start, **x.model_inputs, position_ids=places)
    said = rf"'position_ids'\]; .*'position_ids': \[{0 if first else 1}\]. .* all without, .*position_ids="
    with pytest.raises(InputError, match=said):
        vlm.batch([own, x] if first else [x, own])
    assert torch.allclose(vlm.run(vlm.batch([own, own]))[:1], vlm.run(x), atol=ROUNDING)  # as it says
    words = vlm.inputs(torch.tensor([[1, 20, 21]]))
    with pytest.raises(InputError, match=r"'pixel_values': \[0, 2\]. Put examples with an image"):
        vlm.batch([x, words, x])


def test_padding_is_not_chosen():
    vlm = li.wrap(tiny_model("llava"))
    examples, site = short_and_long(vlm, "llava"), "blocks.0.hook_resid_post"
    batch = vlm.batch(examples)
    with pytest.raises(InputError, match=r"\[0\] are padding in some examples"):
        vlm.capture(batch, site, positions=[0])
    last = vlm.capture(batch, site, positions=[-2, -1], reduce="mean")[site]
    alone = torch.cat([vlm.capture(x, site, positions=[-2, -1], reduce="mean")[site] for x in examples])
    assert torch.allclose(last, alone, atol=ROUNDING)


def test_roles_of_a_batch():
    vlm = li.wrap(tiny_model("llava"))
    x = tiny_example(vlm, "llava")
    same = vlm.batch([x, tiny_example(vlm, "llava", seed=3)])
    kept = vlm.capture(same, "blocks.0.hook_resid_post", positions="image")["blocks.0.hook_resid_post"]
    assert kept.shape[:2] == (2, int(x.where("image").sum()))
    differing = vlm.batch(short_and_long(vlm, "llava"))
    with pytest.raises(InputError, match="differ between the examples"):
        vlm.capture(differing, "blocks.0.hook_resid_post", positions="answer")
    last = vlm.capture(differing, "blocks.0.hook_resid_post", positions=[-1])["blocks.0.hook_resid_post"]
    assert last.shape[:2] == (2, 1)


def test_videos_of_other_lengths_are_refused():
    """Side by side, the shorter one would be filled up with frames that no token stands for."""
    vlm = li.wrap(tiny_llava())
    one, two = (
        dataclasses.replace(x, model_inputs={**x.model_inputs, "pixel_values_videos": torch.zeros(1, frames, 3, 4, 4)})
        for x, frames in ((tiny_inputs(vlm), 4), (tiny_inputs(vlm), 6))
    )
    with pytest.raises(InputError, match=r"videos of \[4, 6\] frames"):
        vlm.batch([one, two])
    assert vlm.batch([one, one]).model_inputs["pixel_values_videos"].shape[:2] == (2, 4)


def test_what_cannot_be_batched():
    vlm = li.wrap(tiny_model("llava"))
    x = tiny_example(vlm, "llava")
    text = vlm.inputs(input_ids=torch.tensor([[1, 5, 6, 7]]), answer_start=3)
    with pytest.raises(InputError, match="pixel_values"):
        batched([x, text])
    with pytest.raises(InputError, match="at least one"):
        batched([])


# --- what families number or pack over the whole batch ------------------------------------------------


@pytest.mark.parametrize("name", ["molmo2", "minicpmv4_6", "minicpm_ocr", "hunyuan_vl", "mistral_large4"])
def test_rows_that_families_count_over_the_batch(name):
    """Indices of patches, pictures in one row, numbers of images, positions: each row has its own."""
    vlm = li.wrap(tiny_model(name))
    short, other = tiny_example(vlm, name), tiny_example(vlm, name, seed=2)
    long = other.with_answer([*ANSWER, *range(11, 17)], ["<11>"] * (len(ANSWER) + 6), "longer")
    for examples in ([short, long], [long, short], [short, long, other]):
        batch = vlm.batch(examples)
        together = vlm.run(batch)
        for number, x in enumerate(examples):
            alone = vlm.run(x)
            assert torch.allclose(batch.of(number, together), alone, atol=ROUNDING)
    assert (vlm.run(short) - vlm.run(other)).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["llava", "molmo2"])
def test_the_first_picture_in_every_row(name, monkeypatch):
    """The check of batches sees it, and no other check does."""
    vlm = li.wrap(tiny_model(name))
    x, side_by_side = tiny_example(vlm, name), vlm.batch
    assert check(vlm, x).ok

    def careless(examples):
        made = side_by_side(examples)
        first = {k: torch.cat([v] * len(examples)) for k, v in examples[0].pixels.items()}
        return dataclasses.replace(made, model_inputs={**made.model_inputs, **first})

    monkeypatch.setattr(vlm, "batch", careless)
    assert [row.check for row in check(vlm, x).checks if not row.ok] == ["batch"]


def by_length(kind):
    """A model whose rotary frequencies depend on the longest row from 16 positions on."""
    told = {
        "dynamic": {"factor": 2.0},
        "longrope": {"factor": 2.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4},
    }
    rope = {"rope_type": kind, "rope_theta": 10000.0, "original_max_position_embeddings": 16, **told[kind]}
    row = FAMILIES["llava"]
    text = {**row.config["text_config"], "rope_parameters": rope, "max_position_embeddings": 16}
    return li.wrap(
        tiny_model("llava", rows={"llava": dataclasses.replace(row, config={**row.config, "text_config": text})})
    )


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rows_that_depend_on_the_longest(kind):
    """They are refused by name, and features come of single passes; rows of one length, or short ones, are not."""
    vlm = by_length(kind)
    short, long = short_and_long(vlm, "llava")
    assert short.length <= 16 < long.length
    with pytest.raises(
        InputError, match=f"beyond 16 positions it computes by the length of the longest row .{long.length}"
    ):
        vlm.batch([short, long])
    plain = batched([short, long])  # the control: side by side they would be others
    assert (plain.of(0, vlm.run(plain)) - vlm.run(short)).abs().max() > 1e-2
    assert len(vlm.batch([long, long])) == 2 and len(vlm.batch([short, short])) == 2
    site = "blocks.2.hook_resid_post"
    both = li.collect_features(vlm, [short, long], {"stream": site}, batch=2)["stream"].values
    alone = [vlm.capture(one, site, reduce="last")[site] for one in (short, long)]
    assert torch.allclose(both[:, 0], torch.cat(alone), atol=1e-6)
    with torch.no_grad():
        found = checks.batch(vlm, long)
    assert found.ok and "one by one" in found.detail


def test_an_iterator_of_examples_is_a_batch():
    vlm = li.wrap(tiny_llava())
    x = tiny_inputs(vlm)
    assert torch.equal(vlm.run(vlm.batch(iter([x, x]))), vlm.run(vlm.batch([x, x])))
