"""Opens a file that holds any kind of result. All kinds are imported here, so that each is known by its name."""

from __future__ import annotations

from pathlib import Path

from lvlm_interp.attribution.judging import Judgement
from lvlm_interp.attribution.patch_map import PatchMap
from lvlm_interp.attribution.split import CreditSplit
from lvlm_interp.attribution.swap import SwapTest
from lvlm_interp.counterfactuals.contrast import Contrast, Contrasts
from lvlm_interp.engine.score import Scores
from lvlm_interp.generation.traced import Trace
from lvlm_interp.generation.watched import Watched
from lvlm_interp.generation.yes_no import Decodings
from lvlm_interp.given import checked
from lvlm_interp.heatmaps.faithfulness import Faithfulness
from lvlm_interp.heatmaps.joint_effects import JointEffects
from lvlm_interp.heatmaps.localization import Located
from lvlm_interp.heatmaps.over_examples import FaithfulnessOver
from lvlm_interp.heatmaps.sanity import Sanity
from lvlm_interp.inside.direct import DirectAttribution
from lvlm_interp.inside.lens import Lens
from lvlm_interp.inside.tuned_lens import TunedLens
from lvlm_interp.interventions.circuits import Circuits
from lvlm_interp.interventions.directions import Directions
from lvlm_interp.interventions.dose import DoseResponse
from lvlm_interp.interventions.edges import Edges
from lvlm_interp.interventions.effects import Effects
from lvlm_interp.interventions.patching import Components
from lvlm_interp.interventions.routes import Routes
from lvlm_interp.interventions.sparse import SparseFeatures
from lvlm_interp.interventions.sweep import Sweep
from lvlm_interp.interventions.tracing import Tracing
from lvlm_interp.model.capture import Captured
from lvlm_interp.opening.conformance import Conformance
from lvlm_interp.probes.features import Features
from lvlm_interp.probes.result import ProbeResult
from lvlm_interp.report.diagnosis import Diagnosis
from lvlm_interp.results import Result

KINDS: tuple[type[Result], ...] = (
    *(Conformance, Contrast, Contrasts, CreditSplit, PatchMap, Lens, TunedLens, DirectAttribution, ProbeResult),
    Diagnosis,
    Captured,
    Scores,
    Features,
    SwapTest,
    Judgement,
    Faithfulness,
    Located,
    FaithfulnessOver,
    Sanity,
    JointEffects,
    Effects,
    Sweep,
    Routes,
    Tracing,
    Components,
    Edges,
    Circuits,
    Trace,
    Watched,
    Decodings,
    Directions,
    DoseResponse,
    SparseFeatures,
)


@checked
def load_result(path: str | Path) -> Result:
    """Read a result that was saved, whatever kind it is of.

    Raises:
        OutputError: the file is missing, damaged, or holds no result.
        InputError: what is no path.
    """
    return Result.load(path)
