"""A run sees what it was asked to see: under edits and hooks of others, in several threads, and inside another run."""

import contextlib
import copy
import dataclasses
import functools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import lvlm_interp as li
from lvlm_interp.engine.decoder import run_to_decoder
from lvlm_interp.errors import InputError, ModelError, SiteError, VisibilityError
from tests.families import tiny_example, tiny_model
from tests.test_score import naive, random_coalitions
from tests.tiny import tiny_inputs, tiny_llava

SITE = "blocks.1.hook_resid_post"


@pytest.fixture
def vlm():
    return li.wrap(tiny_llava())


def shifted(value):
    """Adds to each position a number of its own: an edit by position."""
    by_row = torch.arange(value.shape[1], dtype=value.dtype)[None, :, None].sin()
    return value + by_row * value.roll(1, -1)


@contextlib.contextmanager
def hooked(vlm, edit, path="layers.1"):
    """The same edit as a hook of the user's own."""
    handle = vlm.decoder.get_submodule(path).register_forward_hook(lambda module, args, output: edit(output))
    try:
        yield
    finally:
        handle.remove()


def masked(vlm, x, visible, edit, site=SITE):
    """The oracle: one plain pass over all rows, under a mask; log-probabilities of the answer."""
    causal = torch.ones(x.length, x.length, dtype=torch.bool).tril()
    see = (causal & visible) | torch.eye(x.length, dtype=torch.bool)
    mask = torch.zeros(1, 1, x.length, x.length).masked_fill(~see, torch.finfo(torch.float32).min)
    logits = vlm.capture(with_mask(x, mask), site, edits={site: edit})["logits"]
    logprobs = logits[0, x.answer_start - 1 : -1].log_softmax(-1)
    return logprobs.gather(-1, x.answer_ids[:, None])[:, 0]


def with_mask(x, mask):
    return dataclasses.replace(x, model_inputs={**x.model_inputs, "attention_mask": mask})


def coalitions(x):
    return torch.stack([x.everything, x.hidden("image"), x.hidden("context"), x.hidden("image", "question")])


@pytest.mark.parametrize("way", ["edits", "visiting", "hook"])
def test_an_edit_by_position_finds_the_position(vlm, way):
    x = tiny_inputs(vlm)
    visible = coalitions(x)
    expected = torch.stack([masked(vlm, x, row, shifted) for row in visible])
    if way == "edits":
        found = li.score(vlm, x, visible, edits={SITE: shifted})
    else:
        with vlm.visiting({SITE: shifted}) if way == "visiting" else hooked(vlm, shifted):
            found = li.score(vlm, x, visible)
    assert torch.allclose(found.logprob, expected, atol=1e-5)
    assert not torch.allclose(li.score(vlm, x, visible).logprob, expected, atol=1e-2)


@pytest.mark.parametrize("keep_prompt", [False, True])
def test_an_edit_by_position_finds_it_where_rows_could_be_shared(vlm, keep_prompt):
    """What coalitions compute alike is computed once without edits, and may be kept from call to call."""
    x = tiny_inputs(vlm, images=9)
    visible = torch.stack([x.everything, x.hidden("context"), x.hidden("question")])
    kept = run_to_decoder(vlm, x, keep_prompt=keep_prompt)
    plain = li.score(vlm, x, visible, decoder_inputs=kept)
    assert plain.rows < 2 * x.length  # the control: without edits they are shared
    found = li.score(vlm, x, visible, decoder_inputs=kept, edits={SITE: shifted})
    expected = torch.stack([masked(vlm, x, row, shifted) for row in visible])
    assert torch.allclose(found.logprob, expected, atol=1e-5) and found.rows == len(visible) * x.length
    assert not torch.allclose(plain.logprob, expected, atol=1e-2)


def test_image_rows_that_are_hidden_from_all_are_hidden_from_image_rows(vlm):
    """Rows that stay in their places, unseen, are not seen by the rows of the image either."""
    x = tiny_inputs(vlm)
    visible = x.everything.clone()[None]
    visible[0, x.where("image").nonzero()[0]] = False
    kept = li.score(vlm, x, visible, edits={SITE: lambda value: value})
    assert torch.allclose(kept.logprob, li.score(vlm, x, visible).logprob, atol=1e-5)
    by_text = li.score(vlm, x, visible, hide_from="text", edits={SITE: lambda value: value})
    assert torch.allclose(by_text.logprob, li.score(vlm, x, visible, hide_from="text").logprob, atol=1e-5)
    assert not torch.allclose(by_text.logprob, kept.logprob, atol=1e-4)


