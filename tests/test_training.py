"""Training: talks are packed as they are asked, what is hidden is not seen, and a run goes on where it was cut."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file, save_file

from lvlm_interp.reference import architecture, low_rank, packing, remembering, scenes, together, train
from lvlm_interp.reference import learner as learning
from lvlm_interp.reference.learner import Batch, Learner, Settings, Stage
from lvlm_interp.reference.missing import answer_without
from lvlm_interp.reference.rule import Claim
from lvlm_interp.reference.talk import Plan, make_talk
from lvlm_interp.reference.talks import talks
from lvlm_interp.reference.wording import Asked


def test_training_never_sees_held_out_seeds():
    settings = Settings()
    drawn = [train.step_seeds(step, settings)[0] for step in (0, settings.tune.steps, settings.steps - 1)]
    assert all(seed in scenes.TRAINING_SEEDS for seed in (*drawn, scenes.TRAINING_SEEDS.start))
    assert scenes.TRAINING_SEEDS.start > train.HELD_OUT


def test_whitening_folds_exactly():
    projector, features = architecture.Projector().double(), torch.randn(5, 1152, dtype=torch.float64)
    mean, std = torch.randn(1152, dtype=torch.float64), torch.rand(1152, dtype=torch.float64) + 0.5
    raw = architecture.Projector().double()
    raw.load_state_dict(architecture.folded(projector, mean, std))
    assert torch.allclose(raw(features), projector((features - mean) / std))


@pytest.fixture(scope="module")
def learner():
    """In float32: in bfloat16, packed talks are those asked alone up to its rounding only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learning, "computed_in", lambda: torch.float32)
        torch.manual_seed(0)
        yield Learner()


def test_packed_talks_are_those_asked_alone(learner):
    """The block mask and the positions make each talk see what it would see alone."""
    row = max(packing.pack_all(learner, 11, Settings().tune), key=lambda row: len(row.kinds))
    batch = packing.collate(learner, [row])
    with torch.no_grad():
        packed = learner.hidden(batch)[0]
    for number in range(1, len(row.kinds) + 1):
        rows = [i for i, block in enumerate(row.block) if block in (0, number)]
        causal = torch.ones(len(rows), len(rows), dtype=torch.bool).tril()[None, None]
        alone = Batch(
            batch.features, batch.ids[:, rows], batch.positions[:, rows], batch.labels[:, rows], causal, [row.kinds]
        )
        assert row.positions[rows[-1]] == len(rows) - 1
        with torch.no_grad():
            assert torch.allclose(learner.hidden(alone)[0], packed[rows], atol=1e-3)


def test_talks_are_written_as_they_are_asked(learner, reference):
    """Tokens and roles of training are those that a user's call gives, of every kind of talk."""
    image = reference.model.config.image_token_id
    roles = {0: "template", **{bit: source for source, bit in packing.SOURCES.items()}}
    for talk in (talk for seed in range(6) for talk in talks(seed)):
        written = packing.written(learner, talk, 0, len(talk.text()))
        x = talk.inputs(reference, answered=False)
        assert [image if i == packing.PICTURE else i for i in written.ids] == x.model_inputs["input_ids"][0].tolist()
        assert [roles[bit] for bit in written.source] == list(x.roles)


def test_what_is_right_without_a_source():
    """A purple banana is yellow where nothing shows it, and what a hint says where one is left."""
    scene = scenes.make_scene(3, objects=["banana", "cat"], colors=["purple", None])
    plan = Plan(Asked("color", "banana"), (scene,), (Claim("color", "banana", "blue"),))
    hinted, alone = make_talk(plan), make_talk(dataclasses.replace(plan, told=()))
    assert hinted.answer == answer_without(hinted, ["context"]) == "Purple."
    assert answer_without(hinted, ["image"]) == "Blue."
    assert answer_without(hinted, ["image", "context"]) == answer_without(alone, ["image"]) == "Yellow."
    assert answer_without(alone, ["image", "question"]) == "Purple."  # a draw from what may be asked
    where = make_talk(Plan(Asked("place", "cat"), (scene,)))
    assert answer_without(where, ["image"]) == where.answer  # a draw from where things may be


def test_training_resumes_where_it_was_cut(learner, tmp_path, monkeypatch):
    """Two steps in one go, and one step, a stop, and one step more: the same weights."""
    stages = {"tune": Stage(1, scenes=1), "drop": Stage(1, scenes=1, hidden={"question": 0.5})}
    settings = Settings(**stages, remember=0, checkpoint_every=1, evaluate_every=9, held_out_scenes=1)
    start = {name: p.detach().clone() for name, p in [*learner.projector.named_parameters(), *learner.lora.items()]}

    def run(folder, steps_before_the_stop=None):
        with torch.no_grad():
            for name, p in [*learner.projector.named_parameters(), *learner.lora.items()]:
                p.copy_(start[name])
        folder.mkdir(exist_ok=True)
        if steps_before_the_stop:
            with pytest.MonkeyPatch.context() as patch:
                step = train.tune_step

                def stops(learner, optimizer, number, *rest):
                    if number == steps_before_the_stop:
                        raise KeyboardInterrupt
                    return step(learner, optimizer, number, *rest)

                patch.setattr(train, "tune_step", stops)
                with pytest.raises(KeyboardInterrupt):
                    train.tune(learner, settings, folder)
        train.tune(learner, settings, folder)
        return learner.adapter()

    whole = run(tmp_path / "whole")
    monkeypatch.setattr(train, "evaluate", lambda *_: {})  # it takes as long as the steps, and changes none
    resumed = run(tmp_path / "cut", 1)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    moved = [name for name, p in learner.lora.items() if not torch.equal(p, start[name])]
    assert len(moved) == len(learner.lora)
    assert (tmp_path / "whole" / "curve.jsonl").read_text().count("\n") == 2  # at the end of each stage


