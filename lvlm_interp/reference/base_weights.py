"""The base weights as ordinary transformers modules: SmolLM2 from GGUF, DINOv2-S from ONNX."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)

from lvlm_interp.errors import ModelError
from lvlm_interp.reference.sources import LANGUAGE_MODEL, VISION_TOWER, fetch

# What transformers calls, from 5.18 on, the attention weights that the ONNX file names as it did before.
_RENAMED = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}
# The exporter folded the position embedding into two constants: the class token's and the patches'.
_POSITIONS = ("onnx::Concat_1957", "onnx::Reshape_1962")


def load_language_model(path: Path | None = None) -> LlamaForCausalLM:
    """SmolLM2-135M-Instruct in float32, dequantised from the GGUF file (fetched if no path is given)."""
    path = path or fetch(LANGUAGE_MODEL)
    read = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32)
    # A model read from GGUF refuses to be saved, so its weights move into a fresh one.
    config = {k: v for k, v in read.config.to_dict().items() if k not in ("quantization_config", "_name_or_path")}
    model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    return model.eval()


def load_tokenizer(path: Path | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer that the GGUF file carries."""
    path = path or fetch(LANGUAGE_MODEL)
    return AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)


def load_vision_tower(path: Path | None = None) -> Dinov2Model:
    """DINOv2-S/14 in float32, from the initialisers of the ONNX graph (fetched if no path is given).

    Raises:
        ModelError: the graph does not hold exactly the weights of a DINOv2-S.
    """
    config = Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14)
    model = Dinov2Model(config)
    try:
        state, known = _vision_state(path or fetch(VISION_TOWER)), model.state_dict().keys()
        model.load_state_dict({name if name in known else _renamed(name): value for name, value in state.items()})
    except (RuntimeError, KeyError) as error:
        raise ModelError(f"the ONNX file does not hold a DINOv2-S as expected: {error}") from error
    return model.eval()


def _vision_state(path: Path) -> dict[str, torch.Tensor]:
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    arrays = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    state = {n.removeprefix("backbone."): torch.tensor(a) for n, a in arrays.items() if n.startswith("backbone.")}
    for node in graph.node:  # weights of MatMul are anonymous and transposed; the node's name says whose they are
        weight = next((i for i in node.input if i in arrays), None)
        if node.op_type == "MatMul" and weight and node.name.startswith("/backbone"):
            module = ".".join(node.name.strip("/").split("/")[1:-1])
            state[module + ".weight"] = torch.tensor(arrays[weight]).T.contiguous()
    positions = np.concatenate([arrays[name] for name in _POSITIONS], 1)
    state["embeddings.position_embeddings"] = torch.tensor(positions)
    state["embeddings.mask_token"] = torch.zeros(1, 384)  # used in pretraining only; the export left it out
    return state


def _renamed(name: str) -> str:
    for old, new in _RENAMED.items():
        name = name.replace(old, new)
    return name
