"""In each promised family every intervention equals torch's own hooks on the model of transformers.

The ways by hand know nothing of our sites: outputs of decoder layers, inputs of output projections, masks, and an
attention function that is written from nothing.
"""

import contextlib
import functools

import pytest
import torch
from torch.nn.functional import normalize
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

import lvlm_interp as li
from lvlm_interp.interventions import Ablate, Freeze, Knockout, Patch, Scale, Steer, intervene
from tests.families import FAMILIES, tiny_example, tiny_model

EXACT = 1e-5
BY_HAND = "lvlm_interp_tests_scaled"
AttentionInterface.register(BY_HAND, lambda *args, **kwargs: attention_by_hand(*args, **kwargs))
ALL_MASK_ATTENTION_FUNCTIONS.register(BY_HAND, ALL_MASK_ATTENTION_FUNCTIONS["eager"])


class Case:
    """A family's model with two examples, and what hooks of torch give."""

    def __init__(self, family):
        self.model = tiny_model(family)
        self.vlm = li.wrap(self.model, name=family)
        self.x, self.other = (tiny_example(self.vlm, family, seed=seed) for seed in (0, 2))
        self.layer, self.last = self.vlm.blocks[0], self.x.answer_start - 1
        self.rows = self.x.where("question")
        self.heads = self.vlm.capture(self.x, "blocks.0.attn.hook_z")["blocks.0.attn.hook_z"].shape[2]

    def logprobs(self, x=None):
        x = x or self.x
        with torch.no_grad():
            logits = self.model(**x.model_inputs, use_cache=False).logits[0, x.answer_start - 1 : -1]
        return logits.float().log_softmax(-1).gather(-1, x.answer_ids[:, None])[:, 0]

    def hooked(self, *handles):
        try:
            return self.logprobs()
        finally:
            for handle in handles:
                handle.remove()

    def output(self, change, module=None):
        """Of a module, by default the first decoder layer."""

        def hook(module, args, output):
            return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

        return (self.layer if module is None else module).register_forward_hook(hook)

    def projected(self, change):
        """What heads of the first layer write, `[batch, position, head, width]`, before it is projected."""

        def hook(module, args):
            value = args[0].unflatten(-1, (self.heads, -1)).clone()
            change(value)
            return (value.flatten(-2),)

        return self.layer.self_attn.o_proj.register_forward_pre_hook(hook)

    def seen(self, x, place):
        """What stands somewhere in a run of its own."""
        kept = []
        handle = place(lambda value: kept.append(value.clone()))
        with torch.no_grad():
            self.model(**x.model_inputs, use_cache=False)
        handle.remove()
        return kept[0]

    @property
    def mlp(self):
        """The module whose output the first layer adds last."""
        return getattr(self.layer, "post_feedforward_layernorm", self.layer.mlp)


@functools.cache
def opened(family):
    return Case(family)


@pytest.fixture(params=FAMILIES)
def case(request):
    return opened(request.param)


def same(case, intervention, by_hand):
    """Ours is theirs, and another number than without."""
    found = intervene(case.vlm, case.x, intervention)
    assert torch.allclose(found.logprob[1].float(), by_hand, atol=EXACT)
    assert not torch.allclose(found.logprob[0].float(), by_hand, atol=EXACT)
    assert all(one.holds for one in found.certificates)


@pytest.mark.parametrize("norm", ["add", "keep"])
def test_pushes(case, norm):
    width = case.model.config.get_text_config().hidden_size
    way = torch.linspace(-1, 1, width)

    def pushed(value):
        new, part = value.clone(), value[:, case.rows]
        turned = part.norm(dim=-1, keepdim=True) * normalize(
            normalize(part, dim=-1) + 0.7 * normalize(way, dim=0), dim=-1
        )
        new[:, case.rows] = part + 0.7 * way if norm == "add" else turned
        return new

    by_hand = case.hooked(case.output(pushed))
    same(case, Steer(direction=way, alpha=0.7, norm=norm, layers=[0], positions="question"), by_hand)


