"""Our activations against those of two independent readers, place by place.

transformer_lens replaces the modules of a model by its own, so it is also asked whether our names mean the same places.
nnsight knows no names but the model's own; which of them a site means is written out here once more, so that a
mistake in `model.sites` shows.
"""

import dataclasses

import pytest
import torch

import lvlm_interp as li
from tests.families import FAMILIES, tiny_example, tiny_model
from tests.families.shared.tiny import IMAGE

BRIDGED = ["llava", "llava_next", "llava_onevision", "idefics3", "gemma3", "qwen2_5_vl", "qwen3_vl"]
STREAM = ["hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out"]
HEADS = [f"attn.hook_{part}" for part in ("q", "k", "v", "rot_q", "rot_k", "attn_scores", "pattern", "z")]
INSIDE = [f"{ln}.hook_{part}" for ln in ("ln1", "ln2") for part in ("scale", "normalized")]
INSIDE += [f"mlp.hook_{part}" for part in ("pre", "pre_linear", "post")]
OUTSIDE = ["hook_embed", *(f"ln_final.hook_{part}" for part in ("scale", "normalized", "out"))]


def other_words(vlm, name):
    """An example of the same shape with another image and other words: what no comparison may take for the first."""
    x = tiny_example(vlm, name, seed=2)
    ids = x.input_ids
    changed = {"input_ids": torch.where(ids < IMAGE, ids + 1, ids)}
    return dataclasses.replace(x, model_inputs={**x.model_inputs, **changed})


def disagreeing(ours, theirs):
    """The sites at which two readings differ, or that only the second has; what it does not know is NaN."""
    return [
        site
        for site, value in theirs.items()
        if site not in ours or ours[site].shape != value.shape or not alike(ours[site], value)
    ]


def alike(ours, theirs):
    lowest = torch.finfo(theirs.dtype).min  # of what is masked, which is -inf in TransformerLens
    ours, theirs = torch.where(theirs.isnan(), torch.nan, ours).clamp(min=lowest), theirs.clamp(min=lowest)
    return torch.allclose(ours, theirs, atol=1e-5, equal_nan=True)


# --- transformer_lens -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=BRIDGED)
def bridged(request):
    lens = pytest.importorskip("lvlm_interp.adapters.transformer_lens")
    vlm = li.wrap(tiny_model(request.param, "eager"))
    kind = lens.SUPPORTED_ARCHITECTURES[type(vlm.model).__name__]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "required_libraries", [])  # torchvision, for a processor that is not used here
        bridge = lens.as_bridge(vlm)
    return request.param, vlm, bridge


def read_by_bridge(bridge, x):
    inputs = dict(x.model_inputs)
    with torch.no_grad():
        _, cache = bridge.run_with_cache(inputs.pop("input_ids"), **inputs)
    # They hold the embedding of the placeholder where the image's features stand.
    embedded = torch.where((x.input_ids == IMAGE)[..., None], torch.nan, cache["hook_embed"])
    found = {**dict(cache.items()), "hook_embed": embedded}
    # Where the bridge leaves attention to the model (Qwen), it has the pattern under the name of the scores too.
    twice = [
        k for k in found if k.endswith("scores") and torch.equal(found[k], found[k.replace("attn_scores", "pattern")])
    ]
    return {k: v for k, v in found.items() if k not in twice}


def test_transformer_lens_reads_the_same(bridged):
    name, vlm, bridge = bridged
    x = tiny_example(vlm, name)
    theirs = read_by_bridge(bridge, x)
    wanted = [*OUTSIDE, *(f"blocks.{i}.{part}" for i in range(3) for part in STREAM + INSIDE + HEADS)]
    # What the bridge leaves to the model's own attention has no heads to compare; all else always has.
    shared = {site: theirs[site] for site in wanted if site in theirs}
    assert {*OUTSIDE, *(f"blocks.{i}.{part}" for i in range(3) for part in STREAM + INSIDE)} <= set(shared)
    assert disagreeing(vlm.capture(x, list(shared)), shared) == []
    other = vlm.capture(other_words(vlm, name), list(shared))
    assert disagreeing(other, shared) == list(shared)


