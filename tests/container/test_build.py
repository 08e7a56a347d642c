"""Both targets, built for real by buildah with a small Debian in place of the CUDA base.

Needs root, buildah, debootstrap and the network (or mirrors that pip and apt know of); takes
minutes. pip finds its packages in the build as it does on this machine: its configuration goes in
as the secret the Dockerfile names, and folders that it points to are mounted.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tools.check_torch import asked_torch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent.parent
BASE = "localhost/medkit-test-base"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
ENTER = ["/usr/bin/tini", "-s", "-g", "--", "/usr/local/bin/medkit-entrypoint"]


@dataclass(frozen=True)
class Store:
    """One place for images and containers, apart from those of the machine."""

    folder: Path
    driver: str

    def command(self, *arguments: str) -> list[str]:
        places = ["--root", f"{self.folder}/root", "--runroot", f"{self.folder}/run"]
        return ["buildah", *places, "--storage-driver", self.driver, *arguments]

    def __call__(self, *arguments: str, timeout: float = 600) -> str:
        """Run buildah and return what it says; fail with its last lines."""
        done = subprocess.run(
            self.command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=timeout
        )
        said = (done.stdout + done.stderr)[-3000:]
        assert done.returncode == 0, f"buildah {' '.join(arguments)}:\n{said}"
        return done.stdout.strip()

    def enter(
        self, container: str, *arguments: str, user: str = "1000:0", env: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Run the image's entrypoint, as ``docker run`` would."""
        variables = [word for variable in env for word in ("--env", variable)]
        options = ["--isolation", "chroot", "--user", user, *variables]
        return subprocess.run(
            self.command("run", *options, container, "--", *ENTER, *arguments),
            capture_output=True,
            text=True,
            timeout=300,
        )


def pip_settings() -> dict[str, str]:
    """Return pip's configuration on this machine, the environment's last word included."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    pairs = [line.partition("=")[::2] for line in lines if "=" in line]
    pairs.sort(key=lambda pair: pair[0].startswith(":env:"))
    return {key.rpartition(".")[2]: ast.literal_eval(value) for key, value in pairs}


def mounts(settings: dict[str, str]) -> list[str]:
    """Return the folders of this machine that pip's configuration points to, as mounts."""
    folders = set()
    for key, value in settings.items():
        for word in value.split():
            path = Path(urlsplit(word).path if word.startswith("file:") else word)
            if not path.is_absolute() or not path.exists():
                continue
            if key.endswith("index-url") or path.is_file():
                path = path.parent  # an index links to its files beside it
            if len(path.parts) > 2:
                folders.add(path)
    return [word for folder in sorted(folders) for word in ("--volume", f"{folder}:{folder}:ro")]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    missing = [name for name in ("buildah", "debootstrap") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}: apt-get install buildah debootstrap")
    if os.geteuid() != 0:
        pytest.skip("needs root: debootstrap makes device nodes and users")
    folder = tmp_path_factory.mktemp("images")
    if shutil.disk_usage(folder).free < 12 * 2**30:
        pytest.skip(f"needs 12 GiB free in {folder}")
    store = Store(folder, driver="overlay")
    try:
        store("mount", store("from", "scratch"))
    except AssertionError:  # no overlay file system on this one: whole copies of every layer
        store = Store(folder, driver="vfs")
    yield store
    store("rm", "--all")
    subprocess.run(["umount", f"{folder}/root/{store.driver}"], check=False, capture_output=True)
    shutil.rmtree(folder, ignore_errors=True)  # gigabytes, and pytest keeps its last three


