"""Each check holds on every family, and a fault planted for it is caught by it and by no other."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
import transformers
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

import lvlm_interp as li
from lvlm_interp.compat import has_transformers
from lvlm_interp.engine import decoder, packed, plan
from lvlm_interp.engine.decoder import run_to_decoder
from lvlm_interp.errors import InputError, ModelError, SiteError
from lvlm_interp.families.shared import registry
from lvlm_interp.families.shared.family import Family
from lvlm_interp.model import attention, parts
from lvlm_interp.model.sites import Site
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.opening import checks, conformance, rounding
from lvlm_interp.opening.checks import CHECKS
from lvlm_interp.opening.conformance import check
from lvlm_interp.opening.masked import masked
from tests.families import ALL, FAILING, TOO_NEW, UNTRIED, tiny_example, tiny_model
from tests.families.shared.tiny import text
from tools import models_table


def example(name="llava"):
    vlm = li.wrap(tiny_model(name))
    return vlm, tiny_example(vlm, name)


def failed(vlm, x):
    return [row.check for row in check(vlm, x).checks if not row.ok]


@pytest.mark.parametrize("name", [name for name in ALL if name not in FAILING])
def test_every_family_passes(name):
    """Or is refused with a transformers with which it is not read truly yet."""
    if name in registry.FAMILIES and not registry.known(name):
        with pytest.raises(ModelError, match=f"{name!r} cannot be read truly"):
            example(name)
        return
    found = check(*example(name))
    assert found.ok, found.to_frame().to_string()
    assert [row.check for row in found.checks] == list(CHECKS)


def test_types_that_transformers_has_are_not_skipped():
    """A test is skipped where transformers does not know the type: its files must not speak of that type either."""
    files = (Path(transformers.__file__).parent / "models").glob("*/configuration_*.py")
    there = {name for file in files for name in re.findall(r'^    model_type = "(.+)"', file.read_text(), re.M)}
    assert not TOO_NEW & there and {row.config["model_type"] for row in ALL.values()} - TOO_NEW <= there
    assert not (TOO_NEW and has_transformers("5.23"))


@pytest.mark.parametrize("name", FAILING)
def test_every_failing_family_fails(name):
    """Or is refused when it is opened; what has come to pass belongs into the package's table."""
    assert name not in registry.FAMILIES and name not in UNTRIED
    with pytest.raises(ModelError, match="cannot be read"):
        check(*example(name)).need()


