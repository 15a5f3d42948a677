"""Every public function, called with what it does not take: `python -m tests.wrong` prints what is no error of ours.

It is a process of its own, since tests check every call against its annotations, and users do not.
"""

import functools
import importlib
import inspect
import os
import re
import tempfile
import warnings
from pathlib import Path

from lvlm_interp.errors import LvlmInterpError

API = Path(__file__).resolve().parents[1] / "docs" / "api.md"
LISTED = re.compile(r"^::: (\S+)\n((?:    .*\n)*)", re.M)
OURS = "lvlm_interp"
WRONG = (None, -7, 2.5, float("nan"), "banana", b"x", [], {}, [object()])
SKIPPED = {"build", "clear", "where", "check"}  # make, or remove, the reference model's files; take seconds


def named():
    """Name → object, of all that the page of the API lists."""
    for module, options in LISTED.findall(API.read_text(encoding="utf-8")):
        loaded, members = importlib.import_module(module), re.search(r"members: \[(.*)\]", options)
        own = (n for n, value in vars(loaded).items() if n[0] != "_" and getattr(value, "__module__", "") == module)
        for name in members[1].split(", ") if members else own:
            yield f"{module}.{name}", getattr(loaded, name)


def functions():
    """Name → function, of all of them that take arguments; of a class, its methods."""
    found = {}
    for name, value in named():
        if inspect.isclass(value):
            ours = [kind for kind in value.__mro__ if kind.__module__.startswith(OURS)]
            methods = {n: f for kind in reversed(ours) for n, f in vars(kind).items() if n[0] != "_"}
            plain = {n: f for n, f in methods.items() if inspect.isfunction(f)}
            found |= {f"{name}.{n}": f for n, f in plain.items() if len(inspect.signature(f).parameters) > 1}
        elif callable(value) and inspect.isroutine(value) | hasattr(value, "__wrapped__"):
            found |= {name: value} if inspect.signature(value).parameters else {}
    return found


def samples():
    """What is right: by the names of arguments, and the objects that methods are of, by their class."""
    import torch

    from lvlm_interp import wrap
    from lvlm_interp.attribution.definitions import definition_of
    from lvlm_interp.attribution.shapley import Interactions
    from lvlm_interp.attribution.value import target_of
    from lvlm_interp.engine.decoder import run_to_decoder
    from lvlm_interp.reference.questions import examples
    from tests.kinds import one_of_each
    from tests.swapping import made_test
    from tests.tiny import tiny_inputs, tiny_llava

    vlm = wrap(tiny_llava())
    x = tiny_inputs(vlm)
    computed, example = run_to_decoder(vlm, x, keep_prompt=True), next(examples("object", 1))
    objects = [vlm, x, x.images[0], vlm.batch([x]), vlm.readout, computed, example, example.scene]
    swapped = made_test().examples[0]
    objects += [definition_of("odds, word"), swapped, swapped.variants[0], swapped.verdict(), swapped.pointed]
    objects += [Interactions(("a", "b"), torch.ones(1, 4)), target_of(vlm, x, ["odds"])]
    return {"vlm": vlm, "x": x}, [*objects, *one_of_each().values()]


def calls(function, right, first):
    """The arguments of calls: all wrong, and those that are known right and the others wrong."""
    parameters = list(inspect.signature(function).parameters.values())[len(first) :]
    needed = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    optional = [p for p in parameters if p not in needed and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    for wrong in WRONG:
        yield [*first, *(wrong for _ in needed)], {}
        yield [*first, *(right.get(p.name, wrong) for p in needed)], {}
        if all(p.name in right for p in needed):
            for p in optional:
                yield [*first, *(right[q.name] for q in needed)], {p.name: wrong}


def raw():
    """What went wrong in another way than by an error of ours."""
    right, objects = samples()
    for name, function in functions().items():
        holder, _, short = name.rpartition(".")
        if short in SKIPPED:
            continue
        kind = holder.rpartition(".")[2]
        of = [one for one in objects if kind in (k.__name__ for k in type(one).__mro__)] if kind[0].isupper() else []
        if kind[0].isupper() and not of:
            continue
        for args, kwargs in calls(function, right, of[:1]):
            if said := _raw(function, args, kwargs):
                given = [*(repr(a)[:30] for a in args), *(f"{k}={v!r}" for k, v in kwargs.items())]
                yield f"{name}({', '.join(given)}): {said}"


def read_once():
    """What can be read only once, and is refused as something else or not at all."""
    import torch

    from lvlm_interp.probes.probe import fit_probes

    for name in ("folds", "groups", "types"):
        fitting = functools.partial(fit_probes, torch.randn(20, 2, 4), ["a", "b"] * 10)
        said = _refusal(fitting, {name: (n % 5 for n in range(20))})
        if not said.startswith(f"InputError: {name} are a list"):
            yield f"fit_probes({name}=a generator): {said}"


def taken_for_true():
    """Texts that were taken for True, or asked about too late: what is trusted, opened or written by then is."""
    for name, function in functions().items():
        plain = inspect.unwrap(function)
        truths = [key for key, hint in plain.__annotations__.items() if hint in (bool, "bool") and key != "return"]
        for key in () if function.explained == "beforehand" else truths:  # these look at all arguments
            for wrong in ("no", [], (1, 2)):
                said = _refusal(function, {key: wrong})
                if f"({key}=…) takes " not in said:
                    yield f"{name}({key}={wrong!r}): {said}"


def _refusal(function, kwargs):
    try:
        function(**kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def _raw(function, args, kwargs):
    try:
        made = function(*args, **kwargs)
        if inspect.isgenerator(made):
            next(made, None)
    except LvlmInterpError:
        return None
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:100]}"
    return None


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    os.chdir(tempfile.mkdtemp())
    print(*raw(), *taken_for_true(), *read_once(), sep="\n")