@pytest.fixture(scope="module")
def base(store: Store) -> str:
    """A Debian with what the Dockerfile installs, so that little is left for apt to fetch."""
    tree = store.folder / "debian"
    packages = "--include=ca-certificates,python3,python3-venv,tini"
    done = subprocess.run(
        ["debootstrap", "--variant=minbase", packages, "bookworm", str(tree)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    if done.returncode:
        pytest.skip(f"debootstrap could not make a base: {(done.stdout + done.stderr)[-300:]}")
    container = store("from", "scratch")
    store("add", "--quiet", container, str(tree), "/")
    store("commit", "--quiet", "--rm", "--format", "docker", container, BASE)
    shutil.rmtree(tree)
    return BASE


@pytest.fixture(scope="module")
def build(store: Store, base: str) -> list[str]:
    """The words every build begins with."""
    settings = pip_settings()
    secret = store.folder / "pip.conf"
    body = "".join(f"{key} = {value}\n" for key, value in settings.items())
    secret.write_text(f"[global]\n{body}", encoding="utf-8")
    return [
        *("bud", "--isolation", "chroot", "--format", "docker"),
        *("--build-arg", f"BASE={base}", "--build-arg", f"GIT_SHA={COMMIT}"),
        *("--secret", f"id=pip,src={secret}", *mounts(settings)),
    ]


@pytest.fixture(scope="module")
def train(store: Store, build: list[str]) -> str:
    store(*build, "--target", "train", "--tag", "medkit-train", ".", timeout=1500)
    return store("from", "localhost/medkit-train")


@pytest.fixture(scope="module")
def lab(store: Store, build: list[str], train: str) -> str:
    # The stage it stands on is the image just built, not built anew.
    stage = ["--build-context", "train=container-image://localhost/medkit-train"]
    store(*build, *stage, "--target", "lab", "--tag", "medkit-lab", ".", timeout=1500)
    return store("from", "localhost/medkit-lab")


def settings_of(store: Store, container: str) -> dict:
    return json.loads(store("inspect", container))["Docker"]["config"]


def test_train_keeps_user_entrypoint_and_commit(store: Store, train: str) -> None:
    settings = settings_of(store, train)
    assert settings["User"] == "1000:0"
    assert settings["Entrypoint"][-1] == "/usr/local/bin/medkit-entrypoint"
    assert settings["Cmd"] == ["--help"]
    assert settings["Labels"]["org.opencontainers.image.revision"] == COMMIT
    assert "Healthcheck" not in settings


def test_lab_keeps_its_health_check_and_the_user(store: Store, lab: str) -> None:
    settings = settings_of(store, lab)
    assert settings["User"] == "1000:0"
    assert settings["Cmd"] == ["lab"]
    assert settings["Healthcheck"]["Test"][:2] == ["CMD", "python"]


def test_the_image_has_the_pinned_torch_and_only_lab_has_jupyterlab(
    store: Store, train: str, lab: str
) -> None:
    ask = "from importlib.metadata import distributions as d; print(*{p.name.lower() for p in d()})"
    found = {c: set(store.enter(c, "python", "-c", ask).stdout.split()) for c in (train, lab)}
    assert {"torch", "medkit", "papermill"} <= found[train]
    assert "jupyterlab" in found[lab] - found[train]
    torch = store.enter(train, "python", "-c", "import torch; print(torch.__version__)").stdout
    assert torch.startswith(f"{asked_torch()}.")


def test_no_key_and_no_address_of_the_builder_stays_in_the_image(store: Store, train: str) -> None:
    tree = Path(store("mount", train))
    assert (tree / "opt" / "venv" / "bin" / "medkit").exists()  # this is the image
    assert not (tree / "run" / "secrets" / "pip.conf").exists()
    assert not list((tree / "etc").glob("pip.conf"))
    assert not (tree / "root" / ".cache" / "pip").exists()
    store("umount", train)


@pytest.mark.parametrize("user", ["1000:0", "54321:0"])
def test_any_user_of_group_0_may_run_the_command_line(store: Store, train: str, user: str) -> None:
    done = store.enter(train, "--help", user=user)
    assert done.returncode == 0, done.stderr
    assert "run" in done.stdout


def test_a_notebook_runs_as_a_job_and_says_which_commit_it_was(store: Store, train: str) -> None:
    job = ["medkit", "run", "notebooks/01_first_training.ipynb", "-p", "quick", "True"]
    done = store.enter(train, *job, "--out", "runs/job")
    assert done.returncode == 0, done.stdout + done.stderr
    show = "import json; print(*map(json.load(open('runs/job/run.json')).get, ['status', 'git']))"
    assert store.enter(train, "python", "-c", show).stdout.split() == ["done", COMMIT]


def test_a_job_that_cannot_start_ends_with_its_code(store: Store, train: str) -> None:
    done = store.enter(train, "run", "notebooks/01_first_training.ipynb", "-p", "sed", "1")
    assert "Did you mean 'seed'?" in done.stdout + done.stderr
    assert done.returncode == 2, done.stderr


def test_lab_without_a_token_is_refused(store: Store, lab: str) -> None:
    done = store.enter(lab, "lab", env=("JUPYTER_TOKEN=",))
    assert "JUPYTER_TOKEN must not be empty" in done.stderr
    assert done.returncode == 2, done.stderr


def ask(url: str, token: str = "", data: bytes | None = None) -> str:
    """Return what the server says; "" where it does not answer."""
    request = urllib.request.Request(url, data=data, headers={"Authorization": f"token {token}"})
    try:
        with urllib.request.urlopen(request, timeout=4) as page:
            return page.read().decode()
    except OSError:
        return ""


def test_lab_answers_its_health_check_and_obeys_the_random_token(store: Store, lab: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        home = f"http://127.0.0.1:{probe.getsockname()[1]}"
    # buildah hands no signal on to what it runs: a server nobody stops would stay
    words = ["run", "--isolation", "chroot", lab, "--", "timeout", "120", *ENTER, "lab"]
    command = store.command(*words, f"--ServerApp.port={home.rpartition(':')[2]}")
    log = store.folder / "lab.log"
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out) as server:
        until = time.monotonic() + 90
        while not ask(f"{home}/api") and server.poll() is None and time.monotonic() < until:
            time.sleep(0.3)
        assert "version" in ask(f"{home}/api"), log.read_text()
        token = re.search(rf"{home}/lab\?token=([0-9a-f]{{48}})", log.read_text())
        assert token is not None, log.read_text()
        assert ask(f"{home}/api/contents") == ""
        assert "notebooks" in ask(f"{home}/api/contents", token[1])
        ask(f"{home}/api/shutdown", token[1], data=b"")
        assert server.wait(timeout=60) == 0, log.read_text()
