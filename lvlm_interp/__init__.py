"""Interpretability diagnostics for vision-language models: did each word come from the prompt, from the image,
or from what the language model already knew?

    import lvlm_interp as li

    vlm = li.load("reference")
    li.diagnose(vlm, "What color is the banana?", "banana.png")

Names are imported when they are first used, so that `import lvlm_interp` is quick.
"""

import importlib

TYPE_CHECKING = False  # as type checkers know it; `typing` is not imported here, see `__main__`
if TYPE_CHECKING:
    from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "load": "opening.load",
    "wrap": "opening.load",
    "HookedVLM": "model.vlm",
    "Inputs": "inputs.example",
    "Answer": "inputs.example",
    "Capture": "model.capture",
    "Captured": "model.capture",
    "check": "opening.conformance",
    "Conformance": "opening.conformance",
    "score": "engine.score",
    "Scores": "engine.score",
    "contrast": "counterfactuals.contrast",
    "Contrast": "counterfactuals.contrast",
    "credit": "attribution.credit",
    "CreditSplit": "attribution.credit",
    "attribute": "heatmaps.attribute",
    "methods": "heatmaps.method",
    "faithfulness": "heatmaps.faithfulness",
    "Faithfulness": "heatmaps.faithfulness",
    "faithfulness_over": "heatmaps.over_examples",
    "FaithfulnessOver": "heatmaps.over_examples",
    "sanity": "heatmaps.sanity",
    "Sanity": "heatmaps.sanity",
    "located": "heatmaps.localization",
    "Located": "heatmaps.localization",
    "interactions": "heatmaps.interactions",
    "JointEffects": "heatmaps.joint_effects",
    "swap_test": "attribution.swap",
    "SwapTest": "attribution.swap",
    "judged": "attribution.judging",
    "Judgement": "attribution.judging",
    "direct": "inside.direct",
    "DirectAttribution": "inside.direct",
    "intervene": "interventions.effects",
    "Effects": "interventions.effects",
    "intervening": "interventions.intervention",
    "Knockout": "interventions.attention",
    "Scale": "interventions.attention",
    "Redistribute": "interventions.sinks",
    "Ablate": "interventions.states",
    "Patch": "interventions.states",
    "Freeze": "interventions.states",
    "Steer": "interventions.states",
    "Region": "interventions.places",
    "Directions": "interventions.directions",
    "mean_difference": "interventions.directions",
    "principal_direction": "interventions.directions",
    "probed_directions": "interventions.directions",
    "image_difference": "interventions.directions",
    "dose_response": "interventions.dose",
    "load_sparse_coder": "interventions.coders",
    "SparseCoder": "interventions.coders",
    "sparse_features": "interventions.sparse",
    "SparseFeatures": "interventions.sparse",
    "AblateFeatures": "interventions.sparse",
    "DoseResponse": "interventions.dose",
    "sweep": "interventions.sweep",
    "Sweep": "interventions.sweep",
    "windows": "interventions.axes",
    "attention_routes": "interventions.routes",
    "Routes": "interventions.routes",
    "causal_trace": "interventions.tracing",
    "Tracing": "interventions.tracing",
    "attribution_patching": "interventions.patching",
    "Components": "interventions.patching",
    "edge_attribution": "interventions.edges",
    "Edges": "interventions.edges",
    "path_patching": "interventions.paths",
    "circuits": "interventions.circuits",
    "Circuits": "interventions.circuits",
    "trace": "generation.trace",
    "Trace": "generation.traced",
    "Watched": "generation.watched",
    "compare_decodings": "generation.yes_no",
    "Decodings": "generation.yes_no",
    "lens": "inside.lens",
    "Lens": "inside.lens",
    "fit_tuned_lens": "inside.tuned_lens",
    "Fitting": "inside.tuned_lens",
    "TunedLens": "inside.tuned_lens",
    "PatchMap": "attribution.patch_map",
    "fit_probes": "probes.probe",
    "collect_features": "probes.features",
    "stack_features": "probes.features",
    "Features": "probes.features",
    "Probe": "probes.estimators",
    "PointProbe": "probes.estimators",
    "ProbeResult": "probes.result",
    "diagnose": "report.diagnose",
    "Diagnosis": "report.diagnosis",
    "load_result": "report.saved",
    "Contrasts": "counterfactuals.contrast",
}

# Modules with more names, imported when they are asked for too; Tab completes what `dir` has.
_ROOMS = (
    "adapters",
    "attribution",
    "counterfactuals",
    "errors",
    "generation",
    "heatmaps",
    "inputs",
    "interventions",
    "reference",
    "report",
    "results",
    "tables",
)

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> "Any":
    if name in _HOMES:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS])
