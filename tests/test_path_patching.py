"""What goes from a sender straight to receivers, beside the plain model with torch's hooks."""

import contextlib

import pytest
import torch

import lvlm_interp as li
from lvlm_interp.errors import InputError, SiteError
from lvlm_interp.interventions import path_patching
from lvlm_interp.interventions.nodes import MLP, node_named, nodes_of
from lvlm_interp.interventions.paths import _Way
from tests.families import tiny_example, tiny_model
from tests.tiny import tiny_inputs, tiny_llava

WIDTH = 8


@pytest.fixture(scope="module")
def vlm():
    return li.wrap(tiny_llava(dtype=torch.float64))


@pytest.fixture(scope="module")
def pair(vlm):
    return tiny_inputs(vlm, (7, 8), seed=1), tiny_inputs(vlm, (9, 8), seed=11)


class Plain:
    """Path patching by hand: what o_proj is given and what MLPs give is kept, held, and exchanged."""

    def __init__(self, vlm, pair):
        self.model, self.clean = vlm.model, pair[0]
        self.layers = vlm.model.model.language_model.layers
        self.before, self.after = (self.run(x, {})[1] for x in (pair[0], pair[1].with_answer([7, 8], ["", ""], "")))

    def places(self):
        """By key, the module, and whether it is its input that is meant."""
        for n, layer in enumerate(self.layers):
            yield ("z", n), layer.self_attn.o_proj, True
            yield ("mlp", n), layer.mlp, False
            yield ("embed", n), layer, True
            for letter in "qkv":
                yield (letter, n), getattr(layer.self_attn, f"{letter}_proj"), False

    @torch.no_grad()
    def run(self, x, changes):
        """The logit of the answer, and what there is at each place, before changes."""
        kept = {}

        def changed(key, value):
            kept[key] = value.clone()
            return changes[key](value.clone()) if key in changes else value

        with contextlib.ExitStack() as stack:
            for key, module, is_input in self.places():
                hooked = (
                    module.register_forward_pre_hook(lambda m, args, key=key: (changed(key, args[0]), *args[1:]))
                    if is_input
                    else module.register_forward_hook(lambda m, args, out, key=key: changed(key, out))
                )
                stack.callback(hooked.remove)
            row = self.model(**x.model_inputs).logits[0, x.answer_start - 1]
        return float(row[7]), kept

    def held(self, senders, hold_mlps, free=(), rows=slice(None)):
        def holding(key, clean):
            def change(value):
                new = value if key[0] == "embed" or (key[0] == "mlp" and key[1] in free) else clean.clone()
                new = value if key[0] == "mlp" and not hold_mlps else new
                for sender in senders:
                    where = part(sender)
                    if where[0] == key:
                        new[:, rows, where[1]] = self.after[key][:, rows, where[1]]
                return new

            return change

        return {key: holding(key, clean) for key, clean in self.before.items() if key[0] in ("z", "mlp", "embed")}

    def found(self, senders, receivers, hold_mlps=False, rows=slice(None), read=slice(None)):
        if receivers == ["logits"]:
            return self.run(self.clean, self.held(senders, hold_mlps, rows=rows))[0]
        changes = {}
        for receiver in receivers:
            key, own = part(receiver)
            free = (key[1],) if key[0] == "mlp" else ()
            noted = self.run(self.clean, self.held(senders, hold_mlps, free, rows))[1][key]
            changes.setdefault(key, []).append((own, noted))

        def patch(key):
            def change(value):
                for own, noted in changes[key]:
                    value[:, read, own] = noted[:, read, own]
                return value

            return change

        return self.run(self.clean, {key: patch(key) for key in changes})[0]


def part(name):
    """The place of a node, and its share of the last axis."""
    if name == "embed":
        return ("embed", 0), slice(None)
    node = node_named(name)
    own = slice(None) if node.head == MLP else slice(node.head * WIDTH, (node.head + 1) * WIDTH)
    return (node.kind, node.layer), own


def logit(vlm, x):
    return float(vlm.run(x)[0, x.answer_start - 1, 7])


@pytest.mark.parametrize("hold_mlps", [False, True])
@pytest.mark.parametrize(
    ("senders", "receivers"),
    [
        (["L0H1"], ["L2H0 q"]),
        (["L0H1"], ["L1KV0 k"]),
        (["L0H3"], ["L0 MLP"]),
        (["L0 MLP"], ["L2KV1 v"]),
        (["L0H0", "L0 MLP"], ["L1H2 q", "L2H2 q", "L2H3 q", "L1KV1 v"]),
        (["embed"], ["L1 MLP", "L2 MLP", "L2H1 q"]),
        (["L1H3"], ["logits"]),
        (["embed", "L1 MLP"], ["logits"]),
    ],
)
def test_beside_the_plain_model(vlm, pair, senders, receivers, hold_mlps):
    found = path_patching(vlm, *pair, senders, receivers, hold_mlps=hold_mlps, value="logit")
    plain = Plain(vlm, pair)
    by_hand = plain.found(senders, receivers, hold_mlps)
    assert float(found.values[1, 0]) == pytest.approx(by_hand, abs=1e-5)
    assert float(found.values[0, 0]) == pytest.approx(logit(vlm, pair[0]), abs=1e-5)
    assert abs(by_hand - logit(vlm, pair[0])) > 1e-4
    assert all(one.holds for one in found.certificates)
    assert found.provenance.method == "path_patching" and found.provenance.parameters["sender"] == tuple(senders)


