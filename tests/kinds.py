"""One result of every kind, small; and what a file that somebody else wrote may hold in the place of its texts."""

import copy
import dataclasses

import torch

import lvlm_interp as li
from lvlm_interp.counterfactuals.contrast import Contrasts
from lvlm_interp.generation import Decodings
from lvlm_interp.heatmaps.localization import located
from lvlm_interp.inside.tuned_lens import TunedLens
from lvlm_interp.interventions import SparseFeatures
from lvlm_interp.model.capture import Captured
from lvlm_interp.opening.checks import Checked
from lvlm_interp.opening.conformance import Conformance
from lvlm_interp.results import Result
from tests.made import about, made
from tests.probing import QUICK, labelled
from tests.swapping import made_test
from tests.tiny import tiny_inputs, tiny_llava


def found_by(strength):
    """Features of a coder at one position."""
    one, ids = torch.ones(1), torch.ones(1, 2).long()
    told = (one.long(), ("a",), ids, strength, one.long(), one, "blocks.0.hook_resid_post")
    return SparseFeatures(*told, provenance=about("sparse_features"))


def one_of_each():
    """Result by the name of its kind."""
    vlm, diagnosis = li.wrap(tiny_llava()), made(context="Told before.", system="Be short.")
    x, y = tiny_inputs(vlm), torch.ones(2, 3)
    pair = (tiny_inputs(vlm, (7, 8)), tiny_inputs(vlm, (9, 8), seed=5))
    ranked = li.attribution_patching(vlm, [pair], exact=2)
    tuned = TunedLens(torch.ones(2, 3, 4, 4), torch.ones(2, 3, 4), y, y, y, y, 1, provenance=about("tuned lens"))
    mapped = li.attribute(vlm, x, "shapley", unit="answer")
    found = (
        (faithful := li.faithfulness(vlm, x, mapped, substrates="tokens", orders=2, sets=5, unit="answer")),
        li.faithfulness_over([faithful], samples=2),
        li.sanity(vlm, x, blocks=[1]),
        located(mapped, (0, 0, 1, 2)),
        li.interactions(vlm, x, regions=1, unit="answer"),
        *(diagnosis, diagnosis.contrast, diagnosis.credit, diagnosis.patches, tuned),
        *(li.lens(vlm, x, target=5), li.direct(vlm, x), li.fit_probes(*labelled(), **QUICK)),
        diagnosis.contrast - diagnosis.contrast,
        li.intervene(vlm, x, li.Knockout("last", "image"), unit="answer"),
        li.sweep(vlm, x, li.Knockout("last", "image"), unit="answer"),
        li.attention_routes(vlm, [x], widths=[1], layers=1, samples=2),
        li.causal_trace(vlm, [pair], unit="token", samples=2),
        *(ranked, li.circuits(vlm, [pair], ranked, [0.5], samples=2)),
        li.edge_attribution(vlm, [pair]),
        (pushed := li.image_difference(vlm, [x, pair[1]])),
        li.dose_response(vlm, [x], pushed, alphas=[0, 1], random=1, samples=2),
        *((traced := li.trace(vlm, x, max_new_tokens=2, sites="blocks.0.hook_resid_post")), traced.inside),
        li.collect_features(vlm, [x], {"all": "blocks.*.hook_resid_pre"})["all"],
        Decodings(("greedy",), (("Yes.",),), *[torch.tensor([0.5])] * 12, 0.95, provenance=about("compare_decodings")),
        found_by(torch.ones(1, 2)),
        Contrasts({"hidden": diagnosis.contrast}, provenance=about("contrast")),
        Captured({"blocks.0.hook_resid_pre": y}, provenance=about("capture", positions=[3])),
        dataclasses.replace(li.score(vlm, x, x.everything[None]), readout=None),
        *(made_test(), li.judged(made_test())),
        Conformance("llava", (Checked("parity", True, 0.0, 1.0, "d", "a"),), provenance=about("check")),
    )
    return {type(one).__name__: one for one in found}


def with_each_text(value, text):
    """Copies of a value, each with a text in the place of one text or whole number in it; names in mappings too."""
    if isinstance(value, (str, int)):
        yield text
    elif dataclasses.is_dataclass(value):
        for name in (f.name for f in dataclasses.fields(value)):
            for other in with_each_text(getattr(value, name), text):
                changed = copy.copy(value)
                object.__setattr__(changed, name, other)  # as a file may have it, whatever the type allows
                yield changed
    elif isinstance(value, tuple):
        for i, one in enumerate(value):
            yield from ((*value[:i], other, *value[i + 1 :]) for other in with_each_text(one, text))
    elif isinstance(value, dict):
        for name, one in value.items():
            yield {text if k == name else k: v for k, v in value.items()}
            yield from ({**value, name: other} for other in with_each_text(one, text))


def kinds():
    """The names of all kinds that the package has."""
    found, some = set(), [Result]
    while some:
        below = [kind for kind in some.pop().__subclasses__() if kind.__module__.startswith("lvlm_interp.")]
        found |= {kind.__name__ for kind in below}
        some += below
    found -= {"Comparable"}  # what several kinds have in common
    return found
