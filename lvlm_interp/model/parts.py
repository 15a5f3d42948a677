"""Finds the parts of a model by the names that transformers' code gives them. Pure: nothing is run or hooked here."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from lvlm_interp.errors import ModelError
from lvlm_interp.families.shared.registry import NAMES
from lvlm_interp.model.acting import acting, acting_modules
from lvlm_interp.model.weights import sizes_of

# A name that does not tell which part of a block it is; what carries a state is handed the cache that keeps it.
MIXER, CACHES = "mixer", {"cache_params", "past_key_values"}
# The only norms of a block where they stand behind attention and MLP (Olmo 2, Exaone 4); and those that some blocks use
# there as well, named as if they stood before.
AFTER_BOTH = ("post_attention_layernorm", "post_feedforward_layernorm")
BEFORE_BOTH = ("input_layernorm", "post_attention_layernorm")
# What the code of attention speaks of where a gate stands between the heads and their output projection.
GATING = {"sigmoid", "g_proj", "gate_proj"}


# --- blocks ---------------------------------------------------------------------------------------


def part(module: nn.Module, names: Iterable[str]) -> nn.Module | None:
    """The first child of these names that the module has; a mixer goes by the name of what it is."""
    mixer = getattr(module, MIXER, None)
    known = {MIXER: None, _told(acting(mixer)): mixer} if isinstance(mixer, nn.Module) else {}
    found = (known[name] if name in known else getattr(module, name, None) for name in names)
    return next((acting(child) for child in found if isinstance(child, nn.Module)), None)


def _told(mixer: nn.Module) -> str:
    """A name that tells what a mixer is: attention, what carries a state, or an MLP (NemotronH)."""
    if any(uses_interface(m) for m in acting_modules(mixer)):
        return NAMES.attention[0]
    return MIXER if CACHES & inspect.signature(mixer.forward).parameters.keys() else NAMES.mlp[0]


def find_blocks(tower: nn.Module, other: nn.Module | None = None) -> list[nn.Module]:
    """The transformer blocks of a tower, as they run: its longest list of modules with attention in them.

    `other` is a tower that may stand inside of it, and is not meant.

    Raises:
        ModelError: there is no such list.
    """
    apart = set() if other is None else set(other.modules())
    lists = [m for m in acting_modules(tower) if isinstance(m, nn.ModuleList) and m not in apart]
    lists = [m for m in lists if any(part(acting(b), NAMES.attention) for b in m)]
    if not lists:
        raise ModelError(f"found no transformer blocks in {type(tower).__name__}")
    blocks = max(lists, key=len)
    return [acting(block) for block in _interleaved(blocks, owner_of(tower, blocks))]


def _interleaved(blocks: nn.ModuleList, owner: nn.Module) -> list[nn.Module]:
    """Blocks with what their owner keeps beside them in a list of its own: layers that have cross-attention only, each
    of which runs before an equal share of the blocks (Idefics)."""
    beside = [m for m in owner.children() if isinstance(m, nn.ModuleList) and m is not blocks and len(m)]
    reading = next((m for m in beside if all(_only_reads(acting(b)) for b in m)), None)
    if reading is None or len(blocks) % len(reading):
        return list(blocks)
    share = len(blocks) // len(reading)
    return [b for n, layer in enumerate(reading) for b in (layer, *blocks[n * share : (n + 1) * share])]


def _only_reads(layer: nn.Module) -> bool:
    """Whether a layer has cross-attention, and no attention between positions."""
    return part(layer, NAMES.cross_attention) is not None and part(layer, NAMES.attention) is None


def need_places(blocks: Sequence[nn.Module]) -> None:
    """Raise unless each block leaves what later positions read (keys and values, a state) in a place of its own.

    That place is its number, `layer_idx`: whatever goes on from what is kept would read another block's.

    Raises:
        ModelError: names the block.
    """
    held: dict[nn.Module, int] = {}
    numbers: dict[int, Any] = {}
    for n, block in enumerate(blocks):
        for module in _keeping(block):
            if held.setdefault(module, n) != n:
                raise ModelError(
                    f"blocks {held[module]} and {n} have one {type(module).__name__} between them, the same object, "
                    "and what both keep for later positions would stand in one place. Give each its own, a "
                    "copy.deepcopy of it, with a layer_idx of its own"
                )
            numbers[n] = getattr(module, "layer_idx", n)
    if {*numbers.values()} in ({*numbers}, {*range(len(numbers))}):  # layers in a list of their own are not counted
        return
    n = next(n for n, number in numbers.items() if number != n)
    name = next(name for name, module in blocks[n].named_modules() if acting(module) in _keeping(blocks[n]))
    raise ModelError(
        f"block {n} counts itself as {numbers[n]!r} ({name}.layer_idx), and these {len(blocks)} blocks do not count "
        "from 0, each once: what they keep for later positions would be missing, or another's. Where blocks were taken "
        f"out, repeated or put in, number them all anew, from 0 in their order: block.{name}.layer_idx = n"
    )


def _keeping(block: nn.Module) -> list[nn.Module]:
    """What of a block keeps something for later positions."""
    attention = attention_of(block)
    return [*([] if attention is None else [attention]), *recurrent_of(block).values()]


def attention_of(block: nn.Module, names: Iterable[str] = NAMES.attention) -> nn.Module | None:
    """The module of a block that calls the attention function; None where the block has no attention of these names.

    Some blocks wrap it in another module.
    """
    outer = part(block, names)
    if outer is None:
        return None
    return next((m for m in acting_modules(outer) if uses_interface(m)), outer)


def recurrent_of(block: nn.Module) -> dict[str, nn.Module]:
    """What hands a state from position to position in a block, by name."""
    found = ((name, part(block, [name])) for name in NAMES.recurrent)
    return {name: m for name, m in found if m is not None and not uses_interface(m)}


def uses_interface(attention: nn.Module) -> bool:
    """Whether a module computes attention through transformers' `AttentionInterface`, where it can be seen.

    Kosmos-2.5's vision tower looks for a kernel among the attributes of its table, and never finds one there.
    """
    names = names_in_forward(attention)
    return "ALL_ATTENTION_FUNCTIONS" in names and ("get_interface" in names or "getattr" not in names)


def names_in_forward(module: nn.Module) -> set[str]:
    """The names, and the strings, that the code of a module's `forward` speaks of."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return {*code.co_names, *(c for c in code.co_consts if isinstance(c, str))} if code else set()


