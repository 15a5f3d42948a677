"""Sparse coders of others, beside numpy; what they find, and what is left when features are taken out."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import lvlm_interp as li
from lvlm_interp.errors import InputError, SiteError
from lvlm_interp.interventions import AblateFeatures, Steer, intervene
from lvlm_interp.interventions.coders import NEEDED
from tests.tiny import tiny_inputs, tiny_llava

WIDTH, COUNT, SITE = 32, 48, "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def vlm():
    return li.wrap(tiny_llava())


@pytest.fixture(scope="module")
def x(vlm):
    return tiny_inputs(vlm)


def weights_of(architecture, out=WIDTH, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape):
        return torch.randn(shape, generator=generator) * 0.3

    shapes = {"W_enc": (WIDTH, COUNT), "W_dec": (COUNT, out), "b_dec": (out,), "W_skip": (WIDTH, out)}
    found = {name: drawn(*shapes.get(name, (COUNT,))) for name in NEEDED[architecture]}
    return {**found, "threshold": found["threshold"].abs()} if "threshold" in found else found


def written(folder, architecture, weights=None, **config):
    config = {"apply_b_dec_to_input": False, **config}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps({"architecture": architecture, "hook_name": SITE, **config}))
    save_file(weights_of(architecture) if weights is None else weights, folder / "sae_weights.safetensors")
    return folder


def by_numpy(architecture, weights, states, k=None, centred=False):
    """SAELens's formulas, written from nothing."""
    w = {name: value.double().numpy() for name, value in weights.items()}
    read = states.double().numpy() - (w["b_dec"] if centred and "transcoder" not in architecture else 0)
    if architecture == "gated":
        gate = read @ w["W_enc"] + w["b_gate"] > 0
        active = gate * np.maximum(read @ (w["W_enc"] * np.exp(w["r_mag"])) + w["b_mag"], 0)
    else:
        before = read @ w["W_enc"] + w["b_enc"]
        active = np.maximum(before, 0)
        if "jumprelu" in architecture:
            active = active * (before > w["threshold"])
        if architecture == "topk":
            kept = np.sort(before, -1)[..., -k, None]
            active = active * (before >= kept)
    made = active @ w["W_dec"] + w["b_dec"]
    return active, made + (states.double().numpy() @ w["W_skip"] if "W_skip" in w else 0)


@pytest.mark.parametrize("architecture", NEEDED)
@pytest.mark.parametrize("centred", [False, True])
def test_each_kind_is_its_formula(tmp_path, architecture, centred):
    k = 5 if architecture == "topk" else None
    more = {"k": k} if k else {}
    folder = written(
        tmp_path, architecture, apply_b_dec_to_input=centred, hook_name_out="blocks.1.hook_mlp_out", **more
    )
    coder = li.load_sparse_coder(folder, written=SITE)
    states = torch.randn(7, WIDTH, generator=torch.Generator().manual_seed(1))
    active, made = by_numpy(architecture, coder.weights, states, k, centred)
    assert np.allclose(coder.encode(states), active, atol=1e-4) and (active > 0).any() and (active == 0).any()
    assert np.allclose(coder.decode(coder.encode(states), states), made, atol=1e-3)
    if centred and "transcoder" not in architecture:
        plain = by_numpy(architecture, coder.weights, states, k, False)[0]
        assert not np.allclose(coder.encode(states), plain, atol=1e-3)


