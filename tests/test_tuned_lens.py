"""A tuned lens learns, resumes, knows its model, and leaves the last layer alone."""

import dataclasses

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import lvlm_interp as li
from lvlm_interp.errors import InputError, OutputError
from lvlm_interp.inside import tuned_lens as module
from tests.families import tiny_example, tiny_model
from tests.made import made

HOW = li.Fitting(steps=60, positions=24, rate=2e-2, from_each=4)


@pytest.fixture(scope="module")
def vlm():
    return li.wrap(tiny_model("llava"))


@pytest.fixture(scope="module")
def examples(vlm):
    return [tiny_example(vlm, "llava", seed=n) for n in range(40)]


@pytest.fixture(scope="module")
def fitted(vlm, examples):
    return li.fit_tuned_lens(vlm, examples, HOW)


def test_it_is_nearer_to_what_the_model_will_say(fitted):
    """On held-out examples, for text and for image positions, at every layer."""
    assert (fitted.tuned_kl < fitted.plain_kl).all() and (fitted.gain_low > 0).all()
    assert (fitted.gain_low <= fitted.plain_kl - fitted.tuned_kl).all()


def test_the_model_s_own_gradients_are_its_user_s(examples):
    """She may be in the middle of training it."""
    own = li.wrap(tiny_model("llava"))
    weight = own.model.get_input_embeddings().weight
    weight.grad = torch.ones_like(weight)
    li.fit_tuned_lens(own, examples[:4], dataclasses.replace(HOW, steps=2))
    assert (weight.grad == 1).all()
    assert all(one.grad is None for name, one in own.model.named_parameters() if one is not weight)


def test_without_training_it_is_the_logit_lens(vlm, examples):
    """The control: translators that learnt nothing gain nothing."""
    none = li.fit_tuned_lens(vlm, examples, dataclasses.replace(HOW, steps=0, seed=3))
    assert torch.equal(none.tuned_kl, none.plain_kl) and none.provenance.seed == 3
    plain, same = (li.lens(vlm, examples[0], target=7, tuned=t) for t in (None, none))
    assert torch.equal(plain.target_logprob, same.target_logprob)


def test_the_lens_reads_through_it(vlm, examples, fitted):
    x = examples[-1]
    plain, tuned = li.lens(vlm, x, target=7), li.lens(vlm, x, target=7, tuned=fitted)
    assert torch.equal(plain.target_logprob[:, -1], tuned.target_logprob[:, -1])  # the last layer is the model
    assert (plain.target_logprob[:, :-1] - tuned.target_logprob[:, :-1]).abs().max() > 1e-2
    assert tuned.kl[1].mean() < plain.kl[1].mean()
    assert tuned.provenance.method == "tuned lens" and plain.provenance.parameters["fitted"] is None
    named = tuned.provenance.parameters["fitted"]  # which lens: another one gives other numbers
    assert named["example"] == fitted.provenance.example and named["rate"] == fitted.provenance.parameters["rate"]


def test_text_and_image_have_translators_of_their_own(vlm, examples, fitted):
    states, image = torch.randn(2, 32), torch.tensor([False, True])
    found = fitted.translated(1, states, image)
    for kind in range(2):
        expected = states[kind] + fitted.weight[kind, 1] @ states[kind] + fitted.bias[kind, 1]
        assert torch.allclose(found[kind], expected, atol=1e-5)
    assert (fitted.weight[0] - fitted.weight[1]).abs().max() > 1e-3


def test_it_resumes_where_it_was_cut(vlm, examples, tmp_path, monkeypatch):
    """A stop and the same call again: the same weights to the bit."""
    path = tmp_path / "lens.safetensors"
    monkeypatch.setattr(module, "CHECKPOINT_EVERY", 5)
    loss, steps, cuts = module._loss, [], [7]

    def stops(*args):
        steps.append(args[-1])
        if args[-1] in cuts:
            cuts.clear()
            raise KeyboardInterrupt
        return loss(*args)

    short = dataclasses.replace(HOW, steps=12)
    whole = li.fit_tuned_lens(vlm, examples, short)
    monkeypatch.setattr(module, "_loss", stops)
    with pytest.raises(KeyboardInterrupt):
        li.fit_tuned_lens(vlm, examples, short, checkpoint=path)
    steps.clear()
    resumed = li.fit_tuned_lens(vlm, examples, short, checkpoint=path)
    assert min(steps) == 5  # what was kept is not done again
    assert torch.equal(whole.weight, resumed.weight)
    with pytest.raises(InputError, match=r"another fitting: \['rate'\]"):
        li.fit_tuned_lens(vlm, examples, dataclasses.replace(short, rate=1.0), checkpoint=path)
    with pytest.raises(InputError, match=r"another fitting: \['examples'\]"):
        li.fit_tuned_lens(vlm, examples[::-1], short, checkpoint=path)
    edited = vlm.visiting({"blocks.0.hook_resid_post": lambda value: value * 2})
    with edited, pytest.raises(InputError, match=r"another fitting: \['edits'\]"):
        li.fit_tuned_lens(vlm, examples, short, checkpoint=path)
    path.unlink()
    made().save(path)
    with pytest.raises(InputError, match=r"lens.safetensors is no checkpoint: it says nothing of steps"):
        li.fit_tuned_lens(vlm, examples, short, checkpoint=path)
    path.write_bytes(b"cut")
    with pytest.raises(InputError, match=r"lens.safetensors is no checkpoint"):
        li.fit_tuned_lens(vlm, examples, short, checkpoint=path)


