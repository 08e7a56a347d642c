"""The rooms of the package: who may import whom, and what no room does."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "medkit"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# In order: a room imports itself and the rooms before it.
ROOMS = [
    *("keyed", "record", "metrics", "jobs", "plot", "dicom", "synth", "data", "models"),
    *("saliency", "vlm", "callbacks", "surroundings", "run", "start", "trainer", "check"),
    *("study", "widgets", "cli"),
]
# The launcher and what reads its results answer at once, on machines without an accelerator.
WITHOUT_TORCH = ["record", "metrics", "jobs", "cli"]

SEEDS_A_GLOBAL = {
    *("random.seed", "random.setstate", "numpy.random.seed", "numpy.random.set_state"),
    *("torch.manual_seed", "torch.seed", "torch.random.manual_seed", "torch.set_rng_state"),
    *("torch.random.set_rng_state", "torch.default_generator.manual_seed"),
    "torch.default_generator.set_state",
}
SEEDS_A_GLOBAL_BY_NAME = {"seed_everything", "set_determinism", "manual_seed_all", "isolate_rng"}
NO_DRAW = {"Random", "SystemRandom", "getstate", "seed", "setstate"}

# Words with the name of one maker in them, and why there is no other way.
UNAVOIDABLE = {"CUDA_VISIBLE_DEVICES": "what schedulers set and drivers read; no other name exists"}


def room_of(path: Path) -> str:
    """Return the room a file is in, such as "record" or "cli"."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def rooms_imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and room of each import of medkit, those inside functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "medkit":
            names = [f"medkit.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "medkit" and len(parts) > 1 and not parts[1].startswith("__"):
                yield node.lineno, parts[1]


def dotted(node: ast.expr) -> str:
    """Return ``a.b.c`` for an attribute chain, with np read as numpy; "" for anything else."""
    if isinstance(node, ast.Name):
        return "numpy" if node.id == "np" else node.id
    if isinstance(node, ast.Attribute) and (left := dotted(node.value)):
        return f"{left}.{node.attr}"
    return ""


def calls(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (name := dotted(node.func)):
            yield node.lineno, name


def shown(path: Path, line: int, what: str) -> str:
    return f"medkit/{path.relative_to(PACKAGE)}:{line}: {what}"


def test_every_file_is_in_a_room_of_the_design() -> None:
    strange = {room_of(path) for path in SOURCES} - {*ROOMS, "__init__", "__main__"}
    assert not strange, f"{sorted(strange)}: a new room goes into DESIGN's table and into ROOMS"


def test_a_room_imports_only_rooms_above_it() -> None:
    wrong = [
        shown(path, line, f"{room_of(path)} imports {room}")
        for path in SOURCES
        if room_of(path) in ROOMS
        for line, room in rooms_imported(parse(path))
        if room not in ROOMS[: ROOMS.index(room_of(path)) + 1]
    ]
    assert not wrong, "\n".join(wrong)


def test_the_check_of_imports_sees_one_inside_a_function() -> None:
    tree = ast.parse("def f():\n    from medkit import trainer\n    import medkit.cli\n")
    assert list(rooms_imported(tree)) == [(2, "trainer"), (3, "cli")]


def test_only_keyed_seeds_the_global_generators() -> None:
    wrong = [
        shown(path, line, name)
        for path in SOURCES
        if path != PACKAGE / "keyed.py"
        for line, name in calls(parse(path))
        if name in SEEDS_A_GLOBAL or name.rpartition(".")[2] in SEEDS_A_GLOBAL_BY_NAME
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_draws_from_the_global_generators_of_python_and_numpy() -> None:
    wrong = [
        shown(path, line, name)
        for path in SOURCES
        for line, name in calls(parse(path))
        if (name.startswith("random.") and name.removeprefix("random.") not in NO_DRAW)
        or (name.startswith("numpy.random.") and name.rpartition(".")[2].islower())
        if not name.endswith((".default_rng", ".get_state", ".set_state", ".seed"))
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_is_printed() -> None:
    wrong = [
        shown(path, line, "print")
        for path in SOURCES
        for line, name in calls(parse(path))
        if name == "print"
    ]
    assert not wrong, "\n".join(wrong)


def test_no_maker_of_devices_is_named() -> None:
    wrong = []
    for path in SOURCES:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                word = node.value
            elif isinstance(node, ast.Attribute):
                word = node.attr
            elif isinstance(node, ast.Name):
                word = node.id
            else:
                continue
            if "cuda" in word.lower() and word not in UNAVOIDABLE:
                wrong.append(shown(path, node.lineno, word[:60]))
    assert not wrong, "devices come from Lightning's accelerator:\n" + "\n".join(wrong)


def modules_of(room: str) -> list[str]:
    """Return the dotted names of the modules in a room."""
    return [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in SOURCES
        if room_of(path) == room
    ]


def loaded_by(modules: list[str]) -> set[str]:
    """Import ``modules`` in a fresh process and return the top packages it then has."""
    lines = [f"import {name}" for name in modules]
    code = "\n".join([*lines, "import sys", "print(*{n.split('.')[0] for n in sys.modules})"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_package_itself_loads_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "pandas", "scipy", "pytorch_lightning", "monai", "papermill"}
    assert not loaded_by(["medkit"]) & heavy


@pytest.mark.parametrize("room", WITHOUT_TORCH)
def test_a_room_that_says_so_does_not_load_torch(room: str) -> None:
    modules = modules_of(room)
    if not modules:
        pytest.skip(f"medkit/{room} is not there yet")
    assert not loaded_by(modules) & {"torch", "pytorch_lightning", "monai", "captum"}