@pytest.mark.parametrize("scaling", ["layer_norm", "constant_norm_rescale"])
def test_states_are_scaled_and_scaled_back(tmp_path, scaling):
    coder = li.load_sparse_coder(written(tmp_path, "standard", normalize_activations=scaling))
    states = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(2)) * 7 + 1
    given = states.double().numpy()
    if scaling == "layer_norm":
        mean, size = given.mean(-1, keepdims=True), given.std(-1, ddof=1, keepdims=True)
        active, made = by_numpy("standard", coder.weights, torch.tensor((given - mean) / (size + 1e-5)))
        expected = made * size + mean
    else:
        factor = WIDTH**0.5 / np.linalg.norm(given, axis=-1, keepdims=True)
        active, made = by_numpy("standard", coder.weights, torch.tensor(given * factor))
        expected = made / factor
    assert np.allclose(coder.encode(states), active, atol=1e-3)
    assert np.allclose(coder.decode(coder.encode(states), states), expected, atol=1e-3)
    with pytest.raises(InputError, match="their scale is needed"):
        coder.decode(coder.encode(states))


def test_states_are_centred_where_a_configuration_does_not_say(tmp_path):
    folder = written(tmp_path, "standard")
    (folder / "cfg.json").write_text(json.dumps({"hook_name": SITE}))
    assert li.load_sparse_coder(folder).centred and not li.load_sparse_coder(written(tmp_path, "standard")).centred


@pytest.mark.parametrize("scaling", ["none", "layer_norm"])
def test_what_features_add_adds_up(tmp_path, scaling):
    """All features together add what is decoded less what is decoded of none."""
    coder = li.load_sparse_coder(written(tmp_path, "jumprelu", normalize_activations=scaling))
    states = torch.randn(3, WIDTH)
    whole = coder.decode(coder.encode(states), states) - coder.decode(torch.zeros(3, COUNT), states)
    parts = sum(coder.contributions(states, [n]) for n in range(COUNT))
    assert torch.allclose(parts, whole, atol=1e-3)


def test_features_at_positions(vlm, x, tmp_path):
    coder = li.load_sparse_coder(written(tmp_path / "coder", "standard"))
    states = vlm.capture(x, SITE)[SITE][0, x.where("image")]
    active, made = by_numpy("standard", coder.weights, states)
    found = li.sparse_features(vlm, x, coder, positions="image", top=4)
    assert found.active.tolist() == (active > 0).sum(-1).tolist()
    assert np.allclose(found.strength, -np.sort(-active, -1)[:, :4], atol=1e-3)
    spread = ((states - states.mean(0)).double().numpy() ** 2).sum(-1).mean()
    missed = ((states.double().numpy() - made) ** 2).sum(-1) / spread
    assert np.allclose(found.unexplained, missed, rtol=1e-3)
    assert "unexplained" in found.note and len(found.to_frame()) == int((found.strength > 0).sum())
    assert li.load_result(found.save(tmp_path / "a.safetensors")) == found


def test_a_coder_that_knows_the_states_explains_them(vlm, x, tmp_path):
    """Features that are ± each number of a state stand for it wholly; the same with other weights do not."""
    eye = torch.eye(WIDTH)
    weights = {"W_enc": torch.cat([eye, -eye], 1), "W_dec": torch.cat([eye, -eye])}
    weights |= {"b_enc": torch.zeros(2 * WIDTH), "b_dec": torch.zeros(WIDTH)}
    right = li.sparse_features(vlm, x, li.load_sparse_coder(written(tmp_path / "a", "standard", weights)))
    wrong = li.sparse_features(vlm, x, li.load_sparse_coder(written(tmp_path / "b", "standard")))
    assert float(right.unexplained.max()) < 1e-9 and float(wrong.unexplained.mean()) > 0.1


def test_features_are_taken_out_and_nothing_else(vlm, x, tmp_path):
    coder = li.load_sparse_coder(written(tmp_path, "standard"))
    plain = vlm.capture(x, SITE)[SITE]
    strongest = int(coder.encode(plain[0, x.where("question")]).sum(0).argmax())
    gone = AblateFeatures(coder, strongest, "question")
    with li.intervening(vlm, x, gone):
        left = vlm.capture(x, SITE)[SITE]
    active, _ = by_numpy("standard", coder.weights, plain[0])
    expected = plain[0].clone()
    rows = x.where("question")
    expected[rows] -= torch.tensor(active[rows.numpy()][:, [strongest]]).float() * coder.direction(strongest)
    assert torch.allclose(left[0], expected, atol=1e-3) and not torch.allclose(left, plain, atol=1e-3)
    effects = intervene(vlm, x, gone)
    assert effects.certificates[0].holds and "AblateFeatures" in effects.provenance.parameters["interventions"]
    pushed = intervene(vlm, x, Steer(coder.site, direction=coder.direction(3), alpha=2.0))
    assert pushed.certificates[0].achieved["cosine with the direction"] == pytest.approx(1, abs=1e-4)