def owner_of(model: nn.Module, child: nn.Module) -> nn.Module:
    """The innermost module that a module, or what stands in its place, is a direct child of."""
    return [m for m in acting_modules(model) if any(c is child or acting(c) is child for c in m.children())][-1]


def repeated(towers: Iterable[nn.Module]) -> dict[nn.Module, list[str]]:
    """Modules that stand at several places of one tower, and so may run several times in a pass: by their paths."""
    found: dict[nn.Module, list[str]] = {}
    for tower in towers:
        paths: dict[nn.Module, list[str]] = defaultdict(list)
        for path, module in tower.named_modules(remove_duplicate=False):
            paths[module].append(path)
        found |= {module: some for module, some in paths.items() if len(some) > 1}
    return found


def norm_of(block: nn.Module, names: Iterable[str], other: nn.Module | None = None) -> nn.Module | None:
    """What stands under one of these names, if it does anything and is not the `other`."""
    found = (part(block, [name]) for name in names)
    return next((m for m in found if m is not None and m is not other and not isinstance(m, nn.Identity)), None)


def norms_of_outputs(block: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    """The two norms of a block that norms what its attention and its MLP give; None if it norms what they read."""
    norms = {name: acting(child) for name, child in block.named_children()}
    norms = {name: norm for name, norm in norms.items() if "Norm" in type(norm).__name__}
    first, second = BEFORE_BOTH if _moved(block) else AFTER_BOTH
    return (norms[first], norms[second]) if norms.keys() == {first, second} else None


def _moved(block: nn.Module) -> bool:
    """Whether the norms of a block stand behind attention and MLP, though they are named as if they stood before."""
    kind = type(block).__name__
    return any(getattr(block, name, name in kind) for name in NAMES.norms_moved)


def axis_of_streams(block: nn.Module) -> int | None:
    """The axis of a block's residual streams, where they have one of their own."""
    return next((axis for name, axis in NAMES.streams.items() if part(block, [name])), None)


@dataclass(frozen=True, eq=False)
class Writers:
    """What of a block writes to the residual stream.

    Attributes:
        modules: what gives it, behind a norm where there is one, by the name of its site in the block.
        before_mlp: whose addition makes the stream that the MLP reads; the block itself where nothing is added before
            it, None where there is no such stream (attention and MLP side by side, or one of them only).
        as_it_is: what is given is added to the stream; several streams may each take a share of it instead.
    """

    modules: dict[str, nn.Module]
    before_mlp: nn.Module | None
    as_it_is: bool


def writers_of(block: nn.Module) -> Writers:
    """What of a block writes to the residual stream."""
    of_outputs, mlp = norms_of_outputs(block), part(block, NAMES.mlp)
    before = None if of_outputs else part(block, NAMES.before_mlp)
    outer, recurrent = part(block, (*NAMES.attention, *NAMES.cross_attention)), recurrent_of(block)
    after_attention, after_mlp = of_outputs or (
        norm_of(block, NAMES.after_attention, before),
        norm_of(block, NAMES.after_mlp),
    )
    found = {"hook_attn_out": (after_attention or outer) if outer is not None else None}
    for name, module in recurrent.items():
        found[f"{name}.hook_out"] = after_attention if after_attention and outer is None else module
    found["hook_mlp_out"] = (after_mlp or mlp) if mlp is not None else None
    found |= {f"{site}.hook_out": other for name, site in NAMES.others.items() if (other := part(block, [name]))}
    modules = {name: module for name, module in found.items() if module is not None}
    mixing = part(block, (*NAMES.mixed_for_mlp, *NAMES.mixed_apart))
    single = axis_of_streams(block) is None and mixing is None
    if mlp is not None and mlp is getattr(block, MIXER, None):
        return Writers(modules, block, single)
    middle = mixing is not None or (single and mlp is not None and (before or of_outputs) is not None)
    return Writers(modules, next(iter(modules.values())) if middle else None, single)


def norms_before(block: nn.Module) -> dict[str, nn.Module]:
    """The norms that attention and the MLP of a block read through, by TransformerLens's names."""
    if norms_of_outputs(block):
        return {}
    found = {"ln1": part(block, NAMES.before_attention), "ln2": part(block, NAMES.before_mlp)}
    return {name: norm for name, norm in found.items() if norm is not None}


@dataclass(frozen=True, eq=False)
class Inner:
    """What an MLP has inside, by TransformerLens's names: a module, what of it is read, its share of the last axis."""

    name: str
    module: nn.Module
    read: Literal["input", "output"]
    span: tuple[int, int] | None = None


def inside_mlp(block: nn.Module) -> list[Inner]:
    """What goes into the activation of an MLP, what is multiplied by what comes out, the product; none in experts."""
    mlp = part(block, NAMES.mlp)
    if mlp is None:
        return []
    holder = block if sizes_of(mlp) else mlp
    kinds = (NAMES.mlp_gate, NAMES.mlp_in, NAMES.mlp_out, NAMES.gate_and_in)
    gate, into, out, both = (m if sizes_of(m := part(holder, names)) else None for names in kinds)
    reads, gives = sizes_of(out), sizes_of(both)
    if out is None or reads is None:
        return []
    post, half = Inner("hook_post", out, "input"), reads[0]
    if both is not None and gives == (gives and gives[0], 2 * half):
        spans = {"hook_pre": (0, half), "hook_pre_linear": (half, 2 * half)}
        return [*(Inner(name, both, "output", span) for name, span in spans.items()), post]
    if into is None:
        return []
    linear = Inner("hook_pre" if gate is None else "hook_pre_linear", into, "output")
    return [linear, post] if gate is None else [Inner("hook_pre", gate, "output"), linear, post]


def rescale_of(block: nn.Module) -> float:
    """What a block multiplies its whole stream by, behind all that it adds: 1 for most (not for Gemma 4)."""
    found = (getattr(block, name, None) for name in NAMES.rescaled)
    return next((float(scale.detach()) for scale in found if isinstance(scale, Tensor)), 1.0)


def attends(tower: nn.Module) -> bool:
    """Whether there is attention in a tower, between rows of positions.

    Inkling's folds patches into channels, layer by layer, and has none. MobileNet V5 and FastViT (Gemma 3n, FastVLM)
    have some among the convolutions of their stages: maps of channels that get smaller, and no residual stream.
    """
    parts = [*acting_modules(tower)]
    stages = [m for m in parts if isinstance(m, nn.Sequential)]
    convolved = [m for m in stages if any(isinstance(inner, nn.Conv2d) for inner in m.modules())]
    among = {module for stage in convolved for module in stage.modules()}
    return any("Attention" in type(module).__name__ for module in parts if module not in among)


# --- attention ------------------------------------------------------------------------------------


def gated_output(attention: nn.Module) -> nn.Module | None:
    """The output projection, where a gate stands before it: z is then what it reads, not what the heads read."""
    out = part(attention, NAMES.output_projection)
    return out if sizes_of(out) and GATING & names_in_forward(attention) else None


def output_of(attention: nn.Module) -> nn.Module | None:
    """What the heads go into: their output projection, behind a norm where there is one."""
    norm, project = part(attention, NAMES.inner_norm), part(attention, NAMES.output_projection)
    return nn.Sequential(norm, project) if norm and project else project


def head_width(attention: nn.Module) -> int | None:
    """How wide one head is."""
    if width := getattr(attention, "head_dim", None) or getattr(attention, "attention_head_size", None):
        return int(width)
    wide, heads = (
        next((int(v) for n in names if isinstance(v := getattr(attention, n, None), int)), None)
        for names in (("embed_dim", "hidden_size", "dim"), ("num_heads", "num_attention_heads"))
    )
    return wide // heads if wide and heads else None


@dataclass(frozen=True)
class Projection:
    """What computes q, k or v.

    Attributes:
        module: it or what it stands in.
        heads: how many heads its share has.
        span: its share of the module's last axis.
        inner: its part of each head's share, where something else stands there too.
    """

    module: nn.Module
    heads: int
    span: tuple[int, int]
    inner: tuple[int, int]


def projections(attention: nn.Module) -> dict[str, Projection]:
    """What computes q, k and v, as far as it can be told."""
    width = head_width(attention)
    named = {letter: part(attention, (f"{letter}_proj", f"{letter}_projection")) for letter in "qkv"}
    own = {letter: (m, sizes[1]) for letter, m in named.items() if m and (sizes := sizes_of(_linear(m)))}
    fused = part(attention, NAMES.qkv)
    if width is None:
        return {}
    if own:
        return {letter: _own(attention, letter, m, size, width) for letter, (m, size) in own.items()}
    sizes = sizes_of(fused)
    if fused is None or sizes is None or sizes[1] % (3 * width):
        return {}
    third = sizes[1] // 3
    if part(attention, NAMES.head_by_head) is fused:
        places = {letter: ((0, 3 * third), (n * width, (n + 1) * width)) for n, letter in enumerate("qkv")}
    else:
        places = {letter: ((n * third, (n + 1) * third), (0, width)) for n, letter in enumerate("qkv")}
    return {letter: Projection(fused, third // width, span, inner) for letter, (span, inner) in places.items()}


def _own(attention: nn.Module, letter: str, module: nn.Module, size: int, width: int) -> Projection:
    """Behind the query of each head may stand its gate."""
    gated = gated_output(attention)
    reads = sizes_of(gated)
    share = 2 * width if reads and letter == "q" and size == 2 * reads[0] else width
    return Projection(module, size // share, (0, size), (0, width))


def _linear(module: nn.Module) -> nn.Module:
    """The linear map that a module is, or that it wraps (Gemma 4 clips what goes in and comes out)."""
    inner = getattr(module, "linear", module)
    return inner if isinstance(inner, nn.Module) else module
