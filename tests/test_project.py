"""pyproject, locks, environment.yml, Dockerfile, Makefile and what is installed agree."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from tools.check_torch import asked_torch
from tools.lock import DIGEST_LINE, LOCKS, dependency_digest, without_torch_builds

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12")

# The first release without a published hole, of what this project names itself.
FLOORS = {
    "torch": "2.10",  # CVE-2025-32434, CVE-2026-24747: code and memory corruption from a checkpoint
    "pytorch-lightning": "2.6.6",  # CVE-2026-58659; 2.6.2 and 2.6.3 were tampered with
    "monai": "1.6.0",  # GHSA-89gg-p5r5-q6r4 and those before it: pickle, zip slip, injection
    "jupyter-server": "2.20.0",  # CVE-2026-40110, -35397, -44727
    "jupyterlab": "4.6.2",  # CVE-2026-73417, -73415, -73627
}
# Where the name to import is not the name to install.
DISTRIBUTION = {
    "IPython": "ipython",
    "PIL": "pillow",
    "dicomanonymizer": "dicom-anonymizer",
    "pytorch_lightning": "pytorch-lightning",
    "sklearn": "scikit-learn",
    "websocket": "websocket-client",
    "yaml": "pyyaml",
    "zmq": "pyzmq",
}


@cache
def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def asked(*extras: str) -> dict[str, Requirement]:
    """Return the requirements of the core and of ``extras`` by canonical name."""
    lines = list(pyproject()["project"]["dependencies"])
    queue = list(extras)
    while queue:
        for line in pyproject()["project"]["optional-dependencies"][queue.pop()]:
            found = Requirement(line)
            if found.name == "medkit":
                queue += found.extras
            else:
                lines.append(line)
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}


def lock_text(name: str) -> str:
    return (ROOT / "locks" / f"{name}.txt").read_text(encoding="utf-8")


@cache
def locked(name: str) -> dict[str, Requirement]:
    """Return the pins of a lock by canonical name; each name must be there once."""
    pins = [
        Requirement(line.removesuffix("\\").strip())
        for line in lock_text(name).splitlines()
        if line and not line.startswith(("#", " "))
    ]
    by_name = {canonicalize_name(pin.name): pin for pin in pins}
    assert len(by_name) == len(pins), f"locks/{name}.txt names a package twice"
    return by_name


def version_of(pin: Requirement) -> Version:
    (only,) = pin.specifier
    assert only.operator == "==", pin
    return Version(only.version)


def top_imports(paths: list[Path]) -> dict[str, str]:
    """Return each top package that ``paths`` import, with one place that does."""
    found: dict[str, str] = {}
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            else:
                continue
            for name in names:
                found.setdefault(name.split(".")[0], f"{path.relative_to(ROOT)}:{node.lineno}")
    return found


def undeclared(folder: str, declared: set[str], own: set[str]) -> list[str]:
    paths = sorted((ROOT / folder).rglob("*.py"))
    return [
        f"{where} imports {name}"
        for name, where in top_imports(paths).items()
        if name not in sys.stdlib_module_names | own
        and canonicalize_name(DISTRIBUTION.get(name, name)) not in declared
    ]


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_holds_and_satisfies_what_pyproject_asks(name: str) -> None:
    wrong = [
        str(need)
        for package, need in asked(*LOCKS[name]).items()
        if package != "torch"
        and not (package in locked(name) and version_of(locked(name)[package]) in need.specifier)
    ]
    assert not wrong


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_was_made_from_this_pyproject(name: str) -> None:
    assert f"{DIGEST_LINE}{dependency_digest()}" in lock_text(name), "run `make lock`"


@pytest.mark.parametrize("name", LOCKS)
def test_every_pin_of_a_lock_has_a_hash(name: str) -> None:
    blocks = re.split(r"^(?=[a-z])", lock_text(name), flags=re.M)[1:]
    assert len(blocks) == len(locked(name))
    assert not [block.split()[0] for block in blocks if "--hash=sha256:" not in block]


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_names_no_torch_no_address_and_no_path(name: str) -> None:
    unwanted = {"torch", "torchvision", "triton", "medkit"} & set(locked(name))
    unwanted |= {package for package in locked(name) if package.startswith(("nvidia-", "cuda-"))}
    assert not unwanted
    text = lock_text(name)
    assert not re.search(r"://|file:|--index-url|--extra-index-url|--find-links|@ |\+cpu", text)


@pytest.mark.parametrize("name", LOCKS)
def test_the_build_backend_is_in_each_lock(name: str) -> None:
    (backend,) = (Requirement(line) for line in pyproject()["build-system"]["requires"])
    assert version_of(locked(name)["setuptools"]) in backend.specifier


def test_locks_agree_with_one_another() -> None:
    for narrow in ("lab", "train"):
        for package, pin in locked(narrow).items():
            assert version_of(pin) == version_of(locked("dev")[package]), package


def test_only_the_lab_lock_has_jupyterlab() -> None:
    assert "jupyterlab" in locked("lab")
    assert not {"jupyterlab", "jupyter-server"} & set(locked("train"))


@pytest.mark.parametrize("python", PYTHONS)
def test_both_pythons_are_allowed_and_take_one_version_of_each_package(python: str) -> None:
    assert python in SpecifierSet(pyproject()["project"]["requires-python"])
    environment = {"python_version": python, "python_full_version": f"{python}.9"}
    for package, need in asked("dev").items():
        pin = locked("dev").get(package)
        assert package == "torch" or pin is not None, need
        assert pin is None or pin.marker is None or pin.marker.evaluate(environment), pin


def test_builds_of_torch_are_cut_out_of_a_lock_with_their_hashes() -> None:
    text = "numpy==2 \\\n    --hash=sha256:a\nnvidia-nccl==1 \\\n    --hash=sha256:b\nzict==3\n"
    assert without_torch_builds(text) == "numpy==2 \\\n    --hash=sha256:a\nzict==3\n"


@pytest.mark.parametrize(("package", "floor"), FLOORS.items())
def test_no_version_with_a_published_hole_is_allowed(package: str, floor: str) -> None:
    need = asked("dev")[package]
    lowest = min(Version(one.version.removesuffix(".*")) for one in need.specifier)
    assert {one.operator for one in need.specifier} <= {">=", "=="}
    assert lowest >= Version(floor), f"{need} allows less than {floor}"


@pytest.mark.parametrize("line", pyproject()["tool"]["uv"]["constraint-dependencies"])
def test_packages_nobody_asked_for_are_above_their_holes_too(line: str) -> None:
    constraint = Requirement(line)
    pin = locked("dev").get(canonicalize_name(constraint.name))
    assert pin is not None, f"{constraint.name} is in no lock any more: drop the line"
    assert version_of(pin) in constraint.specifier


@pytest.mark.parametrize("package", sorted(asked("dev")))
def test_what_is_installed_is_what_pyproject_asks_for(package: str) -> None:
    installed = Version(metadata.version(package))
    assert Version(installed.public) in asked("dev")[package].specifier


def test_the_installed_lightning_is_not_the_one_tampered_with() -> None:
    # GHSA-w37p-236h-pfx3: a _runtime folder with a script in it
    files = [str(path) for path in metadata.files("pytorch-lightning") or []]
    assert files
    assert not [path for path in files if "_runtime/" in path or path.endswith(".js")]


def test_torch_is_pinned_in_one_place() -> None:
    tracked = ["Makefile", "Dockerfile", "environment.yml", ".ci/run", *_scripts()]
    pin = re.compile(r"torch *== *\d")
    assert asked_torch() == "2.13"
    assert not [name for name in tracked if pin.search((ROOT / name).read_text(encoding="utf-8"))]
    for name in ("Makefile", "Dockerfile"):
        assert r'"\(torch==[^"]*\)"' in (ROOT / name).read_text(encoding="utf-8"), name


def _scripts() -> list[str]:
    return [str(path.relative_to(ROOT)) for path in (ROOT / "tools").glob("*.py")]


def test_the_expression_that_reads_the_pin_finds_it_alone() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    found = re.search(r"sed -n '([^']*torch[^']*)' pyproject.toml", makefile)
    assert found is not None
    done = subprocess.run(
        ["sed", "-n", found[1], "pyproject.toml"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == [f"torch=={asked_torch()}.*"]


def test_environment_yml_gives_an_allowed_python_and_the_project_itself() -> None:
    parts = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    (python,) = (p for p in parts if isinstance(p, str) and p.startswith("python="))
    assert python.removeprefix("python=") in SpecifierSet(pyproject()["project"]["requires-python"])
    (pip,) = (part["pip"] for part in parts if isinstance(part, dict))
    assert pip == ["-e .[lab]"]


def test_environment_yml_and_dockerfile_name_locks_that_exist() -> None:
    for name in ("environment.yml", "Dockerfile"):
        text = (ROOT / name).read_text(encoding="utf-8")
        named = set(re.findall(r"locks/([\w.-]+\.txt)", text))
        assert named, name
        assert not [lock for lock in named if not (ROOT / "locks" / lock).is_file()], name


def test_the_package_imports_only_what_it_declares() -> None:
    assert not undeclared("medkit", set(asked("lab", "codecs", "deidentify")), {"medkit"})


def test_only_widgets_may_need_the_lab_extra() -> None:
    paths = [p for p in (ROOT / "medkit").rglob("*.py") if p.parent.name != "widgets"]
    lab_only = {"ipyevents", "ipywidgets", "jupyterlab", "jupyter_server"}
    assert not lab_only & set(top_imports(paths))


def test_only_the_decoding_process_may_need_the_codecs() -> None:
    paths = [p for p in (ROOT / "medkit").rglob("*.py") if p.name != "decoding_process.py"]
    paths.remove(ROOT / "medkit" / "synth" / "broken_syntaxes.py")  # cases that say so
    assert "imagecodecs" not in top_imports(paths)


@pytest.mark.parametrize("folder", ["tests", "benchmarks", "tools"])
def test_what_is_beside_the_package_imports_only_what_dev_declares(folder: str) -> None:
    own = {path.stem for path in (ROOT / folder).rglob("*.py")}
    own |= {"medkit", "tests", "tools", "benchmarks"}
    own |= {path.name for path in (ROOT / "tests").rglob("*") if path.is_dir()}
    assert not undeclared(folder, set(asked("dev", "peers")), own)


def test_ci_runs_what_a_person_types() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert lines[-1] == "make test"
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


@pytest.mark.parametrize("target", ["help", "run", "test", "test-all", "lab", "lint", "bench"])
def test_make_says_what_a_target_does(target: str) -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.search(rf"^{target}  +\S", done.stdout, re.M)


def test_the_readme_names_only_targets_that_exist() -> None:
    readme = ROOT / "README.md"
    named = set(re.findall(r"(?:`|^ *|^\$ )make ([a-z-]+)", readme.read_text("utf-8"), re.M))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert {"run", "test"} <= named
    assert not [name for name in named if not re.search(rf"^{name}:", makefile, re.M)]


def test_make_refuses_a_python_that_is_too_old_and_says_what_to_do(tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = subprocess.run(
        ["make", "-f", str(ROOT / "Makefile"), ".venv/.python", f"PYTHON={old}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert f"medkit needs Python 3.11 or 3.12; tried: {old}." in done.stderr
    assert "make PYTHON=/path/to/python3.11" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_commit_hooks_use_the_tools_of_the_venv_and_fetch_nothing() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    (repo,) = hooks["repos"]
    assert repo["repo"] == "local"
    for hook in repo["hooks"]:
        assert hook["language"] == "system", hook["id"]
        assert hook["entry"].startswith(".venv/bin/"), hook["id"]
