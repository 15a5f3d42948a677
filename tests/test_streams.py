"""Gemma 3n: residual streams that have an axis of their own, and are mixed in the decoder's own code.

Its vision tower, which timm builds, is tested where timm is; elsewhere something small stands in its place.
"""

import importlib.util
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.gemma3n import modeling_gemma3n

import lvlm_interp as li
from lvlm_interp.engine.decoder import run_to_decoder
from lvlm_interp.errors import ModelError, SiteError
from lvlm_interp.model import parts
from tests.families import ALL, WITH_TIMM, tiny_example, tiny_model
from tests.families.shared.tiny import ROUNDING
from tests.test_gradients import need_the_same
from tools import models_table

STREAMS, WIDTH = 3, 32


class Tower(nn.Module):
    """A map of four places."""

    def __init__(self, width):
        super().__init__()
        self.convolution = nn.Conv2d(3, width, kernel_size=2, stride=32)

    def forward(self, pixel_values, **options):
        return BaseModelOutput(last_hidden_state=self.convolution(pixel_values))


def made(config):
    own = isinstance(config, transformers.Gemma3nVisionConfig)
    return Tower(config.hidden_size) if own else transformers.AutoModel.from_config(config)


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def vlm(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling_gemma3n, "AutoModel", SimpleNamespace(from_config=made))
        return li.wrap(tiny_model("gemma3n", request.param, rows=WITH_TIMM))


@pytest.fixture
def x(vlm):
    return tiny_example(vlm, "gemma3n", rows=WITH_TIMM)


def test_it_passes(vlm, x):
    found = li.check(vlm, x)
    assert found.ok, found.to_frame().to_string()


def test_streams_stand_side_by_side(vlm, x):
    seen = []
    handle = vlm.decoder.layers[1].register_forward_hook(lambda *given: seen.append(given[-1].clone()))
    found = vlm.capture(x, "*")
    handle.remove()
    streams = found["blocks.1.hook_resid_post"].unflatten(-1, (STREAMS, WIDTH))
    assert seen[0].shape == (STREAMS, 1, x.length, WIDTH) and torch.equal(streams.movedim(-2, 0), seen[0])
    assert torch.equal(found["blocks.1.hook_resid_post"], found["blocks.2.hook_resid_pre"])
    assert torch.allclose(found["logits"], vlm.run(x), atol=ROUNDING)
    assert "blocks.1.hook_resid_mid" not in found  # attention and MLP work on one stream


def test_the_decoders_own_code_mixes_them(vlm, x):
    """In a likeness of the decoder, which is left as it is; rows are not told apart, however many there are."""
    blocks, found = list(vlm.decoder.layers), vlm.capture(x, ["blocks.3.hook_resid_post", "ln_final.*"])
    last = found["blocks.3.hook_resid_post"]
    assert torch.allclose(vlm.readout.norm(last), found["ln_final.hook_out"], atol=1e-5)
    assert torch.allclose(vlm.readout(last), found["logits"], atol=ROUNDING)
    assert torch.allclose(vlm.readout(last[0, 3]), found["logits"][0, 3], atol=ROUNDING)
    assert list(vlm.decoder.layers) == blocks
    first = vlm.decoder.norm(last[..., :WIDTH])  # the control: the stream that the layers work on is not all
    assert (vlm.readout.logits(first) - found["logits"]).abs().max() > 0.1


def test_edits_and_gradients_of_streams(vlm, x):
    name, at = "blocks.1.hook_resid_post", (0, -1, 2 * WIDTH + 3)  # in the last of the streams
    found = vlm.capture(x, name, grad=True)
    (slope,) = torch.autograd.grad(found["logits"][0, -1, 7], found[name])
    step = torch.zeros_like(slope)
    step[at] = 1e-2
    up, down = (vlm.capture(x, name, edits={name: lambda v, s=s: v + s})["logits"][0, -1, 7] for s in (step, -step))
    assert slope[at].abs() > 1e-3 and torch.allclose((up - down) / 2e-2, slope[at], rtol=1e-2, atol=1e-4)


def test_a_gradient_at_the_embeddings_is_of_what_an_edit_there_does(vlm, x):
    need_the_same(vlm, x, "hook_embed")