@pytest.mark.parametrize("hide_from", ["all", "text"])
def test_hidden_text_is_seen_by_nobody_where_rows_stand(vlm, hide_from):
    """Image rows go on seeing images, and no text in front of them that is hidden."""
    x = tiny_inputs(vlm)
    visible = torch.cat([torch.stack([x.hidden("system"), x.hidden("context", "image")]), random_coalitions(x, 6)])
    found = li.score(vlm, x, visible, hide_from, edits={SITE: lambda value: value})
    expected = naive(vlm, x, visible, hide_from).log_softmax(-1)[:, range(len(x.answer_ids)), x.answer_ids]
    assert torch.allclose(found.logprob, expected, atol=1e-5)
    other = "text" if hide_from == "all" else "all"
    assert not torch.allclose(found.logprob, li.score(vlm, x, visible, other).logprob, atol=1e-3)


@pytest.mark.parametrize("name", ["gemma3", "paligemma", "mllama", "gemma4"])
@pytest.mark.parametrize("hide", ["image", None])
def test_an_edit_that_changes_nothing_changes_nothing(name, hide):
    """In other families too: rows that stand where they stand give what packed rows give."""
    vlm = li.wrap(tiny_model(name))
    x = tiny_example(vlm, name)
    visible = (x.hidden(hide) if hide else x.everything)[None]
    kept = li.score(vlm, x, visible, edits={"blocks.0.hook_resid_post": lambda value: value})
    assert torch.allclose(kept.logit, li.score(vlm, x, visible).logit, atol=1e-3)


def test_sites_may_stay_silent_where_nothing_runs(vlm):
    """An edit that is put up around what is found done already; after a pass of anyone's, what is silent is named."""
    x, other = tiny_inputs(vlm), vlm.sites[SITE]
    beside = dataclasses.replace(other, name="beside", module=torch.nn.Identity())
    with vlm.visiting({SITE: shifted}):
        pass
    for run in (lambda: vlm.model(**x.model_inputs), lambda: vlm.run(x), lambda: li.score(vlm, x, coalitions(x))):
        with pytest.raises(SiteError, match="did not fire"), vlm.visiting({beside: shifted}):
            run()


def test_what_is_passed_over_cannot_stand_in_its_place():
    vlm = li.wrap(tiny_model("qwen3_5"))
    x = tiny_example(vlm, "qwen3_5")
    with pytest.raises(VisibilityError, match="passed over"):
        li.score(vlm, x, x.hidden("image")[None], edits={SITE: shifted})


