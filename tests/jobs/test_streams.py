"""Printed text as a terminal would show it, bounded."""

from __future__ import annotations

from medkit.jobs.redact import BLOT, Redactor
from medkit.jobs.streams import HEAD_CHARS, TAIL_CHARS, StreamBuffer, Terminal


def shown(*chunks: str) -> str:
    buffer = StreamBuffer()
    for chunk in chunks:
        buffer.append(chunk)
    return buffer.text


def test_a_carriage_return_overwrites_the_line() -> None:
    assert shown("a\n", "1%\r", "2%", "\r3%", "\ndone\n") == "a\n3%\ndone\n"


def test_a_dos_line_end_is_a_line_end() -> None:
    assert shown("a\r\nb\r\n") == "a\nb\n"


def test_a_bar_of_many_refreshes_is_one_line() -> None:
    assert shown(*(f"\r{i}/20000" for i in range(20_001)), "\n") == "20000/20000\n"


def test_nested_bars_do_not_pile_up() -> None:
    inner = [f"\n\rinner {i}\x1b[A" for i in range(1000)]
    assert shown("\router 0", *inner, "\router 1", "\n") == "outer 1\n"


def test_a_chunk_boundary_makes_no_difference() -> None:
    text = "one\n1%\r2%\r3%\ntwo\r\nthree\n\nlast"
    assert shown(*text) == shown(text)


def test_the_middle_of_a_long_output_is_left_out_and_counted() -> None:
    line = "x" * 99 + "\n"
    text = shown(*(line for _ in range(10_000)))
    assert len(text) < HEAD_CHARS + TAIL_CHARS + 2_000
    assert text.startswith(line)
    assert text.endswith(line)
    kept = text.count("x") + text.count("x\n")
    assert f"[{1_000_000 - kept:,} characters left out" in text


def test_text_without_a_line_end_is_bounded_too() -> None:
    assert len(shown(*("y" * 1000 for _ in range(1000)))) < HEAD_CHARS * 3


def test_a_log_keeps_every_finished_line() -> None:
    log = Terminal()
    assert log.feed("1%\r2%\nnext") == "2%\n"
    assert log.finish() == "next"


def test_values_of_secret_variables_and_telltale_shapes_are_blotted_out() -> None:
    variables = {"HUB_TOKEN": "s3cret-value", "A_KEY": "0123456789", "HOME": "/home/me"}
    clean = Redactor(variables | {"SHORT_TOKEN": "x"}).clean
    assert clean("s3cret-value 0123456789 /home/me x") == f"{BLOT} {BLOT} /home/me x"
    assert clean("AKIA" + "A1" * 8) == BLOT
    assert clean("sk-learn and token") == "sk-learn and token"
