"""Scores of edges are derivatives along what senders add, and add up to those of all that a receiver reads."""

import contextlib

import pytest
import torch

import lvlm_interp as li
from lvlm_interp.errors import InputError, SiteError
from lvlm_interp.interventions import Edges, edge_attribution
from lvlm_interp.interventions.nodes import MLP, node_named
from lvlm_interp.interventions.writes import Writes
from lvlm_interp.report import figures
from tests.families import tiny_example, tiny_model
from tests.tiny import tiny_inputs, tiny_llava

HEADS, SHARED, WIDTH = 4, 2, 8


@pytest.fixture(scope="module")
def vlm():
    return li.wrap(tiny_llava(dtype=torch.float64))


@pytest.fixture(scope="module")
def pair(vlm):
    return tiny_inputs(vlm, (7, 8), seed=1), tiny_inputs(vlm, (9, 8), seed=11)


@pytest.fixture(scope="module")
def found(vlm, pair):
    return edge_attribution(vlm, [pair])


class Plain:
    """The same by hand: the plain model, torch's hooks, and the derivative by how far what is read is moved."""

    def __init__(self, vlm, pair):
        self.model, self.clean = vlm.model, pair[0]
        self.corrupt = pair[1].with_answer([7, 8], ["", ""], "")
        self.layers = vlm.model.model.language_model.layers
        self.runs = [self.seen(x) for x in (self.clean, self.corrupt)]

    @contextlib.contextmanager
    def hooked(self, *handles):
        yield
        for handle in handles:
            handle.remove()

    @torch.no_grad()
    def seen(self, x):
        """By layer: the stream that enters it, what o_proj is given, what the MLP gives."""
        kept, handles = {}, []

        def keep(module, key):
            handles.append(module.register_forward_pre_hook(lambda m, args: kept.update({key: args[0]})))

        for n, layer in enumerate(self.layers):
            keep(layer, ("stream", n))
            keep(layer.self_attn.o_proj, ("z", n))
            handles.append(layer.mlp.register_forward_hook(lambda m, a, out, n=n: kept.update({("mlp", n): out})))
        with self.hooked(*handles):
            self.model(**x.model_inputs)
        return kept

    def added(self, sender):
        """What it adds in the corrupt run less what it adds in the clean one."""
        clean, corrupt = self.runs
        if sender == "embed":
            return corrupt["stream", 0] - clean["stream", 0]
        node = node_named(sender)
        if node.head == MLP:
            return corrupt["mlp", node.layer] - clean["mlp", node.layer]
        own = slice(node.head * WIDTH, (node.head + 1) * WIDTH)
        gap = (corrupt["z", node.layer] - clean["z", node.layer])[..., own]
        return gap @ self.layers[node.layer].self_attn.o_proj.weight[:, own].T

    def lead(self, receiver, moved, share=1.0):
        """The lead where one receiver reads a stream that is moved, this far on the way from the corrupt inputs."""
        start = torch.lerp(self.runs[1]["stream", 0], self.runs[0]["stream", 0], share)
        handles = [self.layers[0].register_forward_pre_hook(lambda m, args: (start, *args[1:]))]
        if receiver == "logits":
            norm = self.model.model.language_model.norm
            handles.append(norm.register_forward_pre_hook(lambda m, args: (args[0] + moved,)))
        elif (node := node_named(receiver)).head == MLP:
            norm = self.layers[node.layer].post_attention_layernorm
            handles.append(norm.register_forward_pre_hook(lambda m, args: (args[0] + moved,)))
        else:
            handles += self.read_anew(node, moved)
        with self.hooked(*handles):
            row = self.model(**self.clean.model_inputs).logits[0, self.clean.answer_start - 1]
        return row[7] - row[9]

    def read_anew(self, node, moved):
        layer, kept = self.layers[node.layer], {}
        project = getattr(layer.self_attn, f"{node.kind}_proj")
        own = slice(node.head * WIDTH, (node.head + 1) * WIDTH)

        def keep(m, args):
            kept["stream"] = args[0]

        def replaced(m, args, out):
            norm, stream = layer.input_layernorm, kept["stream"] + moved
            normed = norm.weight * stream / (stream.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
            return torch.cat([out[..., : own.start], (normed @ project.weight.T)[..., own], out[..., own.stop :]], -1)

        return [layer.register_forward_pre_hook(keep), project.register_forward_hook(replaced)]

    def change(self, receiver, moved, share=1.0):
        far = torch.zeros((), dtype=torch.float64, requires_grad=True)
        return float(torch.autograd.grad(self.lead(receiver, far * moved, share), far)[0])


def test_every_edge_is_a_derivative_by_hand(vlm, pair, found):
    plain = Plain(vlm, pair)
    edges = 0
    for r, receiver in enumerate(found.receivers):
        for s, sender in enumerate(found.senders):
            if not found.score[r, s].isnan():
                edges += 1
                by_hand = plain.change(receiver, plain.added(sender))
                assert float(found.score[r, s]) == pytest.approx(by_hand, abs=1e-5), f"{sender} → {receiver}"
    reads = HEADS + 2 * SHARED
    assert edges == sum(reads * (1 + 5 * n) + (1 + 5 * n + HEADS) for n in range(3)) + 16
    assert float(found.score.nan_to_num().abs().max()) > 0.1


def test_edges_add_up_to_all_that_a_receiver_reads(vlm, pair, found):
    plain = Plain(vlm, pair)
    assert found.missed < 1e-5 and found.sums.allclose(found.whole, atol=1e-5)
    for receiver in ("L2H1 q", "L1KV0 k", "L1KV1 v"):
        stream = [run["stream", int(receiver[1])] for run in plain.runs]
        by_hand = plain.change(receiver, stream[1] - stream[0])
        assert float(found.sums[found.receivers.index(receiver)]) == pytest.approx(by_hand, abs=1e-5)


def test_a_sender_that_is_told_wrongly_leaves_a_gap(vlm, pair, monkeypatch):
    own = Writes._written
    monkeypatch.setattr(Writes, "_written", lambda self, layer, run: own(self, layer, run) * (0.9 if layer else 1))
    assert edge_attribution(vlm, [pair]).missed > 1e-2


def test_a_sender_that_is_left_out_leaves_a_gap(vlm, pair, monkeypatch):
    has = Writes._has
    monkeypatch.setattr(
        Writes, "_has", lambda self, layer, ending: ending != "hook_mlp_out" and has(self, layer, ending)
    )
    with pytest.raises(SiteError, match="block 0 makes of its stream is not the sum"):
        edge_attribution(vlm, [pair])


def test_derivatives_along_the_way(vlm, pair):
    found, plain = edge_attribution(vlm, [pair], steps=2), Plain(vlm, pair)
    for sender, receiver in (("embed", "L0H1 q"), ("L0 MLP", "L2KV0 v"), ("L1H2", "L1 MLP"), ("L2H0", "logits")):
        by_hand = sum(plain.change(receiver, plain.added(sender), share) for share in (0.5, 1.0)) / 2
        at = found.receivers.index(receiver), found.senders.index(sender)
        assert float(found.score[at]) == pytest.approx(by_hand, abs=1e-5)
    assert found.missed < 1e-5


def test_the_attention_of_a_block_as_one(vlm, pair, found):
    together = edge_attribution(vlm, [pair], receivers=("attn",))
    assert together.receivers == ("L0 attn", "L1 attn", "L2 attn")
    for n in range(3):
        parts = [r for r, name in enumerate(found.receivers) if name.startswith((f"L{n}H", f"L{n}KV"))]
        assert together.score[n].nan_to_num().allclose(found.score[parts].nan_to_num().sum(0), atol=1e-5)


def test_means_over_pairs(vlm, pair, found):
    other = tiny_inputs(vlm, (7, 8), seed=2), tiny_inputs(vlm, (9, 8), seed=12)
    both, second = edge_attribution(vlm, [pair, other]), edge_attribution(vlm, [other])
    assert both.score.allclose((found.score + second.score) / 2, atol=1e-6, equal_nan=True) and both.pairs == 2
    assert both.clean == pytest.approx((found.clean + second.clean) / 2)


def test_what_is_kept_is_what_is_made_anew(vlm, pair, found, monkeypatch):
    monkeypatch.setattr("lvlm_interp.interventions.writes.KEPT", 0)
    assert edge_attribution(vlm, [pair]).score.allclose(found.score, atol=1e-9, equal_nan=True)


NORMS = {  # of each norm, the kinds that read through it
    "gemma3": {"input_layernorm": ("q", "k", "v"), "pre_feedforward_layernorm": ("mlp",)},  # norms behind both too
    "cohere2_vision": {"input_layernorm": ("q", "k", "v", "mlp")},  # attention and MLP side by side
    "qwen3_vl": {"input_layernorm": ("q", "k", "v"), "post_attention_layernorm": ("mlp",)},  # DeepStack, norms of q, k
    "granite4_vision": {"input_layernorm": ("q", "k", "v"), "post_attention_layernorm": ("mlp",)},  # multipliers
}


@pytest.mark.parametrize("family", [*NORMS])
def test_families(family):
    vlm = li.wrap(tiny_model(family, dtype=torch.float64))
    clean, corrupt = tiny_example(vlm, family), tiny_example(vlm, family, seed=2).with_answer([11, 12], ["", ""], "")
    found = edge_attribution(vlm, [(clean, corrupt)])
    assert found.missed < 1e-5 and float(found.whole.abs().max()) > 0.1
    answered = corrupt.with_answer(clean.answer_ids.tolist(), clean.answer_tokens, clean.answer)
    for name, kinds in NORMS[family].items():
        norm = getattr(vlm.blocks[1], name)
        reads = [read_by(vlm, norm, x, 0)[1].detach() for x in (clean, answered)]
        far = torch.zeros((), dtype=torch.float64, requires_grad=True)
        (by_hand,) = torch.autograd.grad(read_by(vlm, norm, clean, far * (reads[1] - reads[0]))[0], far)
        some = [r for r, name in enumerate(found.receivers) if name.startswith("L1") and node_named(name).kind in kinds]
        assert float(found.sums[some].sum()) == pytest.approx(float(by_hand), abs=1e-5)


def test_blocks_that_multiply_their_stream():
    """Gemma 4's: what is added before a block arrives behind it multiplied."""
    vlm = li.wrap(tiny_model("gemma4_unified", dtype=torch.float64))
    for block in vlm.blocks:
        block.layer_scalar.fill_(0.7)
    clean = tiny_example(vlm, "gemma4_unified")
    corrupt = tiny_example(vlm, "gemma4_unified", seed=2).with_answer([11, 12], ["", ""], "")
    found = edge_attribution(vlm, [(clean, corrupt)], receivers=("q", "mlp", "logits"))
    assert found.missed < 1e-5 and float(found.whole.abs().max()) > 0.01


def read_by(vlm, norm, x, moved):
    """The lead, and what a norm reads, which is moved."""
    kept = []

    def hook(m, args):
        kept.append(args[0])
        return (args[0] + moved,)

    handle = norm.register_forward_pre_hook(hook)
    try:
        row = vlm.model(**x.model_inputs).logits[0, x.answer_start - 1]
    finally:
        handle.remove()
    return row[7] - row[11], kept[0]


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("mllama", "block 1 does not only add.*no position of the prompt"),
        ("lfm2_vl", "block 0 does not only add.*conv.hook_out"),
        ("gemma4_unified", "blocks.2.attn.hook_rot_k"),  # keys of another layer
    ],
)
def test_families_whose_stream_is_no_such_sum(family, said):
    vlm = li.wrap(tiny_model(family))
    clean, corrupt = tiny_example(vlm, family), tiny_example(vlm, family, seed=2).with_answer([11, 12], ["", ""], "")
    with pytest.raises(SiteError, match=said):
        edge_attribution(vlm, [(clean, corrupt)])


