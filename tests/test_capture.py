"""Activations are the model's own, and afterwards the model is as it was."""

import pytest
import torch

import lvlm_interp as li
from lvlm_interp.errors import InputError, ModelError, SiteError, VisibilityError
from lvlm_interp.model import attention, parts
from tests.families import tiny_example, tiny_model
from tests.tiny import tiny_inputs, tiny_llava

ALL = "*"


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def vlm(request):
    return li.wrap(tiny_llava(request.param))


def hooks_of(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_capturing_everything_changes_nothing(vlm):
    x = tiny_inputs(vlm)
    plain = vlm.run(x)
    captured = vlm.capture(x, ALL)
    kernel = vlm.model.config._attn_implementation
    # Under eager the kernel is the same and so is every bit; recorded layers of an SDPA model run eager.
    assert torch.allclose(captured["logits"], plain, atol=0 if kernel == "eager" else 1e-5)
    assert set(captured) == {*vlm.sites, "logits"}


def test_residual_sites_leave_the_kernel_alone(vlm):
    x = tiny_inputs(vlm)
    assert torch.equal(vlm.capture(x, "blocks.*.hook_resid_*")["logits"], vlm.run(x))


def test_the_model_is_restored(vlm):
    x = tiny_inputs(vlm)
    before = vlm.run(x), hooks_of(vlm.model), str(vlm.model.config)
    vlm.capture(x, ALL)
    with pytest.raises(ZeroDivisionError):
        vlm.capture(x, ALL, edits={"blocks.0.hook_resid_pre": lambda value: 1 / 0})
    assert torch.equal(vlm.run(x), before[0])
    assert (hooks_of(vlm.model), str(vlm.model.config)) == before[1:]


def test_activations_are_those_of_transformers(vlm):
    x = tiny_inputs(vlm)
    kernel = vlm.model.config._attn_implementation
    vlm.model.set_attn_implementation("eager")
    with torch.no_grad():
        theirs = vlm.model(**x.model_inputs, output_hidden_states=True, output_attentions=True)
    vlm.model.set_attn_implementation(kernel)
    ours = vlm.capture(x, ALL)
    for i in range(3):
        assert torch.allclose(ours[f"blocks.{i}.hook_resid_pre"], theirs.hidden_states[i], atol=1e-5)
        assert torch.allclose(ours[f"blocks.{i}.attn.hook_pattern"], theirs.attentions[i], atol=1e-6)
    assert torch.allclose(ours["ln_final.hook_normalized"], theirs.hidden_states[-1], atol=1e-5)
    assert torch.allclose(ours["projector.hook_out"][0], theirs.image_hidden_states, atol=1e-5)


@pytest.mark.parametrize("tower", ["", "vision."])
def test_the_parts_add_up(vlm, tower):
    c = vlm.capture(tiny_inputs(vlm), ALL)
    block = f"{tower}blocks.0"
    pre, mid, post = (c[f"{block}.hook_resid_{name}"] for name in ("pre", "mid", "post"))
    assert torch.allclose(pre + c[f"{block}.hook_attn_out"], mid, atol=1e-5)
    assert torch.allclose(mid + c[f"{block}.hook_mlp_out"], post, atol=1e-5)
    assert c[f"{block}.hook_attn_out"].abs().max() > 1e-3


def test_what_a_block_scales_is_added_scaled():
    """InternVL's vision tower: parameters of the block stand between attention or MLP and the residual stream."""
    vlm = li.wrap(tiny_model("internvl"))
    x = tiny_example(vlm, "internvl")
    names = [f"vision.blocks.0.hook_{part}" for part in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")]
    pre, attended, mid, mlp, post = (vlm.capture(x, names)[name] for name in names)
    assert torch.allclose(pre + attended, mid, atol=1e-5) and torch.allclose(mid + mlp, post, atol=1e-5)
    halved = vlm.capture(x, names[2], edits={names[1]: lambda value: 0.5 * value})[names[2]]
    assert torch.allclose(halved, pre + 0.5 * attended, atol=1e-5)
    block = vlm.vision.encoder.layer[0]
    assert not torch.allclose(block.lambda_1, torch.ones(()), atol=0.1)  # the control: the scale makes a difference


def test_heads_recombine_to_attention_out(vlm):
    c = vlm.capture(tiny_inputs(vlm), ALL)
    for prefix, tower in (("", vlm.decoder), ("vision.", vlm.model.base_model.vision_tower)):
        project = parts.part(parts.attention_of(parts.find_blocks(tower)[1]), parts.OUTPUT_PROJECTION)
        z = c[f"{prefix}blocks.1.attn.hook_z"]
        assert torch.allclose(project(z.flatten(-2)), c[f"{prefix}blocks.1.hook_attn_out"], atol=1e-5)


def test_pattern_times_values_is_z(vlm):
    c = vlm.capture(tiny_inputs(vlm), "blocks.2.attn.*")
    pattern, v = c["blocks.2.attn.hook_pattern"], c["blocks.2.attn.hook_v"].repeat_interleave(2, 2)
    assert torch.allclose(torch.einsum("bhqk,bkhd->bqhd", pattern, v), c["blocks.2.attn.hook_z"], atol=1e-5)
    assert torch.allclose(pattern.sum(-1), torch.ones_like(pattern.sum(-1)))
    assert torch.allclose(c["blocks.2.attn.hook_attn_scores"].softmax(-1), pattern)
    assert pattern.triu(1).max() == 0


def test_a_pattern_written_over_its_scores_is_the_same_pattern(vlm):
    x = tiny_inputs(vlm)
    patterns, scores = "*blocks.*.attn.hook_pattern", "*blocks.*.attn.hook_attn_scores"
    alone, beside = vlm.capture(x, patterns), vlm.capture(x, [patterns, scores])
    assert len(alone) > 4 and all(torch.equal(value, beside[name]) for name, value in alone.items())
    assert all(value.amin() < 0 for name, value in beside.items() if name.endswith("scores"))  # those are kept


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 5, 7), (1, 2, 33, 1025), (3, 16, 130, 130)])
def test_a_softmax_in_place_is_the_softmax(shape):
    scores = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 9
    scores[..., 1::3] = torch.finfo(torch.float32).min
    anew, over = attention._softmax(scores, spent=False), attention._softmax(spent := scores.clone(), spent=True)
    assert torch.equal(anew, over)
    assert over.data_ptr() == spent.data_ptr() and anew.data_ptr() != scores.data_ptr()
    halves = scores.clamp(-9, 9).half()
    assert attention._softmax(halves, spent=True).data_ptr() != halves.data_ptr()


