"""Parameters are read without running anything, and refused before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medkit.jobs.notebook import UsageError, read_notebook
from medkit.jobs.parameters import check_values, read_parameters, read_values_file
from medkit.jobs.values import BadValueError, convert


def checked(path: Path, *given: tuple[str, Any], base: Path | None = None) -> dict[str, Any]:
    notebook = read_notebook(path)
    return check_values(notebook, read_parameters(notebook), given, base=base)


@pytest.mark.parametrize(
    ("text", "annotation", "value"),
    [
        ("3", "int", 3),
        ("-1_000", "int", -1000),
        ("1e-3", "float", 0.001),
        ("2", "float", 2.0),
        ("inf", "float", float("inf")),
        ("true", "bool", True),
        ("No", "bool", False),
        ("yes", "str", "yes"),
        ("a, b", "list[str]", ["a", "b"]),
        ("1,2", "list[int]", [1, 2]),
        ("[0.5, 1]", "list[float]", [0.5, 1.0]),
        ("", "list[int]", []),
        ("1,2", "tuple[int, ...]", [1, 2]),
        ("none", "int | None", None),
        ("7", "int | None", 7),
        ("7", "Optional[float]", 7.0),
        ("7", "str | int", 7),
        ("{'a': 1}", "dict[str, int]", {"a": 1}),
        ("mean", "Literal['mean', 'max']", "mean"),
        ("2", "typing.Literal[1, 2]", 2),
        ("3", "'int'", 3),
        ("anything", "Path", "anything"),
    ],
)
def test_text_becomes_the_annotated_type(text: str, annotation: str, value: Any) -> None:
    got = convert(text, annotation)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        ("1.5", "int"),
        ("1e3", "int"),
        (True, "int"),
        (2.0, "int"),
        ("fast", "float"),
        ("2", "bool"),
        (3, "str"),
        ("x", "int | None"),
        ("a,2", "list[int]"),
        ("[1,", "list[int]"),
        ("[1]", "dict"),
        ("median", "Literal['mean', 'max']"),
        ("__import__('os').getcwd()", "list[int]"),
        ("nul\x00", "str"),
    ],
)
def test_a_value_of_another_type_is_refused(value: Any, annotation: str) -> None:
    with pytest.raises(BadValueError, match="got"):
        convert(value, annotation)


def test_type_default_and_help_are_read_from_the_cell(make) -> None:
    knobs = "n: int = 5  # runs\nlr = 1e-3\nout: str | None = None\nwidth: int = 2 * 8  # units\n"
    found = read_parameters(read_notebook(make(knobs=knobs)))
    assert [(p.name, p.annotation, p.default, p.help) for p in found.values()] == [
        ("n", "int", 5, "runs"),
        ("lr", "float", 0.001, ""),
        ("out", "str | None", None, ""),
        ("width", "int", None, "units"),
    ]
    assert found["width"].source == "2 * 8"
    assert not found["width"].literal


def test_reading_the_parameters_runs_nothing(make, tmp_path: Path) -> None:
    make(knobs=f"seed: int = open({str(tmp_path / 'ran')!r}, 'w').write('x')")
    read_parameters(read_notebook(tmp_path / "job.ipynb"))
    assert not (tmp_path / "ran").exists()


def test_a_misspelt_name_is_refused_with_the_right_one(make) -> None:
    with pytest.raises(
        UsageError, match=r"job.ipynb has no parameter 'sed'. Did you mean 'seed'\?"
    ):
        checked(make(), ("sed", "1"))


def test_an_unknown_name_is_refused_with_all_there_are(make) -> None:
    with pytest.raises(UsageError, match=r"has no parameter 'zzz'. It has: seed, lr, csv_path"):
        checked(make(), ("zzz", "1"))


def test_a_wrong_type_is_refused_with_what_the_knob_is(make) -> None:
    with pytest.raises(
        UsageError, match=r"'lr' must be float, got 'fast'. lr: AdamW learning rate. .* is 0.001"
    ):
        checked(make(), ("lr", "fast"))


@pytest.mark.parametrize("name", ["seed=1\nimport os\nx", "seed\x00", "../seed", "", "se ed"])
def test_a_name_that_is_no_name_never_becomes_code(make, name: str) -> None:
    with pytest.raises(UsageError, match="has no parameter"):
        checked(make(), (name, "1"))


def test_no_parameters_cell_is_refused(make) -> None:
    with pytest.raises(UsageError, match="must have one code cell tagged 'parameters', found 0"):
        read_parameters(read_notebook(make("1", knobs=None)))


def test_a_magic_in_the_parameters_cell_is_refused(make) -> None:
    with pytest.raises(UsageError, match="must be plain Python assignments"):
        read_parameters(read_notebook(make(knobs="%matplotlib inline\nseed: int = 0")))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "JSON"),
        ("[]", "no list of cells"),
        ('{"worksheets": [], "nbformat": 3}', "no list of cells"),
        (
            '{"cells": [], "metadata": {"kernelspec": {"name": "ir", "language": "R"}}}',
            "must be a Python notebook, its kernel is for 'R'",
        ),
    ],
)
def test_a_file_that_is_no_python_notebook_is_refused(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "strange.ipynb"
    path.write_text(content)
    with pytest.raises(UsageError, match=message):
        read_notebook(path)


def test_a_missing_notebook_is_refused_with_those_that_are_there(make, tmp_path: Path) -> None:
    make()
    with pytest.raises(UsageError, match=r"no notebook at .*jab.ipynb.* holds job.ipynb"):
        read_notebook(tmp_path / "jab.ipynb")


def test_a_relative_path_starts_at_the_caller_and_a_url_stays(make, tmp_path: Path) -> None:
    path = make()
    assert checked(path, ("csv_path", "x.csv"), base=tmp_path)["csv_path"] == str(
        tmp_path / "x.csv"
    )
    assert checked(path, ("csv_path", "/a/x.csv"), base=tmp_path)["csv_path"] == "/a/x.csv"
    assert checked(path, ("csv_path", "s3://b/x"), base=tmp_path)["csv_path"] == "s3://b/x"
    assert checked(path, ("csv_path", ""), base=tmp_path)["csv_path"] == ""


def test_a_yaml_file_gives_typed_values_even_where_yaml_sees_text(make, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("lr: 1e-2\nseed: 3\nquick: true\n")
    given = read_values_file(tmp_path / "p.yaml")
    assert checked(make(), *given) == {"lr": 0.01, "seed": 3, "quick": True}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- seed\n", "must map parameter names"),
        ("seed: 1\nseed: 2\n", "gives 'seed' more than once"),
        ("seed: !!python/object/apply:os.getcwd []\n", "must be a YAML file that can be read"),
        ("seed: [1\n", "must be a YAML file that can be read"),
    ],
)
def test_a_yaml_file_that_is_no_plain_mapping_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_values_file(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hub_token", "abc"),
        ("db_password", "abc"),
        ("note", "ghp_" + "a1B2" * 9),
        ("note", "AKIA" + "ABCDEFGH12345678"),
        ("note", "Authorization: Bearer " + "0123456789abcdef" * 2),
        ("url", "postgres://me:hunter22@host/db"),
        ("note", "-----BEGIN RSA PRIVATE KEY-----"),
    ],
)
def test_what_looks_like_a_secret_is_refused_without_repeating_it(
    make, name: str, value: str
) -> None:
    path = make(knobs=f'{name}: str = ""')
    with pytest.raises(UsageError, match=r"looks like a secret .* environment variable") as caught:
        checked(path, (name, value))
    assert value not in str(caught.value)


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("max_token: int = 1", "128"),
        ("tokenizer: str = ''", "bert-base"),
        ("key_column: str = ''", "patient_id"),
        ("url: str = ''", "https://host:8080/data"),
    ],
)
def test_an_innocent_name_is_no_secret(make, knob: str, value: str) -> None:
    name = knob.partition(":")[0]
    assert str(checked(make(knobs=knob), (name, value))[name]) == value
