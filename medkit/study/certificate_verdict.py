"""What is to blame where two processes part: a component, and the line or module if it shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from medkit.callbacks.op_trace import BACKWARD, OPTIMIZER
from medkit.study import certificate_steps as steps
from medkit.study.certificate_steps import Parting, Recorded

ORDER, SETUP, AUGMENTATION = "data order", "data set-up", "augmentation"
INIT, DRAWS, UNWRITTEN = "initial weights", "draws in the step", "uninitialised memory"
FORWARD_OP, BACKWARD_OP, STEPPER = "operation (forward)", "operation (backward)", "optimizer"
BETWEEN, LENGTH, AFTER = "between the steps", "number of steps", "after training"
THREADS, ENVIRONMENT = "thread count", "environment"
_STEP = ("loss", "buffers", "gradients", "weights", "optimizer")
_CHECK = "`medkit check package:Module package:Data` names the line"


@dataclass(frozen=True)
class Verdict:
    """What a comparison came to.

    Attributes:
        component: What is to blame, one of the names above; empty where nothing differs.
        stage: The stage they part in.
        place: "epoch/batch" there, or "start".
        differs: What was the first to differ.
        why: What was seen, in words.
        where: The module or the line, where it can be told.
    """

    component: str = ""
    stage: str = ""
    place: str = ""
    differs: str = ""
    why: str = ""
    where: str = ""

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not self.component

    def __str__(self) -> str:
        if self.equal:
            return "equal bit for bit"
        at = f", first at {self.place} (epoch/batch) of stage {self.stage!r}" if self.stage else ""
        if self.place == "start":
            at = f", before the first step of stage {self.stage!r}"
        where = f"\n  {self.where}" if self.where else ""
        return f"DIFFERS: {self.component}{at}: {self.why}{where}"


def judge(a: Recorded, b: Recorded, *, cut: bool = False) -> Verdict:
    """Say whether two processes did the same, and what is to blame where they did not.

    Args:
        a: One process.
        b: The other.
        cut: Whether they were stopped on the way: their ends say nothing.
    """
    at = steps.parting(a, b)
    if at is None:
        return Verdict() if cut else compare_ends(a, b)
    component, why, where = _blame(at)
    lines, only_threads = steps.surroundings_differ(a, b)
    threads = [line.get("threads") for line in (at.a, at.b)]
    computed = at.field in _STEP
    if computed and (only_threads or (None not in threads and threads[0] != threads[1])):
        component, where = THREADS, ""
        why = f"{at.field} differs, computed by {threads[0]} and by {threads[1]} threads"
    elif lines and not only_threads:
        component, why, where = ENVIRONMENT, f"{at.field} differs, and " + "; ".join(lines[:5]), ""
    return Verdict(component, at.stage, at.place, at.field, why, where)


def _blame(at: Parting) -> tuple[str, str, str]:
    """Return component, what was seen, and the module or line."""
    if at.field == steps.START:
        mine, theirs = at.a.get("weights", {}), at.b.get("weights", {})
        names = [name for name in mine if mine[name] != theirs.get(name)] or sorted(theirs)
        return INIT, "they differ as training begins; make the net inside run.init", names[0]
    if at.field == steps.END:
        return LENGTH, "one process trained on where the other had ended", ""
    if at.field == "rows":
        return ORDER, "the batch is made of other rows of the dataset", ""
    if at.field == "batch":
        return _blame_batch(at)
    if at.a.get("weights before") != at.b.get("weights before"):
        return BETWEEN, "weights were changed after the step before was over", ""
    found = first_op(at.a.get("ops", []), at.b.get("ops", []))
    if found is not None:
        return found
    if at.field in ("weights", "optimizer"):
        return STEPPER, f"the gradients are the same and the {at.field} after the step differ", ""
    if at.field == "gradients":
        return BACKWARD_OP, "the loss is the same and its gradients differ", ""
    return DRAWS, f"weights and batch are the same and the {at.field} differs", ""


def _blame_batch(at: Parting) -> tuple[str, str, str]:
    if at.same_samples:
        return ORDER, "the same samples come in another order; sort what they are read from", ""
    parts = at.a.get("parts", {}), at.b.get("parts", {})
    names = [name for name in parts[0] if parts[0][name] != parts[1].get(name)]
    where = f"batch{', batch'.join(names)}" if names else ""
    mine, theirs = at.a.get("again", []), at.b.get("again", [])
    if mine and theirs and len({*mine}) == len({*theirs}) == 1 and mine != theirs:
        why = "fetched again, each process gives its own samples again: they were made unlike"
        return SETUP, f"{why} before the first batch", where
    return AUGMENTATION, f"the same rows were fetched with other values; {_CHECK}", where


def first_op(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> tuple[str, str, str] | None:
    """Name the first operation that came out otherwise; None where none did.

    Returns:
        Component, what was seen, and module and line.
    """
    for mine, theirs in zip(a, b, strict=False):
        where = "; ".join(part for part in (mine["module"], mine["line"]) if part) or mine["phase"]
        name = mine["name"]
        if name != theirs["name"]:
            return DRAWS, f"one process goes on with {name}, the other with {theirs['name']}", where
        if mine["took"] != theirs["took"]:
            if mine["phase"] == OPTIMIZER:
                return STEPPER, f"{name} is handed another value", where
            why = f"{name} is handed a value that no operation before it gave: it was drawn or made"
            return DRAWS, f"{why} outside of torch, or in another thread", where
        if mine["gave"] == theirs["gave"]:
            continue
        if mine["unwritten"] or theirs["unwritten"]:
            return UNWRITTEN, f"{name} reads memory that nothing was written to", where
        if mine["draws"]:
            return DRAWS, f"{name} draws from a generator that no key reaches", where
        kinds = {BACKWARD: BACKWARD_OP, OPTIMIZER: STEPPER}
        why = f"{name} took the same and gave another result"
        return kinds.get(mine["phase"], FORWARD_OP), why, where
    return None


def unwritten(at: Parting, traced: Recorded) -> Verdict | None:
    """Blame memory that a traced process read unwritten, where nothing else could be seen."""
    lines = [line for stage in traced.stages.values() for line in stage.values()]
    for op in (op for line in lines for op in line.get("ops", []) if op["unwritten"]):
        where = "; ".join(part for part in (op["module"], op["line"]) if part)
        why = f"{op['name']} reads memory that nothing was written to"
        return Verdict(UNWRITTEN, at.stage, at.place, at.field, why, where)
    return None


def compare_ends(a: Recorded, b: Recorded) -> Verdict:
    """Compare what the processes left at their ends."""
    weights = [{k: v.get("weights_sha256") for k, v in x.facts.get("stages", {}).items()}
               for x in (a, b)]  # fmt: skip
    differing = [name for name in weights[0] if weights[0][name] != weights[1].get(name)]
    differing += steps.unpaired(a, b) if a.stages and b.stages else []
    files = sorted({*a.results} | {*b.results})
    differing += [name for name in files if a.results.get(name) != b.results.get(name)]
    if not differing:
        return Verdict()
    lines, only_threads = steps.surroundings_differ(a, b)
    if lines:
        component, said = (THREADS if only_threads else ENVIRONMENT), "; ".join(lines[:5])
    else:
        component, said = AFTER, "all steps that were recorded are the same"
    return Verdict(component, differs=differing[0], why=f"{', '.join(differing)} differ; {said}")