def test_last_residual_through_readout_is_the_logits(vlm):
    c = vlm.capture(tiny_inputs(vlm), "blocks.2.hook_resid_post")
    assert torch.allclose(vlm.readout(c["blocks.2.hook_resid_post"]), c["logits"], atol=1e-5)
    assert not torch.allclose(vlm.readout(c["blocks.2.hook_resid_post"] * 0 + 1), c["logits"], atol=1e-1)


@pytest.mark.parametrize(
    "site", ["blocks.1.hook_resid_mid", "blocks.1.attn.hook_z", "blocks.1.attn.hook_v", "blocks.1.attn.hook_pattern"]
)
def test_edits_reach_the_output(vlm, site):
    x = tiny_inputs(vlm)
    plain = vlm.run(x)
    edited = vlm.capture(x, site, edits={site: torch.zeros_like})
    assert edited[site].abs().max() == 0
    assert (edited["logits"] - plain).abs().max() > 1e-3
    kept = vlm.capture(x, site, edits={site: lambda value: value})
    assert torch.allclose(kept["logits"], plain, atol=1e-5)


def test_an_edit_reaches_what_the_projector_reads():
    """LLaVA reads a layer of its tower by hooks of transformers, which stay from the first pass on."""
    vlm = li.wrap(tiny_llava())
    x, site, out = tiny_inputs(vlm), "vision.blocks.0.hook_resid_post", "projector.hook_out"
    vlm.model.requires_grad_(False)
    first, second = (vlm.capture(x, out, edits={site: torch.zeros_like}) for _ in range(2))
    assert torch.equal(first[out], second[out]) and torch.equal(first["logits"], second["logits"])
    assert (second[out] - vlm.capture(x, out)[out]).abs().max() > 0.1
    found = vlm.capture(x, site, grad=True)
    assert torch.autograd.grad(found["logits"][0, -1, 7], found[site])[0].abs().max() > 1e-3