METHODS = {
    "contrast": lambda vlm, x: li.contrast(vlm, x).with_logprob,
    "credit": lambda vlm, x: li.credit(vlm, x, value="logprob").total,
    "lens": lambda vlm, x: li.lens(vlm, x, layers=[3]).top_logprobs[0],
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_sees_an_edit_and_names_it(vlm, method):
    x = tiny_inputs(vlm)
    plain = METHODS[method](vlm, x)
    with vlm.visiting({SITE: shifted}):
        edited = METHODS[method](vlm, x)
    assert not torch.allclose(plain.float(), edited.float(), atol=1e-2)
    assert torch.equal(METHODS[method](vlm, x), plain)


def test_provenance_names_edits_and_hooks_of_others(vlm):
    x = tiny_inputs(vlm)
    assert li.contrast(vlm, x).provenance.edits == ()
    with vlm.visiting({SITE: shifted}), hooked(vlm, shifted):
        assert li.contrast(vlm, x).provenance.edits == (SITE, "hook: model.language_model.layers.1")
    assert li.contrast(vlm, x).provenance.edits == ()


def test_a_hook_that_scoring_would_pass_by_is_refused(vlm):
    x = tiny_inputs(vlm)
    for module in (vlm.model, vlm.readout.unembed):
        handle = module.register_forward_hook(lambda module, args, output: output)
        with pytest.raises(ModelError, match="hook of your own"):
            li.contrast(vlm, x)
        handle.remove()
    li.contrast(vlm, x)


def test_hooks_for_all_modules_are_hooks_too(vlm):
    x = tiny_inputs(vlm)
    with torch.nn.modules.module.register_module_forward_hook(lambda *_: None):
        assert "hook: every module" in li.contrast(vlm, x).provenance.edits


def test_an_edit_of_the_projector_is_seen_and_rows_are_packed(vlm):
    """What is before the decoder has its rows in their places already."""
    x = tiny_inputs(vlm)
    visible = coalitions(x)
    with vlm.visiting({"projector.hook_out": lambda value: value * 0}):
        edited = li.score(vlm, x, visible)
    changed = li.score(vlm, x, visible)
    assert edited.rows == changed.rows and not torch.allclose(edited.logprob, changed.logprob, atol=1e-3)


# --- kept decoder inputs ----------------------------------------------------------------------------------------------


def test_kept_decoder_inputs_notice_that_the_model_changed(vlm):
    x = tiny_inputs(vlm)
    kept = run_to_decoder(vlm, x, keep_prompt=True)
    li.contrast(vlm, x, decoder_inputs=kept)
    with vlm.visiting({SITE: shifted}):  # edits in the decoder are behind them
        edited = li.contrast(vlm, x, decoder_inputs=kept).with_logprob
        assert torch.allclose(edited, li.contrast(vlm, x).with_logprob, atol=1e-5)
    with pytest.raises(InputError, match="other edits"), vlm.visiting({"projector.hook_out": shifted}):
        li.contrast(vlm, x, decoder_inputs=kept)
    vlm.decoder.layers[0].mlp.up_proj.weight.data.mul_(2)
    with pytest.raises(InputError, match="before its weights"):
        li.contrast(vlm, x, decoder_inputs=kept)


@contextlib.contextmanager
def patched(module, change):
    """A forward of the user's own in the place of the class's, wearing its name."""
    own = module.forward
    module.forward = functools.wraps(own)(lambda *args, **kwargs: change(own(*args, **kwargs)))
    try:
        yield
    finally:
        del module.forward


@contextlib.contextmanager
def put_on(module, change):
    handle = module.register_forward_hook(lambda module, args, output: change(output))
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("way", [patched, put_on])
@pytest.mark.parametrize(
    "path", ["model.multi_modal_projector", "model.vision_tower", "model.language_model.embed_tokens"]
)
def test_kept_decoder_inputs_notice_hooks_in_front_of_the_decoder(vlm, path, way):
    """That are put on since, and taken off."""
    x = tiny_inputs(vlm)
    kept = run_to_decoder(vlm, x)
    module = vlm.model.get_submodule(path)
    with way(module, lambda output: output):
        with pytest.raises(InputError, match="other hooks"):
            li.score(vlm, x, x.everything[None], decoder_inputs=kept)
        hooked_too = run_to_decoder(vlm, x)
        li.score(vlm, x, x.everything[None], decoder_inputs=hooked_too)
    with pytest.raises(InputError, match="other hooks"):
        li.score(vlm, x, x.everything[None], decoder_inputs=hooked_too)
    with way(vlm.blocks[0], lambda output: output):  # behind them
        li.score(vlm, x, x.everything[None], decoder_inputs=kept)


# --- forwards of one's own --------------------------------------------------------------------------------------------


def test_a_forward_of_ones_own_finds_each_row_at_its_position(vlm):
    x = tiny_inputs(vlm)
    visible = coalitions(x)
    expected = li.score(vlm, x, visible, edits={SITE: shifted})
    with patched(vlm.blocks[1], shifted):
        found = li.score(vlm, x, visible)
        assert li.contrast(vlm, x).provenance.edits == ("hook: model.language_model.layers.1",)
    assert torch.allclose(found.logprob, expected.logprob, atol=1e-5)
    assert li.contrast(vlm, x).provenance.edits == ()


def test_a_forward_that_scoring_would_pass_by_is_refused(vlm):
    x = tiny_inputs(vlm)
    for module in (vlm.model, vlm.model.model, vlm.readout.unembed):
        with patched(module, lambda output: output), pytest.raises(ModelError, match="forward in the place"):
            li.contrast(vlm, x)
    li.contrast(vlm, x)


def test_forwards_that_packages_put_there_are_none_of_ones_own(vlm):
    accelerate = pytest.importorskip("accelerate")
    block, mlp = vlm.blocks[1], vlm.blocks[1].mlp
    accelerate.hooks.add_hook_to_module(block, accelerate.hooks.AlignDevicesHook())
    mlp.forward = torch.no_grad()(torch.compile(mlp.forward))
    assert "forward" in vars(block) and vlm.active_edits == ()
    mlp.forward = vlm.blocks[0].mlp.forward
    block._old_forward = torch.no_grad()(lambda *args, **kwargs: None)
    assert vlm.active_edits == tuple(f"hook: model.language_model.layers.1{end}" for end in ("", ".mlp"))


# --- threads and nested runs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beside", ["run", "contrast", "capture"])
def test_threads_do_not_see_each_other(vlm, beside):
    x, y = tiny_inputs(vlm), tiny_inputs(vlm, seed=2, images=2)
    others = {
        "run": lambda: vlm.run(y),
        "contrast": lambda: li.contrast(vlm, y).delta,
        "capture": lambda: vlm.capture(y, "*", edits={SITE: shifted})["logits"],
    }
    other = others[beside]
    expected, theirs = vlm.capture(x, "blocks.*"), other()
    with ThreadPoolExecutor(2) as pool:
        found = [pool.submit(vlm.capture, x, "blocks.*") if n % 2 else pool.submit(other) for n in range(60)]
        results = [one.result() for one in found]
    for capture in results[1::2]:
        assert all(torch.equal(capture[name], value) for name, value in expected.items())
    assert all(torch.equal(one, theirs) for one in results[::2])


def test_two_that_opened_one_model_share_its_use(vlm):
    assert li.wrap(vlm.model).held is vlm.held is not li.wrap(copy.deepcopy(vlm.model)).held


def test_another_thread_is_refused_while_a_user_edits(vlm):
    """It would be edited too; and waiting could last forever."""
    x, refused = tiny_inputs(vlm), []

    def other():
        with pytest.raises(ModelError, match="another thread is editing"):
            vlm.run(x)
        refused.append(True)

    with vlm.visiting({SITE: shifted}):
        vlm.run(x)
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert refused and vlm.run(x) is not None


@pytest.mark.parametrize("inside", ["run", "score", "generate", "model", "model.generate"])
def test_an_edit_that_runs_its_model_is_refused(vlm, inside):
    x = tiny_inputs(vlm)
    runs = {
        "run": lambda: vlm.run(x),
        "score": lambda: li.score(vlm, x, x.everything[None]),
        "generate": lambda: vlm.generate(x, 2),
        "model": lambda: vlm.model(**x.model_inputs),
        "model.generate": lambda: vlm.model.generate(**x.prompt_inputs(), max_new_tokens=1),
    }

    def nested(value):
        runs[inside]()
        return value

    with pytest.raises(ModelError, match="an edit or a hook runs the model"):
        vlm.capture(x, SITE, edits={SITE: nested})
    with pytest.raises(ModelError, match="an edit or a hook runs the model"):
        li.score(vlm, x, x.everything, edits={SITE: nested})
    assert not vlm.model._forward_hooks and not vlm.decoder._forward_pre_hooks
    assert vlm.capture(x, SITE)[SITE].shape[0] == 1


def test_autocast_is_named(vlm):
    """It moves every number by what bfloat16 rounds, whatever the model's own type."""
    x = tiny_inputs(vlm)
    with torch.autocast("cpu", torch.bfloat16):
        cast = li.contrast(vlm, x)
    plain = li.contrast(vlm, x)
    assert not torch.equal(cast.delta, plain.delta) and cast.provenance.edits == ("autocast: torch.bfloat16",)
    assert plain.provenance.edits == ()


def test_kept_decoder_inputs_notice_pixels_that_were_written_to(vlm):
    x = tiny_inputs(vlm)
    kept = run_to_decoder(vlm, x)
    li.score(vlm, x, x.everything, decoder_inputs=kept)
    x.model_inputs["pixel_values"].mul_(2)
    with pytest.raises(InputError, match="before its tensors were written to"):
        li.score(vlm, x, x.everything, decoder_inputs=kept)


def test_edits_that_are_left_in_another_order(vlm):
    """What one `with` put up goes with it, and what another did stays."""
    one, two = (vlm.visiting({f"blocks.{n}.hook_resid_post": lambda value: value + 1}) for n in (0, 1))
    one.__enter__()
    two.__enter__()
    one.__exit__(None, None, None)
    assert vlm.active_edits == ("blocks.1.hook_resid_post",)
    two.__exit__(None, None, None)
    assert vlm.active_edits == ()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(vlm.run, tiny_inputs(vlm)).result()


def test_hooks_of_accelerate_that_others_wrote(vlm):
    hooks = pytest.importorskip("accelerate.hooks")

    class Doubling(hooks.ModelHook):
        def post_forward(self, module, output):
            return output * 2

    x = tiny_inputs(vlm)
    hooks.add_hook_to_module(vlm.decoder.layers[1], hooks.ModelHook())  # its own change nothing
    assert vlm.active_edits == ()
    hooks.add_hook_to_module(vlm.decoder.layers[1], Doubling(), append=True)
    try:
        assert len(vlm.active_edits) == 1 and li.contrast(vlm, x).provenance.edits == vlm.active_edits
    finally:
        hooks.remove_hook_from_module(vlm.decoder.layers[1])