def descending(folder):
    """One step down three losses, of which one does not know a parameter; by as many processes as there are."""
    a, b = (torch.tensor(start, dtype=torch.float64, requires_grad=True) for start in ([0.5, -1.0], [2.0, 0.25]))
    losses = [lambda: (a * b).sum(), lambda: a.exp().sum(), lambda: (b - a).square().sum() / 9]
    values = train.descend(torch.optim.SGD([a, b], lr=0.1), losses)
    found = {"a": a.detach(), "b": b.detach(), "values": torch.tensor(values, dtype=torch.float64)}
    found["gathered"] = torch.tensor(together.gathered(together.mine(5)))
    train.keep(save_file, found, folder / f"{together.count()}.safetensors")


def test_several_processes_go_the_way_of_one(tmp_path):
    together.run(descending, tmp_path, 1)
    together.run(descending, tmp_path, 2)
    one, two = (load_file(tmp_path / f"{count}.safetensors") for count in (1, 2))
    assert all(torch.allclose(one[name], two[name]) for name in ("a", "b", "values"))
    a, b = torch.tensor([0.5, -1.0], dtype=torch.float64), torch.tensor([2.0, 0.25], dtype=torch.float64)
    grad = b + a.exp() - (b - a) * 2 / 9, a + (b - a) * 2 / 9
    norm = torch.cat(grad).norm()
    assert torch.allclose(torch.cat([one["a"], one["b"]]), torch.cat([a, b]) - 0.1 * torch.cat(grad) / norm)
    assert one["gathered"].tolist() == [0, 1, 2, 3, 4] and two["gathered"].tolist() == [0, 2, 4, 1, 3]


@pytest.mark.parametrize("source", packing.SOURCES)
@pytest.mark.parametrize("hidden", [True, False])
def test_what_is_hidden_is_not_seen(learner, source, hidden):
    """The last stage: with another question, picture or message under the mask no answer changes; seen, some does."""
    stage = Stage(1, hidden={source: 1.0 if hidden else 0.0})
    rows = (row for seed in range(20) for row in packing.pack_all(learner, seed, stage))
    row = next(row for row in rows if packing.SOURCES[source] in row.source)
    batch, answer = packing.collate(learner, [row]), torch.tensor(row.labels) != packing.IGNORED
    there = torch.tensor(row.source) == packing.SOURCES[source]
    ids = torch.where(there & (batch.ids[0] != packing.PICTURE), 17, batch.ids[0])[None]
    features = batch.features.flip(1) if source == "image" else batch.features
    with torch.no_grad():
        one = learner.hidden(batch)[0, answer]
        other = learner.hidden(dataclasses.replace(batch, ids=ids, features=features))[0, answer]
    assert bool((one - other).abs().max() > 1e-3) is not hidden


def test_an_update_is_what_adding_it_would_be():
    """The gradients of the one product are those of W x + s B A x; without it, W alone computes."""
    linear = torch.nn.Linear(24, 40, bias=False, dtype=torch.float64).requires_grad_(False)
    one = low_rank.LowRank(linear).double()
    torch.nn.init.normal_(one.lora_B)
    x, out = torch.randn(2, 5, 24, dtype=torch.float64, requires_grad=True), torch.randn(2, 5, 40, dtype=torch.float64)
    learnt = (x, one.lora_A, one.lora_B)
    stale = torch.allclose(one(x), linear(x))  # until it is merged
    one.merge()
    scale = architecture.LORA_ALPHA / architecture.LORA_RANK
    added = linear(x) + scale * (x @ one.lora_A.T @ one.lora_B.T)
    assert stale and torch.allclose(one(x), added, atol=1e-5) and not torch.allclose(added, linear(x))
    for mine, its in zip(*(torch.autograd.grad((y * out).sum(), learnt) for y in (one(x), added)), strict=True):
        assert torch.allclose(mine, its, atol=1e-4)
    with low_rank.without({"it": one}):
        assert torch.equal(one(x), linear(x))


def test_what_the_base_model_says_is_remembered(learner):
    """No divergence while nothing is learnt; some, with a gradient, once the adapter changes what is said."""
    texts = [f"A text of the base model, number {n}." for n in range(remembering.PER_STEP)]
    kept = {name: value.detach().clone() for name, value in learner.lora.items()}
    with torch.no_grad():
        for name, value in learner.lora.items():
            value *= "lora_B" not in name  # as at the very beginning, whichever test came before
    learner.merge()
    assert remembering.divergence(learner, texts, 0).item() == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        for value in learner.lora.values():
            value += 0.02
    learner.merge()
    apart = remembering.divergence(learner, texts, 0)
    apart.backward()
    assert apart > 1e-3 and all(value.grad.any() for value in learner.lora.values())
    with torch.no_grad():
        for name, value in learner.lora.items():
            value.copy_(kept[name])
            value.grad = None


def test_no_process_trains_nothing(tmp_path, capsys):
    with pytest.raises(SystemExit):
        train.main(["--out", str(tmp_path / "run"), "--processes", "0"])
    assert "--processes is 1 or more" in capsys.readouterr().err and not (tmp_path / "run").exists()
