"""``medkit certify``: a notebook as a job in fresh processes, and a file that says what came of it.

Step digests are written only here, or by ``MEDKIT_HASH_STEPS=1 medkit run ...``: a run that has
them is compared step by step when it is certified later.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from medkit.jobs.ending import exit_code, last_words
from medkit.jobs.notebook import UsageError, read_notebook
from medkit.jobs.parameters import read_parameters
from medkit.jobs.plan import Request, effective, make_plan
from medkit.record.files import read_json, sha256_text, write_json
from medkit.record.folder import RunFolder, now
from medkit.record.identity import code_digest, compare, environment
from medkit.study.certificate import Certificate, Job, JobFailedError, certify
from medkit.study.certificate_steps import FIELDS, START, Recorded

NAME = "certificate.json"


def certify_command(
    path: str | None, request: Request, *, repeats: int, verify: str | None = None
) -> int:
    """Certify a notebook or a finished run, or check a certificate; say what came of it.

    Args:
        path: A notebook, or a run folder.
        request: The job, its notebook aside; ``out`` is where the certificate goes.
        repeats: Fresh processes.
        verify: A certificate to be checked instead.

    Returns:
        0: equal; 1: not; 2: the job failed, so that there is nothing to compare.

    Raises:
        UsageError: For what can't be certified.
        ValueError: For what can't be read.
    """
    if verify is not None:
        return _verify(Path(verify))
    if not path:
        raise UsageError("certify takes a notebook or a run folder, or --verify and a certificate.")
    finished = Path(path).absolute() if Path(path).is_dir() else None
    with tempfile.TemporaryDirectory(prefix="medkit-certify-") as private:
        if finished is not None:
            request = _as_it_was(finished, request, Path(private))
        else:
            request = replace(request, notebook=path)
        out = Path(request.out) if request.out else _default(request, finished)
        job = notebook_job(request)
        try:
            found = certify(job, repeats=repeats, finished=finished, said=_progress)
        except JobFailedError as error:
            message, code = str(error), error.code
            sys.stderr.write(f"medkit certify: {message}\n")
            return code
    content = contents(found)
    write_json(out, content)
    sys.stdout.write(f"{content['words']}\ncertificate  {out}\n")
    if finished is not None:
        from medkit.jobs.report import write_report

        folder = RunFolder(finished)
        folder.update(certificate=content["words"])
        if (finished / "report.html").exists():
            write_report(folder)
    return int(not found.verdict.equal)


def notebook_job(request: Request) -> Job:
    """Return what runs a notebook once, as ``medkit run`` does."""

    def job(folder: Path, more: Mapping[str, str]) -> None:
        from medkit.jobs.launcher import launch

        asked = replace(request, out=str(folder))
        plan = make_plan(asked)
        ending, run = launch(replace(plan, environment=plan.environment | dict(more)), asked)
        code = exit_code(ending, run)
        if code:
            last = "".join(f"\n  | {line}" for line in last_words(run)[-8:])
            message = f"the job must end well to be compared; it {ending.status}: {ending.error}"
            raise JobFailedError(f"{message}{last}", code if code > 2 else 2)

    return job


def contents(found: Certificate) -> dict[str, Any]:
    """Return what a certificate's file holds."""
    facts = found.runs[-1].facts
    names = ("notebook_sha256", "parameters", "seed", "split_seed", "git", "code_sha256")
    content: dict[str, Any] = {
        "made": now(),
        "notebook": Path(str(facts.get("notebook", ""))).name,
        **{name: facts[name] for name in names if name in facts},
        "environment": facts.get("environment", {}),
        "hardware_class": facts.get("hardware_class", {}),
        "hash_seeds": found.hash_seeds,
        "compared": [START, *FIELDS, *sorted(found.runs[-1].results)],
        "processes": [_summary(run) for run in found.runs],
        "equal": found.verdict.equal,
        "verdict": asdict(found.verdict),
        "notes": found.notes,
        "words": words(found),
    }
    return content | {"sha256": _digest(content)}