def test_hooks_of_others_come_first(vlm):
    """What is recorded is what the model goes on with."""
    x, site = tiny_inputs(vlm), "blocks.0.hook_resid_post"
    handle = vlm.decoder.layers[0].register_forward_hook(lambda module, args, output: 2 * output)
    found = vlm.capture(x, [site, "blocks.1.hook_resid_pre"])
    handle.remove()
    assert torch.equal(found[site], found["blocks.1.hook_resid_pre"])
    assert torch.allclose(found[site], 2 * vlm.capture(x, site)[site], atol=1e-5)


def test_zeroing_a_head_is_zeroing_its_columns(vlm):
    x = tiny_inputs(vlm)

    def without_head(z):
        z = z.clone()
        z[:, :, 2] = 0
        return z

    edited = vlm.capture(x, "blocks.1.attn.hook_z", edits={"blocks.1.attn.hook_z": without_head})["logits"]
    weight = vlm.decoder.layers[1].self_attn.o_proj.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[:, 16:24] = 0
        expected = vlm.run(x)
        weight.copy_(kept)
    assert torch.allclose(edited, expected, atol=1e-5)


def test_unknown_sites_are_named(vlm):
    x = tiny_inputs(vlm)
    with pytest.raises(SiteError, match=r"did you mean.*blocks\.0\.hook_resid_p"):
        vlm.capture(x, "blocks.0.hook_residpre")
    with pytest.raises(SiteError, match=r"did you mean.*blocks\.1\.attn\.hook_pattern"):
        vlm.capture(x, "blocks.0.hook_resid_pre", edits={"blocks.1.attn.hook_patern": torch.zeros_like})
    with pytest.raises(SiteError, match="no site was asked for"):
        vlm.capture(x, [])
    with pytest.raises(SiteError, match="was not captured"):
        vlm.capture(x, "blocks.0.hook_resid_pre")["blocks.1.hook_resid_pre"]


@pytest.mark.parametrize(
    ("name", "nearest", "several"),
    [
        ("hook_mlp_out", "blocks.0.hook_mlp_out", 5),  # three blocks of the decoder, two of the tower
        ("blocks.0.hook_resid", "blocks.0.hook_resid_pre", 6),
        ("projector", "projector.hook_out", None),
        ("block.*.hook_z", "blocks.0.attn.hook_z", None),
        ("blocks.9.attn.hook_pattern", "blocks.0.attn.hook_pattern", None),
        ("model.layers.0", "", None),
    ],
)
def test_names_that_are_too_short_or_nearly_right(vlm, name, nearest, several):
    """A name that could mean several sites is none; the error has the first ones, and a glob that means them all."""
    x = tiny_inputs(vlm)
    with pytest.raises(SiteError) as error:
        vlm.capture(x, name)
    said = str(error.value)
    assert repr(name) in said and nearest in said
    assert (f"'*{name}*' for all {several}" in said) == (several is not None)
    if several:
        assert len(vlm.capture(x, f"*{name}*")) == several + 1  # and the logits


def test_a_site_that_does_not_fire_is_an_error(vlm):
    text, before = vlm.inputs(torch.tensor([[1, 20, 21, 22]])), hooks_of(vlm.model)
    with pytest.raises(SiteError, match=r"did not fire.*projector\.hook_out"):
        vlm.capture(text, "projector.hook_out")
    assert hooks_of(vlm.model) == before


def test_one_capture_at_a_time(vlm):
    x = tiny_inputs(vlm)
    site = "blocks.0.attn.hook_z"
    with pytest.raises(ModelError, match="captured already"):
        vlm.capture(x, site, edits={site: lambda value: vlm.capture(x, site)[site]})
    assert torch.equal(vlm.run(x), vlm.run(x))


def test_other_kinds_of_models_are_refused():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)
    with pytest.raises(ModelError, match=r"'llama' cannot be read.*llava"):
        li.wrap(LlamaForCausalLM(config))
    with pytest.raises(ModelError, match="takes a transformers model"):
        li.wrap(torch.nn.Linear(2, 2))


# --- what is kept -----------------------------------------------------------------------------------------------------

POST, PATTERN, K, Z = (
    f"blocks.1.{name}" for name in ("hook_resid_post", "attn.hook_pattern", "attn.hook_k", "attn.hook_z")
)