@torch.no_grad()
def test_scores_are_those_of_transformers(vlm, x):
    """Layers that take keys and values of others, sliding windows, and embeddings layer by layer, rows dropped."""
    visible = torch.rand(4, x.length, generator=torch.Generator().manual_seed(0)) < 0.6
    visible = torch.cat([torch.stack([x.everything, x.hidden("image")]), visible | x.where("answer", "template")])
    given = {**x.model_inputs, "position_ids": torch.arange(x.length)[None]}
    expected = torch.stack(
        [
            vlm.model(**{**given, "attention_mask": row[None].long()}).logits[0, x.answer_positions - 1]
            for row in visible
        ]
    )
    found = li.score(vlm, x, visible).logits()
    assert (found - expected).abs().max() < 5e-5 and (expected[0] - expected[1]).abs().max() > 0.1


def test_logits_are_no_sum_of_what_was_written_to_several_streams(vlm, x):
    with pytest.raises(SiteError, match="several residual streams"):
        li.direct(vlm, x)


def test_a_projector_that_embeds_tokens_too(vlm, x):
    """It is called once with the ids of the prompt, and again with what the tower made of the picture."""
    image, given = x.where("image"), run_to_decoder(vlm, x).embeds[: x.length]
    assert torch.equal(vlm.capture(x, "projector.hook_out")["projector.hook_out"][0], given[image])
    blank = vlm.capture(x, "blocks.0.hook_resid_pre", edits={"projector.hook_out": torch.zeros_like})
    embeds = blank["blocks.0.hook_resid_pre"][0, :, :WIDTH]
    assert not embeds[image].any() and torch.allclose(embeds[~image], given[~image], atol=1e-5)


def test_stages_of_convolutions_have_no_residual_stream():
    class Attention(nn.Module):
        pass

    stage = nn.Sequential(nn.Conv2d(3, 3, 1), Attention())
    assert not parts.attends(nn.ModuleDict({"stages": nn.Sequential(stage)}))
    for blocks in (nn.ModuleList([Attention()]), nn.Sequential(Attention())):
        assert parts.attends(nn.ModuleDict({"stem": stage[0], "blocks": blocks}))


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm builds their vision towers")
@pytest.mark.parametrize("name", ["gemma3n", "fast_vlm"])
def test_towers_of_stages(name):
    vlm = li.wrap(tiny_model(name))
    assert not any(site.startswith("vision.") for site in vlm.sites)
    assert all(name.endswith(".attn.hook_k") for name in vlm.missing)  # where keys are another layer's
    assert "channels" in vlm.family.note and "projector.hook_out" in vlm.sites


@pytest.mark.parametrize("installed", [True, False])
def test_rows_that_cannot_be_measured_are_kept(installed, monkeypatch):
    """Where timm is, they are measured anew, if they are among those chosen."""
    others = {name: row for name, row in ALL.items() if name not in WITH_TIMM}
    monkeypatch.setattr(models_table, "ALL", {**others, **(WITH_TIMM if installed else {})})
    old = "\n".join(f"| `{name}` | yes | 1e-06 | 0e+00 | 0e+00 | 0e+00 | 0e+00 |  |" for name in ("llava", *WITH_TIMM))
    beyond = set() if installed else set(WITH_TIMM)
    assert set(models_table.kept_rows(old, ())) == beyond
    assert set(models_table.kept_rows(old, ("gemma3n", "fast_vlm"))) == {"llava", "perception_lm"} | beyond
    assert models_table.kept_rows(old, ("fast_vlm",))["gemma3n"] == (True, old.splitlines()[1].replace(" yes |", "", 1))


@pytest.mark.parametrize("path", ["embed_tokens", "embed_tokens_per_layer"])
def test_a_hook_where_tokens_become_rows_finds_the_position(vlm, x, path):
    """Of an answer token too, also where each layer is given an embedding of its own."""
    before = vlm.run(x)
    module, rows = vlm.decoder.get_submodule(path), torch.tensor([x.answer_start - 2, x.length - 2])
    with module.register_forward_hook(lambda module, args, output: output.index_fill(1, rows, 0.0)):
        found, expected, lens = li.score(vlm, x, x.everything).logits(0), vlm.run(x), li.lens(vlm, x, layers=-1, k=1)
    assert torch.allclose(found, expected[0, x.answer_positions - 1], atol=ROUNDING)
    assert torch.allclose(lens.top_logprobs[0, :, 0], expected[0].log_softmax(-1).amax(-1), atol=ROUNDING)
    assert (found - before[0, x.answer_positions - 1]).abs().max() > 1e-2


def test_what_stands_behind_the_streams_is_not_for_edits_of_a_lens(vlm, x):
    with vlm.visiting({"ln_final.hook_out": lambda value: value}):
        vlm.run(x)
        with pytest.raises(ModelError, match=r"'ln_final\.hook_out' is edited, behind the last block"):
            li.lens(vlm, x)