def test_a_result(found, tmp_path):
    frame = found.to_frame()
    assert len(frame) == int((~found.score.isnan()).sum()) and frame["score"].abs().is_monotonic_decreasing
    first = found.strongest(3).iloc[0]
    at = found.receivers.index(first["receiver"]), found.senders.index(first["sender"])
    assert float(found.score[at]) == first["score"] and len(found.strongest(3)) == 3
    assert "190 edges" in found.note
    assert Edges.load(found.save(tmp_path / "edges.safetensors")) == found
    with pytest.raises(InputError, match="1 edge or more"):
        found.strongest(0)


@pytest.mark.parametrize(
    ("pairs", "how", "said"),
    [
        (0, {}, "0 pairs"),
        (1, {"steps": 0}, "steps=0"),
        (1, {"receivers": ("z",)}, "receivers="),
        (1, {"receivers": ("q", "q")}, "receivers="),
        (1, {"receivers": "logits"}, "receivers="),
    ],
)
def test_what_is_asked_wrongly_is_told(vlm, pair, pairs, how, said):
    with pytest.raises(InputError, match=said):
        edge_attribution(vlm, [pair] * pairs, **how)


def test_a_map_of_layers_adds_up(found):
    """Each row is what exchanging all that the layer reads does."""
    ax = figures.edge_map(found)
    shown = ax.images[0].get_array()
    names = [text.get_text() for text in ax.get_yticklabels()]
    assert names == ["L0", "L1", "L2", "logits"] and shown.shape == (4, 4)
    for row, name in enumerate(names):
        mine = [n for n, receiver in enumerate(found.receivers) if receiver.startswith(name)]
        assert float(shown[row].sum()) == pytest.approx(float(found.whole[mine].sum()), abs=1e-4)