@pytest.mark.parametrize("hold_mlps", [False, True])
def test_at_some_positions(vlm, pair, hold_mlps):
    where = {"positions": [3, 4], "receiver_positions": [4], "hold_mlps": hold_mlps}
    found = path_patching(vlm, *pair, "L0 MLP", ["L2KV0 k", "L2KV0 v"], **where, value="logit")
    by_hand = Plain(vlm, pair).found(["L0 MLP"], ["L2KV0 k", "L2KV0 v"], hold_mlps, rows=[3, 4], read=[4])
    assert float(found.values[1, 0]) == pytest.approx(by_hand, abs=1e-5)


def test_all_senders_together_are_the_corrupt_run(vlm, pair):
    everything = ["embed", *(node.name for node in nodes_of(vlm, pair[0]))]
    found = path_patching(vlm, *pair, everything, hold_mlps=True, value="logit")
    corrupt = pair[1].with_answer([7, 8], ["", ""], "")
    assert float(found.values[1, 0]) == pytest.approx(logit(vlm, corrupt), abs=1e-5)


def test_what_is_not_held_gives_other_numbers(vlm, pair, monkeypatch):
    asked = {"value": "logit"}
    held = path_patching(vlm, *pair, "L0H1", "L2H0 q", **asked)
    monkeypatch.setattr("lvlm_interp.interventions.paths._mixing", lambda vlm: ["blocks.0.attn.hook_z"])
    assert abs(float((path_patching(vlm, *pair, "L0H1", "L2H0 q", **asked).values - held.values)[1, 0])) > 1e-4


def test_heads_beside_an_mlp_send_nothing_to_it():
    vlm = li.wrap(tiny_model("cohere2_vision"))
    x, y = tiny_example(vlm, "cohere2_vision"), tiny_example(vlm, "cohere2_vision", seed=2)
    with pytest.raises(InputError, match="L0H1 does not come before L0 MLP"):
        path_patching(vlm, x, y, "L0H1", "L0 MLP")
    assert float(path_patching(vlm, x, y, "L0H1", "L1 MLP").change.abs().max()) > 0


def test_what_carries_a_state_is_held():
    vlm = li.wrap(tiny_model("lfm2_vl"))
    x, y = tiny_example(vlm, "lfm2_vl"), tiny_example(vlm, "lfm2_vl", seed=2)
    attending = next(n for n in range(vlm.depth) if f"blocks.{n}.attn.hook_z" in vlm.sites)
    found = path_patching(vlm, x, y, "embed", f"L{attending}H0 q")
    assert {one.site for one in found.certificates if "conv" in one.site}


@pytest.mark.parametrize(
    ("sender", "receivers", "error", "said"),
    [
        ("L2H0", "L1H0 q", InputError, "L2H0 does not come before L1H0 q"),
        ("L1H0", ["L2H0 q", "L1H2 q"], InputError, "L1H0 does not come before L1H2 q"),
        ("L1 MLP", "L1 MLP", InputError, "L1 MLP does not come before L1 MLP"),
        ("L1 MLP", "L1KV0 v", InputError, "does not come before"),
        ("L1H0 q", "logits", InputError, "sends nothing"),
        ("L0H0", "L1H0", InputError, "what a head writes"),
        ("L0H0", ["L1H0 q", "logits"], InputError, "logits alone"),
        ([], "logits", InputError, "a sender or more"),
        ("head", "logits", InputError, "no node is called 'head'"),
        ("L0H4", "logits", SiteError, "has no L0H4: it has L0H0 to L2H3"),
        ("L0H0", "L1KV2 k", SiteError, "has no L1KV2 k"),
    ],
)
def test_what_is_asked_wrongly_is_told(vlm, pair, sender, receivers, error, said):
    with pytest.raises(error, match=said):
        path_patching(vlm, *pair, sender, receivers)


def test_examples_that_do_not_fit(vlm, pair):
    with pytest.raises(InputError, match="position by position"):
        path_patching(vlm, pair[0], tiny_inputs(vlm, images=2), "L0H0")
    with pytest.raises(InputError, match="changed nothing"):
        path_patching(vlm, pair[0], pair[0], "L0H0")


def test_mlps_that_receive_are_free_in_passes_of_their_own(vlm, pair):
    way = _Way(vlm, pair[0], pair[1].with_answer([7, 8], ["", ""], ""), ["embed"], None, hold_mlps=True)
    patched, certificates = way.given([node_named("L1 MLP"), node_named("L2 MLP"), node_named("L2H0 q")], None)
    assert len(patched.each) == 3
    held = [one.site for one in certificates if one.intervention.startswith("Freeze") and "mlp" in one.site]
    assert sorted(held) == sorted([f"blocks.{n}.hook_mlp_out" for n in (0, 1, 2, 0, 2, 0, 1)])
