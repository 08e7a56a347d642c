"""Dockerfile and entrypoint, checked without a container engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

from tools.pin_image import DIGEST, base_of, with_digest

ROOT = Path(__file__).resolve().parent.parent
ENTRYPOINT = ROOT / "container" / "entrypoint.sh"
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")

Instruction = tuple[str, str]


def stages() -> dict[str, list[Instruction]]:
    """Return the instructions of each target, with continued lines joined and comments out."""
    lines = [line for line in DOCKERFILE.splitlines() if not line.lstrip().startswith("#")]
    found: dict[str, list[Instruction]] = {"": []}
    here = ""
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            here = rest.split()[-1]
            found[here] = []
        if word:
            found[here].append((word, rest.strip()))
    return found


def last(target: str, word: str) -> str:
    """Return what the last ``word`` of a target says."""
    return [rest for name, rest in stages()[target] if name == word][-1]


def test_the_targets_are_train_and_lab() -> None:
    assert list(stages()) == ["", "train", "lab"]
    assert last("train", "FROM") == "${BASE} AS train"
    assert last("lab", "FROM") == "train AS lab"


def test_the_base_is_pinned_in_one_argument() -> None:
    image, digest = base_of(DOCKERFILE)
    tag = image.partition(":")[2]
    assert image.startswith("nvidia/cuda:")
    assert re.fullmatch(r"1[23]\.\d+\.\d+-(base|runtime)-ubuntu\d\d\.04", tag)
    assert digest is None or DIGEST.fullmatch(digest)
    assert not [
        line for line in DOCKERFILE.splitlines() if line.startswith(("FROM nvidia", "FROM n"))
    ]


def test_a_digest_is_written_after_the_tag_and_replaces_an_older_one() -> None:
    first, second = "sha256:" + "a" * 64, "sha256:" + "b" * 64
    pinned = with_digest("# base\nARG BASE=nvidia/cuda:13.0.2-base-ubuntu24.04\nFROM x\n", first)
    assert pinned == f"# base\nARG BASE=nvidia/cuda:13.0.2-base-ubuntu24.04@{first}\nFROM x\n"
    assert base_of(with_digest(pinned, second)) == ("nvidia/cuda:13.0.2-base-ubuntu24.04", second)


def test_what_is_no_digest_is_not_written() -> None:
    with pytest.raises(ValueError, match="a digest is 'sha256:' and 64 hex digits, found 'latest'"):
        with_digest(DOCKERFILE, "latest")


def test_pin_image_says_why_where_no_registry_can_be_asked(tmp_path: Path) -> None:
    before = (ROOT / "Dockerfile").read_bytes()
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "pin_image.py")],
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "skopeo: not installed" in done.stderr
    assert "Run this where an image registry can be reached" in done.stderr
    assert (ROOT / "Dockerfile").read_bytes() == before


def test_every_source_of_a_copy_exists_and_is_let_in() -> None:
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignore
    let_in = [line.removeprefix("!").rstrip("/") for line in ignore if line.startswith("!")]
    copies = [rest for steps in stages().values() for word, rest in steps if word == "COPY"]
    sources = [s for rest in copies for s in rest.split()[:-1] if not s.startswith("--")]
    assert len(sources) >= 8
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(f"{source}/".startswith(f"{name.rstrip('/')}/") for name in let_in), source


@pytest.mark.parametrize("target", ["train", "lab"])
def test_an_image_ends_as_a_numeric_user_of_group_0(target: str) -> None:
    assert last(target, "USER") == "1000:0"


def test_torch_comes_before_the_lock_and_the_lock_before_the_package() -> None:
    runs = [rest for word, rest in stages()["train"] if word == "RUN"]
    order = ['"$torch"', "-r locks/train.txt", "--no-build-isolation ."]
    at = [next(i for i, rest in enumerate(runs) if rest.endswith(o) or o in rest) for o in order]
    assert at == sorted(at)
    assert len(set(at)) == 3


@pytest.mark.parametrize("target", ["train", "lab"])
def test_every_lock_is_installed_with_its_hashes_and_nothing_beside_it(target: str) -> None:
    runs = [rest for word, rest in stages()[target] if word == "RUN" and "-r locks/" in rest]
    assert [re.findall(r"locks/(\w+)\.txt", rest) for rest in runs] == [[target]]
    assert "--require-hashes" in runs[0]
    assert "--no-deps" in runs[0]


def test_what_must_stand_before_python_starts_is_in_the_environment() -> None:
    env = " ".join(rest for word, rest in stages()["train"] if word == "ENV")
    assert "PYTHONHASHSEED=0" in env
    assert "CUBLAS_WORKSPACE_CONFIG=:4096:8" in env
    assert "PYTHONDONTWRITEBYTECODE" not in DOCKERFILE


@pytest.mark.parametrize("target", ["train", "lab"])
def test_tini_is_first_and_hands_signals_to_the_whole_group(target: str) -> None:
    entry = json.loads(last("train", "ENTRYPOINT"))
    assert entry == ["/usr/bin/tini", "-g", "--", "/usr/local/bin/medkit-entrypoint"]
    assert "ENTRYPOINT" not in [word for word, _ in stages()["lab"]]
    assert json.loads(last(target, "CMD")) == {"train": ["--help"], "lab": ["lab"]}[target]


def test_only_lab_has_a_health_check() -> None:
    assert "HEALTHCHECK" not in [word for word, _ in stages()["train"]]
    assert "/api" in last("lab", "HEALTHCHECK")


def test_an_image_says_which_commit_it_is() -> None:
    assert 'org.opencontainers.image.revision="${GIT_SHA}"' in last("train", "LABEL")


def test_nothing_in_the_container_allows_root_or_an_empty_token() -> None:
    for text in (DOCKERFILE, ENTRYPOINT.read_text(encoding="utf-8")):
        assert "--allow-root" not in text
        assert not re.search(r"[Tt]oken=(''|\"\"|\s|$)", text, re.M)


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed; it comes with the extra 'dev'")
    done = subprocess.run(
        [hadolint, "--config", ".hadolint.yaml", "Dockerfile"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_each_rule_that_hadolint_leaves_out_has_its_reason() -> None:
    text = (ROOT / ".hadolint.yaml").read_text(encoding="utf-8")
    rules = yaml.safe_load(text)["ignored"]
    assert all(re.search(rf"# .+\n *- {rule}", text) for rule in rules)
    inline = re.findall(r"(.*)\n(?:(?!RUN).*\n)*?# hadolint ignore=", DOCKERFILE)
    assert all(inline)


# The entrypoint itself, outside a container.


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """Programs that say how they were called, in place of those of the image."""
    for name in ("medkit", "jupyter-lab", "jupyter", "python"):
        path = tmp_path / name
        path.write_text(f'#!/bin/sh\necho "{name}:$*"\n')
        path.chmod(0o755)
    return tmp_path


def enter(programs: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ENTRYPOINT), *arguments],
        env={"PATH": f"{programs}:/usr/bin:/bin", **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_entrypoint_can_be_executed() -> None:
    assert os.access(ENTRYPOINT, os.X_OK)


@pytest.mark.parametrize("words", [["medkit", "run"], ["run"]])
def test_a_job_may_be_named_with_or_without_medkit(programs: Path, words: list[str]) -> None:
    done = enter(programs, *words, "notebooks/a b.ipynb", "-p", "seed", "3")
    assert done.stdout == "medkit:run notebooks/a b.ipynb -p seed 3\n"


def test_no_arguments_at_all_are_not_an_error_of_the_shell(programs: Path) -> None:
    assert enter(programs).stdout == "medkit:\n"


def test_another_command_is_left_alone(programs: Path) -> None:
    assert enter(programs, "python", "-c", "1").stdout == "python:-c 1\n"


def test_the_exit_code_of_a_job_is_the_containers(programs: Path) -> None:
    (programs / "medkit").write_text("#!/bin/sh\nexit 143\n")
    assert enter(programs, "run", "x.ipynb").returncode == 143


@pytest.mark.parametrize("token", ["", "  ", "\n"])
def test_lab_refuses_an_empty_token(programs: Path, token: str) -> None:
    done = enter(programs, "lab", JUPYTER_TOKEN=token)
    assert (done.returncode, done.stdout) == (2, "")
    assert "JUPYTER_TOKEN must not be empty" in done.stderr


@pytest.mark.parametrize("content", ["", " \n"])
def test_lab_refuses_an_empty_token_file(programs: Path, content: str) -> None:
    secret = programs / "secret"
    secret.write_text(content)
    done = enter(programs, "lab", JUPYTER_TOKEN_FILE=str(secret))
    assert (done.returncode, done.stdout) == (2, "")
    assert f"and {secret} is" in done.stderr


def test_lab_refuses_a_token_file_that_is_not_there(programs: Path) -> None:
    done = enter(programs, "lab", JUPYTER_TOKEN_FILE="/run/secrets/none")
    assert (done.returncode, done.stdout) == (2, "")
    assert "must name a readable file, found '/run/secrets/none'" in done.stderr


@pytest.mark.parametrize(
    "words", [["lab", "--IdentityProvider.token="], ["jupyter", "lab", "--ServerApp.token=''"]]
)
def test_a_token_on_the_command_line_is_refused_and_not_repeated(
    programs: Path, words: list[str]
) -> None:
    done = enter(programs, *words[:-1], f"{words[-1]}abc123")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Set JUPYTER_TOKEN_FILE or JUPYTER_TOKEN" in done.stderr
    assert "abc123" not in done.stderr


def test_lab_starts_with_the_token_it_is_given(programs: Path) -> None:
    done = enter(programs, "lab", "--ServerApp.root_dir=/tmp", JUPYTER_TOKEN="k3y")
    assert (done.returncode, done.stdout) == (0, "jupyter-lab:--ServerApp.root_dir=/tmp\n")


def test_lab_listens_where_the_port_and_the_health_check_are() -> None:
    server = json.loads((ROOT / "container" / "jupyter_server_config.json").read_text())[
        "ServerApp"
    ]
    assert server["ip"] == "0.0.0.0"
    assert server["port_retries"] == 0  # another port would be one that nobody can reach
    assert str(server["port"]) == last("lab", "EXPOSE")
    assert f"127.0.0.1:{server['port']}/api" in last("lab", "HEALTHCHECK")
    assert not {"token", "password", "allow_root"} & set(server)


def test_lab_is_refused_where_it_is_not_installed(programs: Path) -> None:
    (programs / "jupyter-lab").unlink()
    done = enter(programs, "lab")
    assert done.returncode == 2
    assert "Use the target 'lab'" in done.stderr


@pytest.mark.parametrize(("kib", "warned"), [(65536, True), (1048575, True), (1048576, False)])
def test_a_small_shared_memory_is_warned_of(programs: Path, kib: int, warned: bool) -> None:
    (programs / "df").write_text(f"#!/bin/sh\necho head\necho shm {kib} 0 {kib} 0% /dev/shm\n")
    (programs / "df").chmod(0o755)
    done = enter(programs, "run", "x.ipynb")
    assert ("--shm-size=2g" in done.stderr) == warned
    assert done.stdout == "medkit:run x.ipynb\n"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def status_of(url: str, token: str = "") -> int:
    request = urllib.request.Request(url)
    if token:
        request.add_header("Authorization", f"token {token}")
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def test_a_real_lab_answers_the_health_check_and_wants_its_token_for_the_rest(
    tmp_path: Path,
) -> None:
    pytest.importorskip("jupyterlab", reason="JupyterLab comes with the extra 'lab'")
    port = free_port()
    root = ["--allow-root"] if os.geteuid() == 0 else []  # Jupyter refuses root; the image has none
    command = ["lab", f"--ServerApp.port={port}", "--ServerApp.ip=127.0.0.1", *root]
    env = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "JUPYTER_CONFIG_PATH": str(ROOT / "container"),
        "JUPYTER_TOKEN": "only-for-this-test",
    }
    log = tmp_path / "log"
    with (
        log.open("w") as out,
        subprocess.Popen(
            [str(ENTRYPOINT), *command], env=env, cwd=tmp_path, stdout=out, stderr=out
        ) as server,
    ):
        try:
            home = f"http://127.0.0.1:{port}"
            waited_until = time.monotonic() + 60
            while status_of(f"{home}/api") != 200 and time.monotonic() < waited_until:
                assert server.poll() is None, log.read_text()
                time.sleep(0.2)
            assert status_of(f"{home}/api") == 200, log.read_text()
            assert status_of(f"{home}/api/contents") == 403
            assert status_of(f"{home}/api/contents", "wrong") == 403
            assert status_of(f"{home}/api/contents", "only-for-this-test") == 200
            assert "Extension Manager is 'readonly'" in log.read_text()
        finally:
            server.terminate()
