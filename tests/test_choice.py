"""What a capture keeps: layers, positions, heads, means, number types, a graph."""

import functools
import re

import pytest
import torch

import lvlm_interp as li
from lvlm_interp.errors import InputError, ModelError, SiteError, VisibilityError
from tests.tiny import hooks_of, tiny_inputs, tiny_llava

ALL = "*"


def opened(kernel):
    vlm = li.wrap(tiny_llava(kernel))
    vlm.run(tiny_inputs(vlm))  # from their first pass on, models have hooks of transformers
    return vlm


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def vlm(request):
    return opened(request.param)


@pytest.fixture(scope="module")
def sdpa():
    return opened("sdpa")


def near(one, other):
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5)


# --- what is kept -----------------------------------------------------------------------------------------------------

POST, PATTERN, K, Z = (
    f"blocks.1.{name}" for name in ("hook_resid_post", "attn.hook_pattern", "attn.hook_k", "attn.hook_z")
)


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
    """Bit for bit; rows of a pattern are computed beside the model's own kernel, which rounds elsewhere."""
    x = tiny_inputs(sdpa)
    everything, some = (sdpa.capture(x, [POST, Z], positions=p) for p in (None, positions))
    assert torch.equal(some[POST], everything[POST][:, expected])
    assert torch.equal(some[Z], everything[Z][:, expected])
    assert torch.equal(some["logits"], everything["logits"][:, expected])
    pattern, rows = (sdpa.capture(x, PATTERN, positions=p)[PATTERN] for p in (None, positions))
    assert near(rows, pattern[:, :, expected])
    assert not torch.equal(some[POST], everything[POST][:, : len(expected)].roll(1, 1))


def test_heads_are_slices_of_everything(sdpa):
    x, names = tiny_inputs(sdpa), [PATTERN, K, Z]
    everything, some = sdpa.capture(x, names), sdpa.capture(x, names, heads=[1, 0], positions=[4])
    assert near(some[PATTERN], everything[PATTERN][:, [1, 0], 4:5])
    assert near(some[K], everything[K][:, 4:5, [1, 0]])
    assert near(some[Z], everything[Z][:, 4:5, [1, 0]])
    assert not near(some[Z], everything[Z][:, 4:5, [0, 1]])
    assert torch.equal(sdpa.capture(x, Z, heads=3)[Z], everything[Z][:, :, 3:])


def test_layers_keep_the_sites_of_their_blocks(sdpa):
    x = tiny_inputs(sdpa)
    assert list(sdpa.capture(x, "blocks.*.hook_resid_post", layers=-1)) == ["blocks.2.hook_resid_post", "logits"]
    found = set(sdpa.capture(x, "*hook_mlp_out", layers=[0, 2]))
    # The vision tower has two blocks, the decoder three.
    assert found == {"blocks.0.hook_mlp_out", "blocks.2.hook_mlp_out", "vision.blocks.0.hook_mlp_out", "logits"}
    assert "ln_final.hook_out" not in sdpa.capture(x, ALL, layers=0)


def test_reductions_run_over_the_chosen_positions(sdpa):
    x = tiny_inputs(sdpa)
    everything = sdpa.capture(x, [POST, PATTERN, Z])
    mean = sdpa.capture(x, [POST, PATTERN, Z], positions="image", reduce="mean")
    assert near(mean[POST], everything[POST][:, 3:7].mean(1))
    assert near(mean[Z], everything[Z][:, 3:7].mean(1))
    assert near(mean[PATTERN], everything[PATTERN][:, :, 3:7].mean(2))
    assert not torch.allclose(mean[POST], everything[POST].mean(1), atol=1e-3)
    last = sdpa.capture(x, [POST, PATTERN], positions="image", reduce="last")
    assert near(last[POST], everything[POST][:, 6])
    assert near(last[PATTERN], everything[PATTERN][:, :, 6])
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

    @functools.wraps(kernel)  # else it would be a function of somebody's own
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
    assert (exact - captured[POST][:, 3:7].float().mean(1)).abs().max() < 0.02 * exact.abs().max()


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
        ("ln_final.hook_out", {"layers": 0}, SiteError, "have no layers"),
        (POST, {"dtype": torch.int8}, InputError, "a torch dtype with a point"),
        (POST, {"dtype": torch.complex64}, InputError, "a torch dtype with a point"),
        (POST, {"dtype": "auto"}, InputError, "its name, or None, which keeps the model's own; got 'auto'"),
        (POST, {"device": "meta"}, InputError, "'meta' weights hold no numbers"),
        (POST, {"device": "cuda:97"}, InputError, "no device 'cuda:97' here"),
        (POST, {"layers": 0}, SiteError, r"none of these sites is in layers \[0\]"),
    ],
)
def test_what_cannot_be_chosen_is_an_error(sdpa, names, options, error, message):
    before = hooks_of(sdpa.model)
    with pytest.raises(error, match=message):
        sdpa.capture(tiny_inputs(sdpa), names, **options)
    assert hooks_of(sdpa.model) == before


@pytest.mark.parametrize(
    ("options", "offers", "taken"),
    [
        ({"dtype": "int8"}, r"torch\.\w+(?=, its name)", lambda name: {"dtype": name}),
        ({"reduce": "sum"}, r"'(mean|last)'", lambda name: {"reduce": name}),
        ({"heads": 0}, r"'(\*\.\w+)'", lambda glob: {"heads": 0, "sites": glob}),
    ],
    ids=["dtype", "reduce", "heads"],
)
def test_what_a_message_offers_is_taken(sdpa, options, offers, taken):
    x = tiny_inputs(sdpa)
    with pytest.raises((InputError, SiteError)) as refused:
        sdpa.capture(x, POST, **options)
    offered = re.findall(offers, str(refused.value))
    assert offered and all(sdpa.capture(x, **{"sites": POST, **taken(one)}) for one in offered)


def test_a_type_of_numbers_is_told_by_its_name_too(sdpa):
    x = tiny_inputs(sdpa)
    expected = sdpa.capture(x, POST, dtype=torch.float64)[POST]
    for name in ("float64", "torch.float64"):
        assert torch.equal(sdpa.capture(x, POST, dtype=name)[POST], expected)


@pytest.mark.parametrize("change", [torch.Tensor.long, torch.Tensor.double, torch.Tensor.bool])
def test_an_edit_keeps_the_kind_of_numbers(sdpa, change):
    x = tiny_inputs(sdpa)
    with pytest.raises(SiteError, match=r"returns the value to go on with, .*float32 cpu; it gave"):
        sdpa.capture(x, POST, edits={POST: change})


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


@pytest.mark.parametrize("kind", [torch.uint8, torch.int64, torch.float32])
def test_a_mask_of_numbers_is_no_list_of_positions(sdpa, kind):
    x = tiny_inputs(sdpa)
    with pytest.raises(InputError, match="a mask of True and False"):
        sdpa.capture(x, POST, positions=x.where("image").to(kind))
    assert sdpa.capture(x, POST, positions=[0, 1])[POST].shape[1] == 2