def test_exchanged_states(case):
    theirs = case.seen(case.other, case.output)

    def exchanged(value):
        new = value.clone()
        new[:, case.last] = theirs[:, case.last]
        return new

    patch = Patch("blocks.0.hook_resid_post", "last", source=case.other)
    if torch.equal(theirs[:, case.last], case.seen(case.x, case.output)[:, case.last]):
        pytest.skip("the first layer of the last position is the same in both examples")
    same(case, patch, case.hooked(case.output(exchanged)))


@pytest.mark.parametrize("by", ["zero", "mean", "resample"])
def test_heads(case, by):
    own, theirs = (case.seen(x, case.projected)[:, :, 1] for x in (case.x, case.other))
    new = {"zero": 0.0, "mean": own.mean(1, keepdim=True), "resample": theirs}[by]
    source = {"source": case.other} if by == "resample" else {}

    def removed(value):
        value[:, :, 1] = new

    if by == "resample" and torch.equal(own, theirs):
        pytest.skip("the first layer is the same in both examples")
    same(case, Ablate(heads=[(0, 1)], by=by, **source), case.hooked(case.projected(removed)))


def test_mlps(case):
    by_hand = case.hooked(case.output(torch.zeros_like, case.mlp))
    same(case, Ablate("blocks.*.hook_mlp_out", layers=[0]), by_hand)


def test_directions(case):
    way = torch.linspace(-1, 1, case.model.config.get_text_config().hidden_size).double()
    unit = normalize(way, dim=0)

    def less(value):
        return (value.double() - (value.double() @ unit)[..., None] * unit).to(value)

    same(case, Ablate("blocks.0.hook_resid_post", directions=way[None]), case.hooked(case.output(less)))


def test_what_is_frozen(case):
    """The MLP of the layer gives what it gave, though a head before it is gone."""
    kept = case.seen(case.x, functools.partial(case.output, module=case.mlp))

    def removed(value):
        value[:, :, 1] = 0

    by_hand = case.hooked(case.projected(removed), case.output(lambda value: kept, case.mlp))
    same(case, Ablate(heads=[(0, 1)]) + Freeze("blocks.*.hook_mlp_out", layers=[0]), by_hand)


def test_cut_edges(case):
    keys = case.x.where("question")

    def masked(module, args, kwargs):
        length = case.x.length
        mask = kwargs.get("attention_mask")
        mask = torch.ones(1, 1, length, length).tril().bool() if mask is None else mask.clone()
        hidden = torch.zeros(length, length, dtype=torch.bool)
        hidden[case.last, keys] = True
        mask = mask & ~hidden if mask.dtype == torch.bool else mask.masked_fill(hidden, torch.finfo(mask.dtype).min)
        return args, {**kwargs, "attention_mask": mask}

    handle = case.layer.self_attn.register_forward_pre_hook(masked, with_kwargs=True)
    same(case, Knockout("last", "question", layers=[0]), case.hooked(handle))


SCALED = {}  # which attention module, and how its edges are read


def attention_by_hand(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """Attention from nothing, of which some edges of one module are read more."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    mine = SCALED if SCALED.get("module") is module else None
    if mine and mine["by"] == "scores":
        part = scores[:, :, mine["row"], mine["keys"]]
        scores[:, :, mine["row"], mine["keys"]] = part + mine["factor"] * part.abs()
    pattern = (scores if attention_mask is None else scores + attention_mask[..., : key.shape[-2]]).softmax(-1)
    if mine and mine["by"] == "weights":
        pattern[:, :, mine["row"], mine["keys"]] *= mine["factor"]
        pattern[:, :, mine["row"]] /= pattern[:, :, mine["row"]].sum(-1, keepdim=True)
    return (pattern @ value).transpose(1, 2).contiguous(), pattern


@contextlib.contextmanager
def scaled(model, **how):
    own = model.config._attn_implementation
    model.set_attn_implementation(BY_HAND)
    SCALED.update(how)
    try:
        yield
    finally:
        SCALED.clear()
        model.set_attn_implementation(own)


@pytest.mark.parametrize("by", ["weights", "scores"])
def test_edges_that_are_read_more(case, by):
    how = {"by": by, "factor": 0.3, "row": case.last, "keys": case.x.where("question")}
    with scaled(case.model, module=case.layer.self_attn, **how):
        by_hand = case.logprobs()
    same(case, Scale("last", "question", factor=0.3, by=by, layers=[0]), by_hand)