def test_a_transcoder_is_read_where_it_reads(vlm, x, tmp_path):
    names = {"hook_name": "blocks.1.hook_resid_mid", "hook_name_out": "blocks.1.hook_mlp_out"}
    coder = li.load_sparse_coder(written(tmp_path, "skip_transcoder", metadata=names))
    assert (coder.site, coder.written) == (*names.values(),)
    found = li.sparse_features(vlm, x, coder, positions=[5])
    states = vlm.capture(x, "blocks.1.hook_resid_mid")["blocks.1.hook_resid_mid"][0, [5]]
    assert int(found.active[0]) == int((by_numpy("skip_transcoder", coder.weights, states)[0] > 0).sum())
    assert found.unexplained.isnan().all()  # one position has no mean to be apart from


@pytest.mark.parametrize("sites", [("blocks.1.hook_resid_mid", "blocks.1.hook_mlp_out"), ("hook_embed", SITE)])
def test_what_a_transcoder_adds_is_taken_out_where_it_writes(vlm, x, tmp_path, sites):
    names = dict(zip(("hook_name", "hook_name_out"), sites, strict=True))
    coder = li.load_sparse_coder(written(tmp_path, "skip_transcoder", metadata=names))
    plain = vlm.capture(x, sites)
    read = plain[coder.site][0]
    active, _ = by_numpy("skip_transcoder", coder.weights, read)
    strongest = int(active.sum(0).argmax())
    gone = AblateFeatures(coder, [strongest], "question")
    with li.intervening(vlm, x, gone):
        left = vlm.capture(x, coder.written)[coder.written][0]
    expected, rows = plain[coder.written][0].clone(), x.where("question")
    expected[rows] -= torch.tensor(active[rows.numpy()][:, [strongest]]).float() * coder.direction(strongest)
    assert torch.allclose(left, expected, atol=1e-3)
    other, _ = by_numpy("skip_transcoder", coder.weights, plain[coder.written][0])
    assert abs(other - active)[rows.numpy()][:, strongest].max() > 1e-2  # read where it writes, it is another number
    swept = li.sweep(vlm, x, gone, {"features": [0, 1, strongest]})
    assert torch.allclose(swept.values[2].double(), intervene(vlm, x, gone).values[1].double(), atol=1e-4)


def test_a_transcoder_cannot_write_before_it_reads(vlm, x, tmp_path):
    names = {"hook_name": "blocks.1.hook_mlp_out", "hook_name_out": "blocks.1.hook_resid_pre"}
    gone = AblateFeatures(li.load_sparse_coder(written(tmp_path, "transcoder", metadata=names)), 1)
    with pytest.raises(InputError, match="would write before it reads"), li.intervening(vlm, x, gone):
        vlm.run(x)
    lost = li.load_sparse_coder(written(tmp_path / "lost", "transcoder", metadata={"hook_name_out": "blocks.9.hook"}))
    with pytest.raises(SiteError, match=r"no 'blocks\.9\.hook'"):
        intervene(vlm, x, AblateFeatures(lost, 1))


