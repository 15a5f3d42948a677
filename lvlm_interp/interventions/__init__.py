"""Interventions: what a model would do, if a route were cut, a head removed, a state exchanged or pushed."""

from lvlm_interp.interventions.attention import Knockout, Scale
from lvlm_interp.interventions.axes import windows
from lvlm_interp.interventions.circuits import Circuits, circuits
from lvlm_interp.interventions.coders import SparseCoder, load_sparse_coder
from lvlm_interp.interventions.directions import (
    Directions,
    image_difference,
    mean_difference,
    principal_direction,
    probed_directions,
)
from lvlm_interp.interventions.dose import DoseResponse, dose_response
from lvlm_interp.interventions.edges import Edges, edge_attribution
from lvlm_interp.interventions.effects import Effects, intervene
from lvlm_interp.interventions.intervention import Certificate, Intervention, Together, intervening
from lvlm_interp.interventions.patching import Components, attribution_patching
from lvlm_interp.interventions.paths import path_patching
from lvlm_interp.interventions.places import Region
from lvlm_interp.interventions.routes import Routes, attention_routes
from lvlm_interp.interventions.sinks import Redistribute
from lvlm_interp.interventions.sparse import AblateFeatures, SparseFeatures, sparse_features
from lvlm_interp.interventions.states import Ablate, Freeze, Patch, Steer
from lvlm_interp.interventions.sweep import Sweep, sweep
from lvlm_interp.interventions.tracing import Tracing, causal_trace

__all__ = [
    "Ablate",
    "AblateFeatures",
    "Certificate",
    "Circuits",
    "Components",
    "Directions",
    "DoseResponse",
    "Edges",
    "Effects",
    "Freeze",
    "Intervention",
    "Knockout",
    "Patch",
    "Redistribute",
    "Region",
    "Routes",
    "Scale",
    "SparseCoder",
    "SparseFeatures",
    "Steer",
    "Sweep",
    "Together",
    "Tracing",
    "attention_routes",
    "attribution_patching",
    "causal_trace",
    "circuits",
    "dose_response",
    "edge_attribution",
    "image_difference",
    "intervene",
    "intervening",
    "load_sparse_coder",
    "mean_difference",
    "path_patching",
    "principal_direction",
    "probed_directions",
    "sparse_features",
    "sweep",
    "windows",
]