def test_a_language_model_with_an_encoder_of_its_own():
    """Some models of a family that passes: InstructBLIP with T5."""
    row = ALL["instructblip"]
    t5 = {"model_type": "t5", "d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4, "num_layers": 2}
    rows = {"instructblip": dataclasses.replace(row, config={**row.config, "text_config": t5})}
    with pytest.raises(ModelError, match="'instructblip' cannot be read: it is an encoder-decoder"):
        li.wrap(tiny_model("instructblip", "eager", rows=rows))


def test_a_refusal_is_a_row_of_the_table():
    assert models_table.row("git") == (False, f"| `git` | – | – | – | – | – | – | refused: {FAILING['git']} |")
    passes, line = models_table.row("minimax_m3_vl")
    assert not passes and "**fails**" in line and "refused" not in line


@pytest.mark.parametrize("name", ["inkling_mm_model", "inkling2"])
def test_biases_and_sinks_of_attention_are_captured(name):
    """Learned biases by distance, and a score more in each row: these families fail other checks, but not this one."""
    vlm = li.wrap(tiny_model(name))
    vlm.accepted = True
    assert checks.parity(vlm, tiny_example(vlm, name)).ok


def test_a_decoder_with_a_sink_for_each_head():
    """InternVL with the decoder of GPT-OSS."""
    decoder = text("gpt_oss", num_local_experts=4, num_experts_per_tok=2, sliding_window=5)
    config = {**ALL["internvl"].config, "text_config": decoder}
    rows = {"internvl": dataclasses.replace(ALL["internvl"], config=config, kernel="eager")}
    vlm = li.wrap(tiny_model("internvl", rows=rows))
    found = check(vlm, tiny_example(vlm, "internvl", rows=rows))
    assert found.ok, found.to_frame().to_string()


# --- one fault for each check ---------------------------------------------------------------------


def test_a_shifted_position(monkeypatch):
    """The gap that hidden rows leave is closed, as if they had never been there."""
    vlm, x = example()
    kind = type(vlm.decoder)
    forward = kind.forward

    def closing(self, **given):
        if given["attention_mask"] is not None and given["attention_mask"].ndim == 4:  # the engine's own passes
            given["position_ids"] = torch.arange(given["inputs_embeds"].shape[1])[None]
        return forward(self, **given)

    monkeypatch.setattr(kind, "forward", closing)  # that of an object would count as an edit
    assert failed(vlm, x) == ["positions"]


def test_a_leaked_pixel(monkeypatch):
    """The first token gets a trace of the picture, hidden or not, in the slow way too: no other check can tell."""
    vlm, x = example()
    embed, call = vlm.model.get_input_embeddings(), vlm.call

    def trace(model_inputs):
        return model_inputs["pixel_values"].mean() * 1e-2

    def leaking(model_inputs):
        def add(_, args, embedded):
            embedded = embedded.clone()
            embedded[:, 0] += trace(model_inputs)
            return embedded

        handle = embed.register_forward_hook(add)
        try:
            return call(model_inputs)
        finally:
            handle.remove()

    monkeypatch.setattr(vlm, "call", lambda given: leaking(given) if "pixel_values" in given else call(given))
    assert failed(vlm, x) == ["leak", "batch"]  # beside another example, the trace is of both pictures


def test_pixels_that_make_no_difference():
    """The positive control: a projector of zeros hides every image, and a leak check alone would praise it."""
    vlm, x = example()
    with torch.no_grad():
        for weight in vlm.projector.parameters():
            weight.zero_()
    found = check(vlm, x)
    assert [row.check for row in found.checks if not row.ok] == ["leak"] and "no difference" in found["leak"].advice


def test_a_hook_left_behind(monkeypatch):
    vlm, x = example()
    capture = vlm.capture

    def careless(*args, **kwargs):
        vlm.model.register_forward_hook(lambda *_: None)
        return capture(*args, **kwargs)

    monkeypatch.setattr(vlm, "capture", careless)
    found = check(vlm, x)
    assert [row.check for row in found.checks if not row.ok] == ["restore"] and "hook" in found["restore"].detail


def test_a_site_that_does_not_fire():
    vlm, x = example()
    idle = torch.nn.Linear(1, 1)
    vlm.sites["blocks.0.hook_idle"] = Site("blocks.0.hook_idle", idle, "output")
    before, state = vlm.run(x), checks._state(vlm)
    found = check(vlm, x)
    assert [row.check for row in found.checks if not row.ok] == ["sites"]
    assert "blocks.0.hook_idle" in found["sites"].detail
    # Captures broke off in the middle of three checks, and left nothing behind, not even in the module that idles.
    assert torch.equal(vlm.run(x), before) and checks._state(vlm) == state and not idle._forward_hooks
    del vlm.sites["blocks.0.hook_idle"]
    assert check(vlm, x).ok  # the control


def test_a_mask_function_left_out(monkeypatch):
    vlm, x = example()
    for kernel in ("eager", "sdpa"):
        monkeypatch.setitem(
            ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, attention.PREFIX + kernel, lambda *args, **kwargs: None
        )
    monkeypatch.setattr(attention, "_additive", lambda mask, *rest: mask)  # nor does our attention make its own
    assert failed(vlm, x) == ["parity"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "paligemma", "instructblip"])
def test_half_precision(name, dtype, monkeypatch):
    """Transformers' own kernels differ there by more than float error; a mask that is left out still shows."""
    vlm = li.wrap(tiny_model(name, dtype=dtype))
    x = tiny_example(vlm, name)
    found = check(vlm, x)
    assert found.ok, found.to_frame().to_string()
    for kernel in ("eager", "sdpa"):
        monkeypatch.setitem(
            ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, attention.PREFIX + kernel, lambda *args, **kwargs: None
        )
    monkeypatch.setattr(attention, "_additive", lambda mask, *rest: mask)
    assert failed(vlm, x) == ["parity"]


def test_the_reference_model_in_half_precision():
    """As most models are stored; 24 layers deep, its logits under sdpa and under eager are up to 12 apart."""
    assert check(li.load("reference", dtype=torch.bfloat16)).ok