def test_a_cache_has_the_values_of_its_names(bridged):
    """Ours as an `ActivationCache`, from all that can be captured, against theirs; masked scores are -inf."""
    lens = pytest.importorskip("lvlm_interp.adapters.transformer_lens")
    name, vlm, bridge = bridged
    x = tiny_example(vlm, name)
    theirs, ours = read_by_bridge(bridge, x), vlm.capture(x, ["hook_embed", "blocks.*", "ln_final.*"])
    cache = lens.as_activation_cache(vlm, ours)
    shared = {site: value for site, value in theirs.items() if site in cache.cache_dict}
    assert len(shared) > 3 * len(STREAM + INSIDE) and disagreeing(cache.cache_dict, shared) == []
    scores = cache["blocks.1.attn.hook_attn_scores"]
    assert scores[0, 0, 0, 1] == -torch.inf and scores.softmax(-1).isfinite().all()


# --- nnsight ----------------------------------------------------------------------------------------------------------


def named_by_transformers(name, vlm):
    """Site → (module inside the block, "input" or "output", what to make of it), in the words of transformers' code."""
    plain = {
        "hook_resid_pre": ("", "input"),
        "hook_resid_mid": ("post_attention_layernorm", "input"),
        "hook_resid_post": ("", "output"),
        "hook_attn_out": ("self_attn", "output"),
        "hook_mlp_out": ("mlp", "output"),
        "attn.hook_q": ("self_attn.q_proj", "output"),
        "attn.hook_k": ("self_attn.k_proj", "output"),
        "attn.hook_v": ("self_attn.v_proj", "output"),
        "attn.hook_z": ("self_attn.o_proj", "input"),
        "attn.hook_pattern": ("self_attn", "output"),
    }
    if name == "gemma3":  # norms on both sides of attention and of the MLP
        plain["hook_resid_mid"] = ("pre_feedforward_layernorm", "input")
        plain["hook_attn_out"] = ("post_attention_layernorm", "output")
        plain["hook_mlp_out"] = ("post_feedforward_layernorm", "output")
    crossing = getattr(vlm.model.config.get_text_config(), "cross_attention_layers", None) or []
    found = {}
    for i in range(len(vlm.decoder.layers)):
        for part, (module, side) in plain.items():
            if i in crossing:
                part, module = part.replace("attn.hook", "cross_attn.hook"), module.replace("self_attn", "cross_attn")
            found[f"blocks.{i}.{part}"] = (f"layers.{i}.{module}".rstrip("."), side)
    return found


def read_by_nnsight(vlm, x, places):
    root = next(path for path, module in vlm.model.named_modules() if module is vlm.decoder)
    paths = {site: (f"model.{root}.{path}", side) for site, (path, side) in places.items()}
    with torch.no_grad(), vlm.nnsight.trace(**x.model_inputs) as tracer:
        cache = tracer.cache(modules=sorted({path for path, _ in paths.values()}), include_inputs=True)
    found = {}
    for site, (path, side) in paths.items():
        value = getattr(cache[path], side)
        if isinstance(value, tuple):  # what attention returns: its output and its pattern
            value = value[1] if site.endswith("pattern") else value[0]
        if site.endswith(("_q", "_k", "_v", "_z")):
            value = value.unflatten(-1, (-1, vlm.decoder.layers[0].self_attn.head_dim))
        found[site] = value
    return found


def gated(vlm, found):
    """What layers of Mllama that read the image add: what their attention and their MLP give, behind gates."""
    for i, block in enumerate(vlm.decoder.layers):
        for kind in ("attn", "mlp"):
            if (gate := getattr(block, f"cross_attn_{kind}_gate", None)) is not None:
                found[f"blocks.{i}.hook_{kind}_out"] = found[f"blocks.{i}.hook_{kind}_out"] * gate.detach().tanh()
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_nnsight_reads_the_same(name):
    vlm = li.wrap(tiny_model(name, "eager"))
    x, places = tiny_example(vlm, name), named_by_transformers(name, vlm)
    theirs = gated(vlm, read_by_nnsight(vlm, x, places))
    assert len(theirs) == len(vlm.decoder.layers) * 10
    assert disagreeing(vlm.capture(x, list(theirs)), theirs) == []
    other = vlm.capture(other_words(vlm, name), list(theirs))
    assert disagreeing(other, theirs) == list(theirs)


def test_a_site_that_means_another_place_is_noticed():
    vlm = li.wrap(tiny_model("llava", "eager"))
    x, places = tiny_example(vlm, "llava"), named_by_transformers("llava", vlm)
    places["blocks.1.hook_resid_mid"] = ("layers.1.input_layernorm", "input")
    places["blocks.2.attn.hook_k"] = ("layers.2.self_attn.v_proj", "output")
    theirs = read_by_nnsight(vlm, x, places)
    assert disagreeing(vlm.capture(x, list(theirs)), theirs) == ["blocks.1.hook_resid_mid", "blocks.2.attn.hook_k"]