def words(found: Certificate) -> str:
    """Say what was compared, what came of it, and for what it holds."""
    run = found.runs[-1]
    facts, hardware = run.facts, run.facts.get("hardware_class", {})
    versions = facts.get("environment", {})
    lines = [
        f"{found.verdict}",
        f"{len(found.runs)} processes, hash seeds {' '.join(found.hash_seeds)}; {run.steps} steps "
        f"in {len(run.stages)} stages: {START}, {', '.join(FIELDS)}; at the end "
        f"{', '.join(run.results) or 'nothing'}",
        *found.notes,
        f"holds for {hardware.get('accelerator') or hardware.get('cpu', '?')}, "
        f"{hardware.get('threads', '?')} threads, torch {versions.get('torch', '?')}, Lightning "
        f"{versions.get('pytorch-lightning', '?')}, Python {versions.get('python', '?')}; not "
        "shown for others",
    ]
    return "\n".join(lines)


def _summary(run: Recorded) -> dict[str, Any]:
    kept = ("place", *FIELDS)
    stages = {}
    for name, lines in run.stages.items():
        text = "".join(
            json.dumps([line.get(key, "") for key in kept]) + "\n" for line in lines.values()
        )
        start = json.dumps(lines.get("start", {}).get("weights", {}))
        stages[name] = {
            "steps": sum(place != "start" for place in lines),
            "steps_sha256": sha256_text(text),
            "initial_weights_sha256": sha256_text(start),
        }
    weights = run.facts.get("weights_sha256")
    return {"weights_sha256": weights, "stages": stages, "results": dict(run.results)}


def _digest(content: Mapping[str, Any]) -> str:
    return sha256_text(json.dumps(content, sort_keys=True))


def _verify(path: Path) -> int:
    """Say whether a certificate is as it was written, and whether it speaks of this machine."""
    content = dict(read_json(path))
    said = content.pop("sha256", "")
    if "words" not in content or said != _digest(content):
        sys.stdout.write(f"{path} is damaged or was changed after it was written\n")
        return 1
    from medkit.surroundings import hardware_class

    here = {"environment": environment(), "code_sha256": code_digest()}
    here["hardware_class"] = hardware_class()
    # a job sets its threads itself
    was = {name: _without_threads(content.get(name)) for name in here}
    lines = compare(was, {name: _without_threads(value) for name, value in here.items()})
    sys.stdout.write(f"{content['words']}\n{path} is as it was written on {content['made']}\n")
    for line in lines:
        sys.stdout.write(f"it does not speak of this machine and these versions: {line}\n")
    return int(bool(lines) or not content["equal"])


def _without_threads(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {name: part for name, part in value.items() if "threads" not in name}


def _as_it_was(finished: Path, request: Request, private: Path) -> Request:
    """Return the request for a run's notebook with the run's parameters."""
    folder = RunFolder(finished)
    if not folder.exists():
        raise UsageError(f"{finished} must be a notebook or a run folder; it holds no run.json.")
    facts = folder.read()
    name = str(facts.get("notebook") or "")
    if facts.get("status") != "done" or not name.endswith(".ipynb"):
        raise UsageError(
            "a run can be certified when it is done and was a notebook's; this one of "
            f"{name or 'nobody knows what'} is {facts.get('status')!r}. Certify its notebook."
        )
    if request.given or request.values_file:
        raise UsageError("a finished run is certified with its own parameters; leave -p and -f out")
    notebook = read_notebook(name)
    if notebook.digest != facts.get("notebook_sha256"):
        raise UsageError(
            f"a run is certified by its own notebook, and the code of {name} has changed since. "
            "Certify the notebook as it is now."
        )
    known = effective(read_parameters(notebook), {})
    was = facts.get("parameters") or {}
    given = {key: value for key, value in was.items() if key in known and value != known[key]}
    settings = private / "parameters.yaml"
    settings.write_text(yaml.safe_dump(given), encoding="utf-8")
    return replace(request, notebook=name, values_file=str(settings))


def _default(request: Request, finished: Path | None) -> Path:
    if finished is not None:
        return finished / NAME
    return request.cwd / f"{Path(request.notebook).stem}.{NAME}"


def _progress(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