@pytest.fixture(scope="module")
def sdpa():
    opened = li.wrap(tiny_llava("sdpa"))
    opened.run(tiny_inputs(opened))  # from their first pass on, models have hooks of transformers
    return opened


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        ("answer", [-3, -2, -1]),
        (["image", "answer"], [3, 4, 5, 6, -3, -2, -1]),
        ([5, -1, 0], [5, -1, 0]),
        (torch.tensor([2]), [2]),
        (torch.arange(17) == 4, [4]),
    ],
    ids=["role", "roles", "indices", "tensor", "mask"],
)
def test_positions_are_slices_of_everything(sdpa, positions, expected):
    x = tiny_inputs(sdpa)
    everything, some = (sdpa.capture(x, [POST, PATTERN, Z], positions=p) for p in (None, positions))
    assert torch.equal(some[POST], everything[POST][:, expected])
    assert torch.equal(some[Z], everything[Z][:, expected])
    assert torch.equal(some[PATTERN], everything[PATTERN][:, :, expected])
    assert torch.equal(some["logits"], everything["logits"][:, expected])
    assert not torch.equal(some[POST], everything[POST][:, : len(expected)].roll(1, 1))


def test_heads_are_slices_of_everything(sdpa):
    x, names = tiny_inputs(sdpa), [PATTERN, K, Z]
    everything, some = sdpa.capture(x, names), sdpa.capture(x, names, heads=[1, 0], positions=[4])
    assert torch.equal(some[PATTERN], everything[PATTERN][:, [1, 0], 4:5])
    assert torch.equal(some[K], everything[K][:, 4:5, [1, 0]])
    assert torch.equal(some[Z], everything[Z][:, 4:5, [1, 0]])
    assert not torch.equal(some[Z], everything[Z][:, 4:5, [0, 1]])
    assert torch.equal(sdpa.capture(x, Z, heads=3)[Z], everything[Z][:, :, 3:])


def test_layers_keep_the_sites_of_their_blocks(sdpa):
    x = tiny_inputs(sdpa)
    assert list(sdpa.capture(x, "blocks.*.hook_resid_post", layers=-1)) == ["blocks.2.hook_resid_post", "logits"]
    found = set(sdpa.capture(x, "*hook_mlp_out", layers=[0, 2]))
    # The vision tower has two blocks, the decoder three.
    assert found == {"blocks.0.hook_mlp_out", "blocks.2.hook_mlp_out", "vision.blocks.0.hook_mlp_out", "logits"}
    assert "ln_final.hook_normalized" not in sdpa.capture(x, ALL, layers=0)


def test_reductions_run_over_the_chosen_positions(sdpa):
    x = tiny_inputs(sdpa)
    everything = sdpa.capture(x, [POST, PATTERN, Z])
    mean = sdpa.capture(x, [POST, PATTERN, Z], positions="image", reduce="mean")
    assert torch.allclose(mean[POST], everything[POST][:, 3:7].mean(1), atol=1e-6)
    assert torch.allclose(mean[Z], everything[Z][:, 3:7].mean(1), atol=1e-6)
    assert torch.allclose(mean[PATTERN], everything[PATTERN][:, :, 3:7].mean(2), atol=1e-6)
    assert not torch.allclose(mean[POST], everything[POST].mean(1), atol=1e-3)
    last = sdpa.capture(x, [POST, PATTERN], positions="image", reduce="last")
    assert torch.equal(last[POST], everything[POST][:, 6])
    assert torch.equal(last[PATTERN], everything[PATTERN][:, :, 6])
    assert mean["logits"].shape == (1, 4, 200)
    # A tower without prompt positions can be reduced, only not chosen from.
    tower = sdpa.capture(x, "vision.blocks.0.hook_resid_post", reduce="mean")
    assert tower["vision.blocks.0.hook_resid_post"].shape == (1, 24)


