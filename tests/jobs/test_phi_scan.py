"""``medkit doctor --phi``: identifiers are found wherever they hide, and in no run of the kit."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import lzma
import os
import sqlite3
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from medkit.jobs.phi import find_identifiers
from medkit.record.identifiers import Identifier

CANARIES = [
    *("Quastler^Ottilie", "Szczepański, Łukasz", "Björnsdóttir Ásta", "MRN-00781234"),
    *("1931-07-19", "19440229", "ACC20XQ771", "ottilie.q@clinic.invalid", "+49 30 5550199"),
    *("17 Rosewood Lane", "St. Isidora Hospital", "Dr. Vandermeer", "SN-QX55831", "WS-RAD-77Q"),
    *("1.2.826.0.1.77665544.3.2", "OTHERID-4471", "Insurance 88-1234-Q", "Captain Zerbst"),
    *("Marzipan baker", "visit 2019-11-30 ward 7"),
]
IDENTIFIERS = [Identifier(number, text) for number, text in enumerate(CANARIES, 1)]


def found(folder: Path) -> set[int]:
    """Return the lines of the identifiers that the scan finds."""
    hits = find_identifiers(folder, IDENTIFIERS, progress=False)
    return {hit.identifier.line for hit in hits if hit.identifier is not None}


def zipped(data: bytes, name: str = "data.pkl") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return out.getvalue()


def tarred(data: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        info = tarfile.TarInfo("inner.gz")
        inner = gzip.compress(data)
        info.size = len(inner)
        archive.addfile(info, io.BytesIO(inner))
    return out.getvalue()


def png(kind: bytes, head: bytes, data: bytes) -> bytes:
    chunk = head + zlib.compress(data)
    size, check = len(chunk).to_bytes(4, "big"), zlib.crc32(kind + chunk).to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n" + size + kind + chunk + check


def saved(save: Callable[[io.BytesIO], object]) -> bytes:
    out = io.BytesIO()
    save(out)
    return out.getvalue()


def parquet(texts: list[str]) -> bytes:
    frame = pd.DataFrame({"patient": texts * 3})
    return saved(lambda out: frame.to_parquet(out, compression="zstd"))


def sqlite(texts: list[str]) -> bytes:
    with sqlite3.connect(":memory:") as base:
        base.execute("create table history (source text)")
        base.executemany("insert into history values (?)", [(text,) for text in texts])
        base.commit()
        return base.serialize()


def notebook(text: str) -> bytes:
    """Return a notebook whose output says it: escaped, with a picture in base64."""
    image = base64.encodebytes(png(b"zTXt", b"Comment\0\0", text.encode())).decode()
    outputs = [{"text": text.split("\n")[:10]}, {"data": {"image/png": image}}]
    return json.dumps({"cells": [{"outputs": outputs}]}).encode()


DEFLATED = b"\x02\0\0\0UL\4\0\x20\0\0\0" + b"\x02\0\x10\0UI\x18\0" + b"1.2.840.10008.1.2.1.99\0\0"
ALL = "\n".join(CANARIES)
RAW = ALL.encode()
CONTAINERS: dict[str, Callable[[], bytes]] = {
    "plain.txt": lambda: RAW,
    "latin.txt": lambda: ALL.replace("Szczepański, Łukasz", "").encode("latin-1"),
    "utf16.bin": lambda: b"x" + ALL.encode("utf-16-le"),
    "utf16be.bin": lambda: ALL.encode("utf-16-be"),
    "utf32.npy": lambda: saved(lambda out: np.save(out, np.array(CANARIES))),
    "decomposed.txt": lambda: unicodedata.normalize("NFD", ALL).upper().encode(),
    "archive.zip": lambda: zipped(RAW),
    "twice.zip": lambda: zipped(zipped(RAW), "inner.zip"),
    "last.ckpt": lambda: saved(lambda out: torch.save({"paths": CANARIES}, out)),
    "table.npz": lambda: saved(lambda out: np.savez_compressed(out, names=np.array(CANARIES))),
    "log.gz": lambda: gzip.compress(b"x") + gzip.compress(RAW),
    "log.bz2": lambda: bz2.compress(RAW),
    "log.xz": lambda: lzma.compress(RAW),
    "logs.tar.gz": lambda: tarred(RAW),
    "object.z": lambda: zlib.compress(RAW),
    "packed.png": lambda: png(b"zTXt", b"Comment\0\0", RAW),
    "international.png": lambda: png(b"iTXt", b"Comment\0\1\0en\0\0", RAW),
    "figure.pdf": lambda: b"%PDF-1.4\nstream\n" + zlib.compress(RAW) + b"\nendstream",
    "rows.parquet": lambda: parquet(CANARIES),
    "history.sqlite": lambda: sqlite(CANARIES),
    "notebook.ipynb": lambda: notebook(ALL),
    "mail.txt": lambda: base64.encodebytes(RAW),
    "token.json": lambda: json.dumps({t: base64.b64encode(t.encode()).decode() for t in "x"}
                                     | {"v": [base64.urlsafe_b64encode(t.encode()).decode()
                                              for t in CANARIES]}).encode(),
    "slice.dcm": lambda: bytes(128) + b"DICM" + DEFLATED
                         + zlib.compress(RAW, wbits=-15),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTAINERS)
def test_each_of_20_identifiers_is_found_in_each_kind_of_file(name: str, tmp_path: Path) -> None:
    (tmp_path / "run" / "deep").mkdir(parents=True)
    (tmp_path / "run" / "deep" / name).write_bytes(CONTAINERS[name]())
    missing = {2} if name == "latin.txt" else set()  # which has no letters for it
    assert found(tmp_path / "run") == set(range(1, 21)) - missing


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_each_is_found_in_names_and_in_what_links_name(kind: str, tmp_path: Path) -> None:
    for text in CANARIES:
        if kind == "link":
            os.symlink(f"/archive/{text}/x.dcm", tmp_path / f"link{len(list(tmp_path.iterdir()))}")
        elif kind == "folder":
            (tmp_path / text).mkdir()
        else:
            (tmp_path / f"{text}.npy").touch()
    assert found(tmp_path) == set(range(1, 21))


@pytest.mark.parametrize(
    ("identifier", "written"),
    [
        *[("Doe, Jane", text) for text in ("DOE^JANE", "jane doe", "Doe_Jane", "JANE%20DOE",
                                           r"Doe\u005eJane", "DoeJane", "Jane  Doe", "doe-jane")],
        *[("1950-04-01", text) for text in ("19500401", "1950-04-01T10:15", "01.04.1950",
                                            "1/4/1950", "4/1/1950", "1 April 1950",
                                            "Apr 1st, 1950", "01-APR-1950", "19500401101500.5",
                                            "1950/04/01")],
        ("04/01/1950", "1950-01-04"),
        ("MRN 12-345", "mrn12345"),
        ("Müller", "MULLER"),
        ("Müller", "M\\u00fcller"),
    ],
)  # fmt: skip
def test_an_identifier_is_found_however_it_is_written(
    identifier: str, written: str, tmp_path: Path
) -> None:
    (tmp_path / "x.txt").write_text(f"a\n{written}\nb", encoding="utf-8")
    assert list(find_identifiers(tmp_path, [Identifier(1, identifier)], progress=False))


@pytest.mark.parametrize(
    ("identifier", "written"),
    [("Doe, Jane", "doe and jane"), ("1950-04-01", "21950-04-012"), ("MRN 12-345", "mrn12346")],
)
def test_what_is_not_there_is_not_found(identifier: str, written: str, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text(written)
    assert not list(find_identifiers(tmp_path, [Identifier(1, identifier)], progress=False))


def test_one_is_found_across_the_edge_of_two_parts_and_counted_once(tmp_path: Path) -> None:
    for shift in range(0, 12, 3):
        (tmp_path / "big.bin").write_bytes(b"\1" * ((1 << 20) - shift) + b"DOE^JANE" + b"\1" * 99)
        hits = list(find_identifiers(tmp_path, [Identifier(1, "Jane Doe")], progress=False))
        assert [(hit.place, hit.count) for hit in hits] == [("bytes", 1)]


def test_the_command_says_where_and_never_what(medkit, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("Jane Doe\n\n1950-04-01\nNobody Else\n")
    run = tmp_path / "run"
    run.mkdir()
    (run / "DOE_JANE.npz").write_bytes(zipped(b"DOE^JANE, jane doe", "jane-doe.npy"))
    (run / "notes.txt").write_text("x 1950-04-01")
    (run / "broken.zip").write_bytes(zipped(b"x")[:-30])
    said = medkit("doctor", "--phi", run, "--identifiers", tmp_path / "list.txt")
    assert said.code == 1
    assert "FOUND    run/[line 1].npz  name: 1 x identifier of line 1 (J..., 8" in said.out
    assert "FOUND    run/[line 1].npz  [line 1].npy: 2 x identifier of line 1" in said.out
    assert "FOUND    run/notes.txt  bytes: 1 x identifier of line 3 (1..., 10" in said.out
    assert "UNOPENED run/broken.zip  broken" in said.out
    assert "2 of 3 identifiers found in 4 files and folders, 1 part(s)" in said.out
    for text in ("jane", "doe", "1950-04-01"):
        assert text not in (said.out + said.err).lower()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--phi", "run"], "must be given together"),
        (["--phi", "none", "--identifiers", "list"], "must be a folder"),
        (["--phi", "run", "--identifiers", "run/list"], "must lie outside of the folder"),
        (["--phi", "run", "--identifiers", "empty"], "is empty"),
        (["--phi", "run", "--identifiers", "short"], "line 2 of .* at least 4 letters or digits"),
    ],
)
def test_wrong_usage_is_said(
    words: list[str], message: str, medkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    for name, text in (
        ("list", "Jane"),
        ("run/list", "Jane"),
        ("empty", " "),
        ("short", "J D\nLi"),
    ):
        (tmp_path / name).write_text("\n" * (name == "short") + text)
    said = medkit("doctor", *words)
    assert said.code == 2
    assert __import__("re").search(message, said.err)