def test_features_may_be_as_active_as_what_they_add_is_long(tmp_path):
    """SAELens's rescale_acts_by_decoder_norm: chosen by that size, and decoded alike."""
    config = {"k": 3}
    plain = li.load_sparse_coder(written(tmp_path / "a", "topk", **config))
    scaled = li.load_sparse_coder(written(tmp_path / "b", "topk", rescale_acts_by_decoder_norm=True, **config))
    states = torch.randn(4, WIDTH)
    size = plain.weights["W_dec"].norm(dim=-1)
    before = (states @ plain.weights["W_enc"] + plain.weights["b_enc"]) * size
    values, places = before.topk(3, dim=-1)
    expected = torch.zeros_like(before).scatter_(-1, places, values.relu())
    assert torch.allclose(scaled.encode(states), expected, atol=1e-3)
    made = expected / size @ plain.weights["W_dec"] + plain.weights["b_dec"]
    assert torch.allclose(scaled.decode(expected), made, atol=1e-3)
    assert not torch.allclose(scaled.decode(scaled.encode(states)), plain.decode(plain.encode(states)), atol=1e-2)


def test_what_cannot_be_a_coder(vlm, x, tmp_path):
    for name, config, told in (
        ("kind", {"architecture": "matryoshka"}, "no coder of the kind 'matryoshka'"),
        ("scale", {"normalize_activations": "expected_average_only_in"}, "states are scaled by"),
        ("tuned", {"finetuning_scaling_factor": True}, "fold finetuning_scaling_factor"),
        ("where", {"hook_name": None}, "does not say where"),
        ("k", {"architecture": "topk"}, "needs it"),
        ("text", {"architecture": "topk", "activation_fn_kwargs": "k=3"}, "needs it"),
        ("word", {"architecture": "topk", "k": "many"}, "needs it"),
    ):
        folder = written(tmp_path / name, "standard")
        (folder / "cfg.json").write_text(json.dumps({"architecture": "standard", "hook_name": SITE, **config}))
        with pytest.raises(InputError, match=told):
            li.load_sparse_coder(folder)
    whole = weights_of("standard")
    for name, changed, told in (
        ("missing", {k: v for k, v in whole.items() if k != "b_enc"}, "'b_enc', which is missing"),
        ("nan", {**whole, "b_dec": torch.full((WIDTH,), torch.nan)}, "NaN"),
        ("shape", {**whole, "b_enc": torch.zeros(3)}, r"b_enc is \[3\]"),
        ("wide", weights_of("standard", out=8), "at one site"),
        ("flat", {**whole, "W_dec": torch.zeros(3)}, r"W_dec is \[3\]"),
    ):
        with pytest.raises(InputError, match=told):
            li.load_sparse_coder(written(tmp_path / name, "standard", changed))
    for text in ("[]", "{", "[" * 100_000):
        (tmp_path / "nan" / "cfg.json").write_text(text)
        with pytest.raises(InputError, match=r"cfg\.json"):
            li.load_sparse_coder(tmp_path / "nan")
    with pytest.raises(InputError, match="no sparse coder can be read"):
        li.load_sparse_coder(tmp_path / "nowhere")
    narrow = {"W_enc": torch.ones(16, 8), "W_dec": torch.ones(8, 16), "b_enc": torch.ones(8), "b_dec": torch.ones(16)}
    with pytest.raises(InputError, match="reads states of 16 numbers; got 32"):
        li.sparse_features(vlm, x, li.load_sparse_coder(written(tmp_path / "narrow", "standard", narrow)))
    written(tmp_path / "other", "standard")
    with pytest.raises(SiteError, match=r"blocks\.9"):
        intervene(vlm, x, AblateFeatures(li.load_sparse_coder(tmp_path / "other", site="blocks.9.hook_resid_post"), 1))
    good = li.load_sparse_coder(tmp_path / "other")
    for asked, told in (({"top": 0}, "top is 1 to 48"), ({"positions": []}, "no position")):
        with pytest.raises(InputError, match=told):
            li.sparse_features(vlm, x, good, **asked)
    with pytest.raises(InputError, match="no feature 48"):
        AblateFeatures(good, 48)
