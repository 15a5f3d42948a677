"""Interpretability diagnostics for vision-language models: did each word come from the prompt, from the image,
or from what the language model already knew?

    import lvlm_interp as li

    vlm = li.load("reference")
    li.diagnose(vlm, "photo.png", "What color is the banana?")

Names are imported when they are first used, so that `import lvlm_interp` is quick.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "load": "model.opening",
    "wrap": "model.opening",
    "HookedVLM": "model.vlm",
    "Inputs": "model.inputs",
    "Answer": "model.inputs",
    "Capture": "model.capture",
    "check": "model.conformance",
    "Conformance": "model.conformance",
    "score": "model.score",
    "Scores": "model.score",
    "contrast": "methods.contrast",
    "Contrast": "methods.contrast",
    "credit": "methods.credit",
    "CreditSplit": "methods.credit",
    "attribute": "methods.patches",
    "direct": "methods.direct",
    "DirectAttribution": "methods.direct",
    "lens": "methods.lens",
    "Lens": "methods.lens",
    "fit_tuned_lens": "methods.tuned_lens",
    "Fitting": "methods.tuned_lens",
    "TunedLens": "methods.tuned_lens",
    "PatchMap": "methods.patches",
    "fit_probes": "methods.probe",
    "collect_features": "methods.features",
    "stack_features": "methods.features",
    "Probe": "methods.estimators",
    "PointProbe": "methods.estimators",
    "ProbeResult": "methods.probe",
    "diagnose": "report.diagnosis",
    "Diagnosis": "report.diagnosis",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
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
    return sorted(__all__)