def rename(monkeypatch, module, **names):
    """What a module knows parts by."""
    monkeypatch.setattr(module, "NAMES", dataclasses.replace(module.NAMES, **names))


def test_heads_that_do_not_recombine(monkeypatch):
    vlm, x = example()
    rename(monkeypatch, parts, output_projection=("q_proj",))
    assert failed(vlm, x) == ["sites"]


def test_values_of_other_heads(monkeypatch):
    """Fuyu's decoder computes q, k and v head by head; cut in thirds, every site still fires, with wrong numbers."""
    rename(monkeypatch, parts, head_by_head=())
    assert failed(*example("fuyu")) == ["sites"]


def test_a_gate_between_heads_and_their_projection(monkeypatch):
    monkeypatch.setattr(parts, "GATING", set())
    assert failed(*example("muse_glimmer")) == ["sites"]


def test_a_norm_between_heads_and_their_projection(monkeypatch):
    rename(monkeypatch, parts, inner_norm=())
    assert failed(*example("kosmos-2")) == ["sites"]


@pytest.mark.parametrize("name", ["kosmos-2", "kosmos-2.5"])
def test_positions_counted_from_nought(name, monkeypatch):
    """Kosmos counts them from beyond the id of its padding token."""
    monkeypatch.setattr(HookedVLM, "uncounted", None)
    assert failed(*example(name)) == ["positions", "batch"]


def test_masks_that_a_decoder_makes_itself(monkeypatch):
    """Kosmos-2 takes one of padding only; the checks that give it another cannot be carried out."""
    vlm, x = example("kosmos-2")
    vlm.family = dataclasses.replace(vlm.family, own_masks=False)
    assert {"leak", "positions"} <= set(failed(vlm, x))


def test_logits_scaled_the_wrong_way(monkeypatch):
    """What Granite divides its logits by, HyperCLOVA X multiplies them by, under the same name."""
    monkeypatch.setitem(registry.FAMILIES, "hyperclovax_vision_v2", Family())
    assert failed(*example("hyperclovax_vision_v2")) == ["positions", "sites"]  # the engine reads out too


def test_tokens_that_are_never_said(monkeypatch):
    """Chameleon sets the logits of image tokens to the lowest number; nor may that number be the scale of errors."""
    vlm, x = example("chameleon")
    never = vlm.readout.never
    assert (vlm.run(x)[..., never] == torch.finfo(torch.float32).min).all() and check(vlm, x)["parity"].limit < 1e-3
    monkeypatch.setitem(registry.FAMILIES, "chameleon", Family())
    assert failed(*example("chameleon")) == ["positions", "sites"]


@pytest.mark.parametrize("name", ["dots3_note", "mistral_large4"])
def test_keys_that_a_sparse_layer_did_not_choose(name, monkeypatch):
    """Transformers leaves them to kernels that it does not know by name, as ours are."""
    monkeypatch.setattr(attention, "_chosen", lambda mask, *rest: mask)
    assert failed(*example(name)) == ["parity"]


@pytest.mark.parametrize(
    "name",
    [
        "chameleon",
        "dots3_note",
        "gemma4",
        "kimi_k25",
        "kosmos-2",
        "kosmos-2.5",
        "llama4",
        "mistral_large4",
        "molmo2",
        "step3p7",
    ],
)
def test_what_is_computed_once_changes_no_number(name, monkeypatch):
    """Prefixes that are shared or kept, where layers keep other things than keys and values, or in other shapes."""
    monkeypatch.setattr(plan, "LOOKAHEAD", 1)
    monkeypatch.setattr(packed, "WORTH_SHARING", 1)
    vlm, x = example(name)
    visible = x.everything.repeat(3, 1)
    visible[1:, x.images[0].positions[:2]] = ~torch.eye(2, dtype=torch.bool)
    slowly = [masked(vlm, x, row) for row in visible]
    expected = torch.stack([run() for run in slowly])
    given = run_to_decoder(vlm, x, keep_prompt=True)
    for handed in (None, given, given):
        found = li.score(vlm, x, visible, decoder_inputs=handed).logits()
        for run, one, other in zip(slowly, found, expected, strict=True):
            gap = rounding.apart(one, other)
            assert gap <= rounding.allowed(vlm, run, other, gap).limit
    assert (expected[0] - expected[1]).abs().max() > 1e-2