def test_memory_holds_only_what_was_chosen(sdpa):
    def held(**options):
        kept = sdpa.capture(tiny_inputs(sdpa), [POST, PATTERN, K, Z], **options)
        return {name: value.untyped_storage().nbytes() for name, value in kept.items()}

    everything, one = held(), held(positions=[-1], heads=None)
    assert one == {name: size // 17 for name, size in everything.items()}
    # The control: a plain slice would have kept the whole tensor.
    assert sdpa.capture(tiny_inputs(sdpa), POST)[POST][:, -1:].untyped_storage().nbytes() == everything[POST]
    assert held(reduce="last")[Z] == everything[Z] // 17
    assert held(dtype=torch.bfloat16)[POST] * 2 == everything[POST]
    # Two key-value heads for four query heads are stored as two.
    assert everything[K] * 2 == everything[Z]


def test_only_the_chosen_layers_leave_their_kernel(sdpa, monkeypatch):
    from transformers import AttentionInterface

    kernel, layers = AttentionInterface._global_mapping["sdpa"], []

    def counted(module, *args, **options):
        layers.append(module)
        return kernel(module, *args, **options)

    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", counted)
    sdpa.capture(tiny_inputs(sdpa), "blocks.*.attn.hook_pattern", layers=1)
    attentions = [layer.self_attn for layer in sdpa.decoder.layers]
    assert [module for module in layers if module in attentions] == [attentions[0], attentions[2]]
    layers.clear()
    sdpa.capture(tiny_inputs(sdpa), "blocks.*.attn.hook_pattern")
    assert not [module for module in layers if module in attentions]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_half_precision_models(kernel, dtype):
    half = li.wrap(tiny_llava(kernel, dtype))
    x = tiny_inputs(half)
    captured, plain = half.capture(x, ALL), half.run(x)
    assert {value.dtype for value in captured.values()} == {dtype}
    if kernel == "eager":  # the same steps in the same type: every bit is the same
        assert torch.equal(captured["logits"], plain)
    assert (captured["logits"] - plain).float().abs().max() < 0.05 * plain.float().abs().max()
    exact = half.capture(x, POST, positions="image", reduce="mean", dtype=torch.float32)[POST]
    assert exact.dtype == torch.float32
    assert torch.allclose(exact, captured[POST][:, 3:7].float().mean(1), atol=0.1)


# --- with a graph -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"positions": ["image", "answer"]}], ids=["whole", "positions"])
def test_gradients_are_those_of_finite_differences(options):
    vlm = li.wrap(tiny_llava("sdpa", torch.float64))
    vlm.model.requires_grad_(False)
    x = tiny_inputs(vlm)
    with torch.no_grad():
        kept = vlm.capture(x, [POST, Z], grad=True, **options)

    def objective(logits):
        return logits[0, -1, 7]

    slopes = torch.autograd.grad(objective(kept["logits"]), [kept[POST], kept[Z]])
    for name, slope in zip([POST, Z], slopes, strict=True):
        assert slope.shape == kept[name].shape
        direction = torch.randn(slope.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        direction /= direction.norm()
        rows = x.where("image", "answer") if options else x.where(*x.present)

        def moved(step, name=name, rows=rows, direction=direction):
            def edit(value):
                value = value.clone()
                value[:, rows] += step * direction
                return value

            return objective(vlm.capture(x, name, edits={name: edit})["logits"])

        # Norms and softmax compute in float32 whatever the model's type, so the step cannot be very small.
        measured = (moved(1e-2) - moved(-1e-2)) / 2e-2
        assert torch.allclose((slope * direction).sum(), measured, rtol=0.02, atol=2e-5)
        assert abs(measured) > 1e-3


def test_without_grad_there_is_no_graph(sdpa):
    x = tiny_inputs(sdpa)
    plain = sdpa.run(x)
    assert not any(value.requires_grad for value in sdpa.capture(x, ALL).values())
    with_graph = sdpa.capture(x, ALL, grad=True)
    assert all(value.requires_grad for name, value in with_graph.items() if not name.startswith("vision.blocks.1"))
    assert torch.allclose(with_graph["logits"], plain, atol=1e-5)
    with_graph["logits"].sum().backward()
    assert with_graph[POST].grad.abs().max() > 0
    sdpa.model.zero_grad(set_to_none=True)
    with torch.inference_mode():
        x = tiny_inputs(sdpa)
        assert torch.allclose(sdpa.capture(x, POST)["logits"], plain, atol=1e-5)


# --- what cannot be chosen --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "options", "error", "message"),
    [
        (POST, {"positions": [17]}, InputError, r"\[17\] do not all lie in an example of 17 \(0 to 16\)"),
        (POST, {"positions": [-18]}, InputError, "do not all lie"),
        (POST, {"positions": []}, InputError, "no position was asked for"),
        (POST, {"positions": torch.ones(3, dtype=torch.bool)}, InputError, "a mask over 3 positions"),
        (POST, {"positions": "picture"}, VisibilityError, "no role 'picture'"),
        ("projector.hook_out", {"positions": "image"}, SiteError, "projector.hook_out have positions of their own"),
        (ALL, {"positions": "image"}, SiteError, r"vision\.blocks\.0.*and \d+ more have positions of their own"),
        (POST, {"heads": [0]}, SiteError, "hook_resid_post have no heads"),
        (K, {"heads": 2}, SiteError, r"head 2 .*has 2 heads \(0 to 1\).*grouped-query"),
        (Z, {"heads": [-1]}, InputError, "counted from 0"),
        (Z, {"heads": []}, InputError, "at least one head"),
        (POST, {"layers": 3}, SiteError, "there is no layer 3; these sites have blocks 0 to 2"),
        (POST, {"layers": []}, SiteError, "no layer was asked for"),
        ("ln_final.hook_normalized", {"layers": 0}, SiteError, "have no layers"),
        (POST, {"layers": 0}, SiteError, r"none of these sites is in layers \[0\]"),
    ],
)
def test_what_cannot_be_chosen_is_an_error(sdpa, names, options, error, message):
    before = hooks_of(sdpa.model)
    with pytest.raises(error, match=message):
        sdpa.capture(tiny_inputs(sdpa), names, **options)
    assert hooks_of(sdpa.model) == before


def test_roles_that_do_not_occur(sdpa):
    text = sdpa.inputs(torch.tensor([[1, 20, 21, 22]]))
    with pytest.raises(InputError, match=r"no position of this example is in .*'image'.*it has the roles"):
        sdpa.capture(text, POST, positions="image")


def test_a_record_that_was_written_over_is_an_error(sdpa):
    x = tiny_inputs(sdpa)
    before, after = "blocks.0.hook_resid_post", "blocks.1.hook_resid_pre"  # the same tensor
    with pytest.raises(SiteError, match=r"blocks\.0\.hook_resid_post.*changed in place"):
        sdpa.capture(x, before, edits={after: lambda value: value.mul_(2)})
    kept = sdpa.capture(x, before, positions=range(17), edits={after: lambda value: value.mul_(2)})
    assert torch.equal(kept[before], sdpa.capture(x, before)[before])
    assert sdpa.capture(x, before, edits={after: lambda value: value * 2})[before].abs().max() > 0


def test_edits_take_globs(sdpa):
    x, heads = tiny_inputs(sdpa), "blocks.*.attn.hook_z"
    edited = sdpa.capture(x, heads, edits={heads: torch.zeros_like})
    assert all(value.abs().max() == 0 for name, value in edited.items() if name != "logits")
    assert len(edited) == 4


@pytest.mark.parametrize("site", ["blocks.1.hook_mlp_out", "blocks.1.attn.hook_pattern", "projector.hook_out"])
def test_an_edit_returns_a_tensor_of_the_same_shape(vlm, site):
    """Torch takes a hook that returns nothing for one that leaves the output alone, and stretches what is smaller."""
    x = tiny_inputs(vlm)
    before = hooks_of(vlm.model)
    for wrong, found in ((lambda value: None, "NoneType"), (lambda value: value.mean(1, keepdim=True), r"\(1, 1, ")):
        for recorded in ("blocks.0.hook_resid_pre", site):
            with pytest.raises(SiteError, match=rf"an edit of '{site}' returns the value to go on with.*gave {found}"):
                vlm.capture(x, recorded, edits={site: wrong})
    assert hooks_of(vlm.model) == before


def test_a_site_has_one_edit(sdpa):
    """One of two would be lost."""
    edits = {"blocks.*.hook_mlp_out": torch.zeros_like, "blocks.1.hook_mlp_out": lambda value: 2 * value}
    with pytest.raises(SiteError, match=r"'blocks\.1\.hook_mlp_out', which another edit means too"):
        sdpa.capture(tiny_inputs(sdpa), POST, edits=edits)


def test_a_model_in_training_mode_is_refused():
    """Its dropout would make every number another each time."""
    vlm = li.wrap(tiny_llava())
    x = tiny_inputs(vlm)
    for layer in vlm.decoder.layers:
        layer.self_attn.attention_dropout = 0.5
    scored = li.score(vlm, x, x.everything[None]).logit
    vlm.model.train()
    for ask in (lambda: vlm.run(x), lambda: vlm.capture(x, POST), lambda: li.score(vlm, x, x.everything[None])):
        with pytest.raises(ModelError, match=r"training mode.*model\.eval"):
            ask()
    vlm.model.eval()
    assert torch.equal(li.score(vlm, x, x.everything[None]).logit, scored)