def test_one_example_held_out_has_no_interval(vlm, examples):
    found = li.fit_tuned_lens(vlm, examples[:4], dataclasses.replace(HOW, steps=1))
    assert found.gain_low.isnan().all() and found.gain_high.isnan().all() and found.tuned_kl.isfinite().all()


def test_weights_that_change_meanwhile_are_noticed(examples, tmp_path, monkeypatch):
    """What is kept, and what is handed back, is of one model."""
    model, loss = li.wrap(tiny_model("llava")), module._loss

    def changing(vlm, *args):
        vlm.model.lm_head.weight.data.mul_(1.01)
        return loss(vlm, *args)

    monkeypatch.setattr(module, "_loss", changing)
    monkeypatch.setattr(module, "CHECKPOINT_EVERY", 2)
    path = tmp_path / "lens.safetensors"
    for checkpoint in (path, None):
        with pytest.raises(InputError, match="changed while its lens was fitted"):
            li.fit_tuned_lens(model, examples[:4], dataclasses.replace(HOW, steps=3), checkpoint=checkpoint)
    assert not path.exists()


def test_another_model_is_refused(fitted, tmp_path):
    other = li.wrap(tiny_model("llava", attention="sdpa"))
    with torch.no_grad():
        other.model.lm_head.weight.add_(1)
    again = li.TunedLens.load(fitted.save(tmp_path / "tuned.safetensors"))
    with pytest.raises(InputError, match="fitted on"):
        li.lens(other, tiny_example(other, "llava"), tuned=again)
    frame = again.to_frame()
    assert len(frame) == 2 * again.weight.shape[1] and "held-out" in again._repr_html_()


def test_one_example_is_too_few(vlm, examples):
    with pytest.raises(InputError, match="got 1"):
        li.fit_tuned_lens(vlm, examples[:1], HOW)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": -1},
        {"steps": "1"},
        {"steps": 1.5},
        {"positions": 0},
        {"from_each": 0},
        {"rate": 0.0},
        {"rate": -1.0},
        {"rate": float("nan")},
        {"rate": float("inf")},
        {"seed": "a"},
        {"seed": -1},
        {"seed": True},
        {"held_out": 1},
        {"held_out": 0},
        {"held_out": float("nan")},
    ],
    ids=str,
)
def test_numbers_of_a_fitting_are_looked_at_when_it_is_made(wrong):
    ((name, value),) = wrong.items()
    made = li.Fitting()
    object.__setattr__(made, name, value)  # where types are checked, as in tests, some never come so far
    with pytest.raises(InputError, match=rf"Fitting\({name}=…\) is a"):
        made.__post_init__()
    with pytest.raises((InputError, TypeError)):
        li.Fitting(**wrong)


def test_a_lens_that_is_no_numbers_is_none(vlm, examples, fitted, tmp_path, monkeypatch):
    """Not when it is fitted, not kept, and not from a file."""
    path = tmp_path / "lens.safetensors"
    loss = module._loss
    monkeypatch.setattr(module, "_loss", lambda *args: loss(*args) * torch.nan)
    for checkpoint in (path, None):
        with pytest.raises(InputError, match="lower rate"):
            li.fit_tuned_lens(vlm, examples[:4], dataclasses.replace(HOW, steps=2), checkpoint=checkpoint)
    assert not path.exists()
    with pytest.raises(InputError, match=r"TunedLens.bias holds NaN"):
        dataclasses.replace(fitted, bias=fitted.bias * torch.nan)


@pytest.mark.parametrize("place", ["no/c", ".", "file/c"])
def test_a_checkpoint_that_cannot_be_kept_is_found_before_anything_is_computed(
    vlm, examples, tmp_path, monkeypatch, place
):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(module, "_gathered", lambda *_: pytest.fail("something was computed"))
    with pytest.raises(OutputError, match=r"checkpoint"):
        li.fit_tuned_lens(vlm, examples[:4], HOW, checkpoint=tmp_path / place)


def test_a_checkpoint_with_a_turned_bit_is_refused(vlm, examples, tmp_path):
    path, short = tmp_path / "lens.safetensors", dataclasses.replace(HOW, steps=3)
    li.fit_tuned_lens(vlm, examples[:2], short, checkpoint=path)
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 64
    path.write_bytes(whole)
    with pytest.raises(InputError, match="is damaged"):
        li.fit_tuned_lens(vlm, examples[:2], short, checkpoint=path)


def doubled(tensors, header):
    return {name: torch.cat([value, value]) if value.ndim else value for name, value in tensors.items()}, header


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (doubled, "'weight' has another shape"),
        (lambda tensors, header: (tensors, {**header, "step": "many"}), "says 'many' for its steps"),
        (lambda tensors, header: (tensors, {**header, "step": "-1"}), "says '-1' for its steps"),
        (
            lambda tensors, header: (tensors, {k: v for k, v in header.items() if k != "step"}),
            "says nothing of steps",
        ),
    ],
    ids=["shape", "word", "negative", "none"],
)
def test_a_checkpoint_of_wrong_values_is_refused(vlm, examples, tmp_path, change, told):
    """Whole, and of this fitting by what it says of itself."""
    path, short = tmp_path / "lens.safetensors", dataclasses.replace(HOW, steps=2)
    li.fit_tuned_lens(vlm, examples[:2], short, checkpoint=path)
    with safe_open(str(path), "pt") as file:
        tensors, header = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    header.pop("digest")
    tensors, header = change(tensors, header)
    save_file(tensors, path, header)
    with pytest.raises(InputError, match=rf"lens\.safetensors is .*{told}"):
        li.fit_tuned_lens(vlm, examples[:2], short, checkpoint=path)