def test_arguments_that_follow_from_the_tokens(monkeypatch):
    """Gemma 4 embeds each token once more, layer by layer: those of one answer are not those of another."""
    rename(monkeypatch, decoder, of_tokens={}, row_axis={**decoder.NAMES.row_axis, "per_layer_inputs": 1})
    assert failed(*example("gemma4")) == ["positions"]


# --- results and refusals -------------------------------------------------------------------------


def test_the_table():
    vlm, x = example()
    found = check(vlm, x)
    assert list(found.to_frame()["check"]) == list(CHECKS) and "parity" in found._repr_html_()
    found.need()
    with pytest.raises(KeyError, match="no check 'speed'"):
        found["speed"]


def test_an_example_is_needed():
    vlm, x = example()
    with pytest.raises(InputError, match="without a processor none can be made"):
        check(vlm)
    with pytest.raises(InputError, match="no image"):
        check(vlm, vlm.inputs(torch.tensor([[1, 5, 6]]), 2))
    assert check(vlm, vlm.inputs(x.input_ids, pixel_values=x.model_inputs["pixel_values"])).ok  # any answer will do
    keep = torch.arange(x.length) != int(x.images[0].positions[0])
    with pytest.raises(InputError, match="3 image tokens"):
        check(vlm, vlm.inputs(x.input_ids[:, keep], pixel_values=x.model_inputs["pixel_values"]))


def test_a_type_outside_the_table_must_pass(monkeypatch):
    monkeypatch.setattr(registry, "FAMILIES", {})
    vlm = li.wrap(tiny_model("idefics3"))
    assert not vlm.accepted
    tiny_example(vlm, "idefics3")
    assert vlm.accepted
    other = li.wrap(tiny_model("mllama"))  # a masked image leaks there
    with pytest.raises(ModelError, match=r"'mllama' cannot be read truly: the \w+ check"):
        tiny_example(other, "mllama")


def test_weights_that_are_not_numbers():
    model = tiny_model("llava")
    with torch.no_grad():
        model.lm_head.weight[3, 4] = float("nan")
    with pytest.raises(ModelError, match=r"NaN or infinity.*lm_head"):
        li.wrap(model)


def test_attention_that_goes_its_own_way(monkeypatch):
    """Its sites are missing by name, with the reason; the others stay."""
    model = tiny_model("llava")
    kind = type(model.base_model.vision_tower.encoder.layers[0].self_attn)

    def own(self, hidden_states, attention_mask=None, **kwargs):
        queries, keys = self.q_proj(hidden_states), self.k_proj(hidden_states)
        return self.out_proj(self.v_proj(hidden_states) + 0.1 * queries * keys), None

    monkeypatch.setattr(kind, "forward", own)
    vlm = li.wrap(model)
    x = tiny_example(vlm, "llava")
    assert "vision.blocks.0.attn.hook_pattern" in vlm.missing and "vision.blocks.0.attn.hook_v" in vlm.sites
    with pytest.raises(SiteError, match=r"cannot be read in this model.*CLIPAttention computes attention by itself"):
        vlm.capture(x, "vision.blocks.*.attn.hook_pattern")
    found = check(vlm, x)
    assert found.ok and "cannot be read" in found["sites"].detail


def test_the_command_line(monkeypatch):
    """Status 0 only if all checks hold."""
    from typer.testing import CliRunner

    from lvlm_interp import cli
    from lvlm_interp.cli.commands import check as command

    vlm, x = example()
    monkeypatch.setattr(command, "open_model", lambda *_: vlm)
    monkeypatch.setattr(conformance, "_example", lambda _: x)
    good = CliRunner().invoke(cli.app, ["check", "some/model"])
    assert good.exit_code == 0 and all(name in good.output for name in CHECKS) and "FAILS" not in good.output
    with torch.no_grad():
        for weight in vlm.projector.parameters():
            weight.zero_()
    bad = CliRunner().invoke(cli.app, ["check", "some/model"])
    assert bad.exit_code == 1 and "FAILS" in bad.output
