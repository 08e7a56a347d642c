"""What a copy or an archive does to the files of a series."""

from __future__ import annotations

from pathlib import Path

from medkit.synth import phantom_series as phantom


def text_of(path: Path, old: bytes, new: bytes) -> None:
    """Replace some bytes by as many others."""
    data = path.read_bytes()
    if old not in data or len(old) != len(new):
        raise ValueError(f"{path}: {old!r} is not there, or {new!r} is of another length")
    path.write_bytes(data.replace(old, new, 1))


def cut(paths: list[Path]) -> None:
    """Cut the end of a file off."""
    paths[5].write_bytes(paths[5].read_bytes()[:-200])


def beside(paths: list[Path]) -> None:
    """Put files beside that are no DICOM."""
    folder = paths[0].parent
    (folder / "README.txt").write_text("what the scanner says\n")
    (folder / "empty.dcm").write_bytes(b"")
    (folder / "export.zip").write_bytes(b"PK\x03\x04" + bytes(200))
    (folder / "Thumbs.db").write_bytes(bytes(range(256)) * 4)


def bare(paths: list[Path]) -> None:
    """Take preamble and file meta information away."""
    for path in paths:
        data = path.read_bytes()
        meta = int.from_bytes(data[140:144], "little")
        path.write_bytes(data[144 + meta :])


def links(paths: list[Path]) -> None:
    """Link to a file, and to the folder itself."""
    (paths[0].parent / "again.dcm").symlink_to(paths[0])
    (paths[0].parent / "round").symlink_to(paths[0].parent)


def twice(paths: list[Path]) -> None:
    """Copy one file."""
    (paths[0].parent / "copy.dcm").write_bytes(paths[5].read_bytes())


def behind(paths: list[Path]) -> None:
    """Put zeros behind the data of each file."""
    for path in paths:
        path.write_bytes(path.read_bytes() + bytes(64))


def bomb(paths: list[Path]) -> None:
    """Have one file say that it has 65,535 rows and columns."""
    rows = phantom.ROWS.to_bytes(2, "little")
    text_of(paths[5], b"\x28\0\x10\0US\2\0" + rows, b"\x28\0\x10\0US\2\0\xff\xff")
    columns = phantom.COLUMNS.to_bytes(2, "little")
    text_of(paths[5], b"\x28\0\x11\0US\2\0" + columns, b"\x28\0\x11\0US\2\0\xff\xff")


def no_vr(paths: list[Path]) -> None:
    """Give an element a kind that there is not."""
    for path in paths:
        text_of(path, b"\x18\0\x60\0DS", b"\x18\0\x60\0ZZ")


def broken_fragment(paths: list[Path]) -> None:
    """Cut a quarter of a compressed file off."""
    data = paths[5].read_bytes()
    paths[5].write_bytes(data[: len(data) * 3 // 4])
