from __future__ import annotations

import gzip
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medkit.data.long.wide import AGGREGATES, wide_from_long

HOUR = 3_600_000_000


def events(count: int = 3000, seed: int = 0) -> pd.DataFrame:
    """Return events of 40 stays in no order, some at the same time, some without a number."""
    rng = np.random.default_rng(seed)
    hours = rng.integers(0, 60, count) / 2
    value = np.round(rng.normal(size=count) * 10, 3)
    value[rng.random(count) < 0.05] = np.nan
    return pd.DataFrame(
        {
            "subject_id": rng.integers(100, 140, count),
            "time": hours,
            "code": rng.choice(["HR", "Lactate", "Urine"], count),
            "numeric_value": value,
        }
    )


def reference(frame: pd.DataFrame, time_limit: float) -> pd.DataFrame:
    """Return the same table by pandas, all at once."""
    late = frame["time"] > time_limit
    use = frame[~late].sort_values("time", kind="stable")
    grouped = use.groupby(["subject_id", "code"])["numeric_value"]
    parts = {
        **{name: getattr(grouped, name)() for name in ("first", "last", "min", "max", "mean")},
        "count": grouped.size(),
    }
    table = {
        f"{code}_{name}": part.xs(code, level="code")
        for code in sorted(frame["code"].unique())
        for name, part in parts.items()
    }
    wide = pd.DataFrame(table, index=np.sort(frame["subject_id"].unique()))
    counts = [name for name in wide if name.endswith("_count")]
    return wide.fillna({name: 0 for name in counts}).astype({name: np.int64 for name in counts})


def write(path: Path, frame: pd.DataFrame, **options: Any) -> Path:
    if path.suffix == ".parquet":
        frame.to_parquet(path, index=False, **options)
    else:
        frame.to_csv(path, index=False)
    return path


def test_the_aggregates_are_those_of_pandas(tmp_path: Path) -> None:
    frame = events()
    got = wide_from_long(write(tmp_path / "e.csv", frame), time_limit=24)
    pd.testing.assert_frame_equal(got, reference(frame, 24), check_names=False, rtol=1e-12)
    assert got.index.name == "subject_id"


@pytest.mark.parametrize("batch_rows", [1, 7, 1000, 10**6])
@pytest.mark.parametrize("name", ["e.csv", "e.parquet"])
def test_the_size_of_batches_changes_no_bit(tmp_path: Path, name: str, batch_rows: int) -> None:
    path = write(tmp_path / name, events(250))
    one = wide_from_long(path, time_limit=24, batch_rows=100)
    other = wide_from_long(path, time_limit=24, batch_rows=batch_rows)
    pd.testing.assert_frame_equal(one, other, check_exact=True)
    assert one.attrs == other.attrs


def test_csv_gz_parquet_and_shards_give_the_same_bits(tmp_path: Path) -> None:
    frame = events(900)
    want = wide_from_long(write(tmp_path / "e.csv", frame), time_limit=24)
    packed = tmp_path / "e.csv.gz"
    packed.write_bytes(gzip.compress((tmp_path / "e.csv").read_bytes()))
    meds = tmp_path / "meds"
    for shard, rows in enumerate(np.array_split(np.arange(900), 3)):
        folder = meds / "data" / ("train", "train", "held_out")[2 - shard]
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / f"{shard}.parquet", frame.iloc[rows], row_group_size=50)
    write(meds / "codes.csv", pd.DataFrame({"not": ["events"]}))
    for source in (packed, write(tmp_path / "e.parquet", frame)):
        pd.testing.assert_frame_equal(wide_from_long(source, time_limit=24), want, check_exact=True)
    # other shards, other order of the files: the same but for the last bits of the mean
    sharded = wide_from_long(meds, time_limit=24)
    exact = [c for c in want if c.endswith(("_min", "_max", "_count"))]
    pd.testing.assert_frame_equal(sharded[exact], want[exact], check_exact=True)


def test_categories_that_do_not_occur_make_no_columns_and_no_rows(tmp_path: Path) -> None:
    frame = events(300).astype({"code": "category"})
    few = frame[frame["code"] != "Urine"]
    got = wide_from_long(write(tmp_path / "e.parquet", few), time_limit=24, batch_rows=10)
    pd.testing.assert_frame_equal(
        got, reference(few.astype({"code": str}), 24), check_names=False, rtol=1e-12
    )


def test_at_the_same_time_the_order_of_the_file_decides(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"subject_id": 1, "time": [2.0, 2.0, 1.0, 1.0], "code": "x", "numeric_value": [1, 2, 3, 4]}
    )
    got = wide_from_long(write(tmp_path / "e.csv", frame), time_limit=None, batch_rows=1)
    assert got.loc[1, ["x_first", "x_last"]].tolist() == [3, 2]


def test_the_limit_is_included_and_counts_from_the_first_event(tmp_path: Path) -> None:
    start = pd.Timestamp("2026-01-31 22:00:00")
    frame = pd.DataFrame(
        {
            "subject_id": [1, 1, 1, 1, 1],
            "time": [
                *(pd.Timestamp("1950-01-01"), start, start + pd.Timedelta("48h")),
                *(start + pd.Timedelta("48h") + pd.Timedelta("1us"), pd.NaT),
            ],
            "code": ["MEDS_BIRTH", "x", "x", "x", "sex"],
            "numeric_value": [np.nan, 1, 2, 3, 1],
        }
    )
    for name in ("e.parquet", "e.csv"):
        got = wide_from_long(write(tmp_path / name, frame), time_limit=48, static=["sex"])
        assert got.loc[1, ["sex", "x_count", "x_last"]].tolist() == [1, 2, 2]
        assert got.loc[1, "MEDS_BIRTH_count"] == 0
        assert got.attrs["events"]["after the limit"] == 1
        assert got.attrs["events"]["before the start"] == 1
        assert got.attrs["events"]["without a time"] == 1


def test_a_stay_starts_at_its_earliest_event_wherever_that_stands(tmp_path: Path) -> None:
    day = pd.Timestamp("2026-01-01")
    times = [day + pd.Timedelta(hours=hours) for hours in (30, 0, 20)]
    frame = pd.DataFrame({"subject_id": 1, "time": times, "code": "x", "numeric_value": [1, 2, 3]})
    got = wide_from_long(write(tmp_path / "e.parquet", frame), time_limit=24, batch_rows=1)
    assert got.loc[1, ["x_first", "x_last", "x_count"]].tolist() == [2, 3, 2]


def test_a_stay_can_start_at_a_code(tmp_path: Path) -> None:
    day = pd.Timestamp("2026-01-01")
    frame = pd.DataFrame(
        {
            "subject_id": [1, 1, 1, 2],
            "time": [day, day + pd.Timedelta("5h"), day + pd.Timedelta("6h"), day],
            "code": ["x", "ADMISSION//ER", "x", "x"],
            "numeric_value": [1.0, np.nan, 2.0, 3.0],
        }
    )
    path = write(tmp_path / "e.parquet", frame)
    got = wide_from_long(path, time_limit=24, codes=["x"], start_code="ADMISSION")
    assert got["x_count"].tolist() == [1, 0]
    assert got.attrs["events"]["no start"] == 1
    with pytest.raises(ValueError, match=r"start_code must be a code .* has 'DISCHARGE'"):
        wide_from_long(path, time_limit=24, start_code="DISCHARGE")


def test_codes_of_missing_values_count_nowhere(tmp_path: Path) -> None:
    path = tmp_path / "e.csv"
    path.write_text("subject_id,time,code,numeric_value\n1,0,w,-1\n1,1,w,70\n1,1,b,-1\n")
    got = wide_from_long(path, time_limit=48, missing_codes={"w": [-1]})
    assert got.loc[1, ["w_first", "w_count", "b_first"]].tolist() == [70, 1, -1]
    assert got.attrs["events"]["coded as missing"] == 1


def test_every_event_read_is_accounted_for(tmp_path: Path) -> None:
    frame = events(2000)
    path = write(tmp_path / "e.csv", frame)
    counts = wide_from_long(
        path, time_limit=10, codes=["HR", "Urine"], missing_codes={"HR": [frame.numeric_value[0]]}
    ).attrs["events"]
    left_out = ("other codes", "coded as missing", "after the limit", "before the start")
    assert counts["read"] == 2000
    assert counts["used"] + sum(counts[reason] for reason in left_out) == 2000


def test_codes_come_in_the_order_asked_also_where_none_occurs(tmp_path: Path) -> None:
    path = write(tmp_path / "e.csv", events(50))
    got = wide_from_long(path, time_limit=48, codes=["pH", "HR"], aggregates=("last", "count"))
    assert list(got) == ["pH_last", "pH_count", "HR_last", "HR_count"]
    assert got["pH_last"].isna().all()
    assert (got["pH_count"] == 0).all()


def test_ids_with_leading_zeros_stay_text(tmp_path: Path) -> None:
    path = tmp_path / "e.csv"
    path.write_text("subject_id,time,code,numeric_value\n007,0,x,1\n7,0,x,2\n")
    assert wide_from_long(path, time_limit=1).index.tolist() == ["007", "7"]


def test_events_out_of_order_are_counted_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "e.csv"
    rows = "1,5,x,1\n2,1,x,1\n1,3,x,2\n1,4,x,3\n"
    path.write_text("subject_id,time,code,numeric_value\n" + rows)
    with caplog.at_level(logging.WARNING):
        got = wide_from_long(path, time_limit=None, batch_rows=1)
    assert got.attrs["events"]["out of order"] == 1
    assert got.loc[1, ["x_first", "x_last"]].tolist() == [2, 1]
    assert "1 of 4 events: out of order; first and last go by time" in caplog.text


def test_events_out_of_order_are_refused_where_order_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "e.csv", events(100))
    message = r"must be in the order of time within each stay, and \d+ so far.*Sort the table"
    with pytest.raises(ValueError, match=message):
        wide_from_long(path, time_limit=None, require_sorted=True)


HEAD = "subject_id,time,code,numeric_value\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"e\.csv must begin with a line of column names, and it is empty"),
        (HEAD, r"must have at least one event, and 1 file\(s\) .*cut off"),
        (
            "subject,time,code,numeric_value\n1,0,x,1\n",
            r"\['subject_id'\] are not among .*Did you mean 'subject'\? Pass columns=",
        ),
        ("subject_id,time,time,code,numeric_value\n", r"name each column once, and \['time'\]"),
        (HEAD + "1,0,x,high\n", r"and numbers in 'numeric_value'; found: .*text_value"),
        (HEAD + "1,0,x,1\n1,0,x\n", r"as many cells in each row as in the first"),
        (HEAD + ",0,x,1\n", r"subject_id must be filled in each row; it is empty in 1 rows"),
        (HEAD + "1,0,,1\n", r"code must be filled in each row"),
        (HEAD + "1,noon,x,1\n", r"times must be ISO 8601 .* or hours; found 'noon'"),
        (HEAD + "1,1767225600,x,1\n", r"must be hours since the start of the stay; found 1\.76"),
    ],
)
def test_files_that_are_no_long_table_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "e.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        wide_from_long(path, time_limit=48)


def test_clock_and_elapsed_times_are_not_mixed(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(HEAD + "1,00:30,x,1\n")
    (tmp_path / "b.csv").write_text(HEAD + "1,2026-01-01 00:30:00,x,1\n")
    with pytest.raises(ValueError, match=r"b\.csv: times must all be of the clock or all since"):
        wide_from_long(tmp_path, time_limit=48)


def test_a_parquet_file_cut_short_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "e.parquet", events(50))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"e\.parquet must be a Parquet file"):
        wide_from_long(path, time_limit=48)


def test_a_folder_without_tables_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"must be \.parquet.* is or holds none"):
        wide_from_long(tmp_path, time_limit=48)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"aggregates": ("first", "median")}, r"aggregates must be different ones of"),
        ({"codes": "HR"}, r"codes must be a list that names each code once, got 'HR'"),
        ({"time_limit": -1}, r"time_limit must be hours after the start.*got -1"),
        ({"batch_rows": 0}, r"batch_rows must be 1 at least, got 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "e.csv", events(10))
    with pytest.raises(ValueError, match=message):
        wide_from_long(path, **{"time_limit": 48, **settings})


def test_infinite_values_are_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "e.csv"
    path.write_text(HEAD + "1,0,x,inf\n1,1,x,2\n")
    got = wide_from_long(path, time_limit=48)
    assert got.loc[1, "x_max"] == 2
    assert got.attrs["events"]["not finite"] == 1


_MEASURE = """
import resource, sys
import numpy as np
from medkit.data.long.wide import wide_from_long
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
wide = wide_from_long(sys.argv[1], time_limit=48)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) / 1024, wide.filter(like="_count").to_numpy().sum(), len(wide))
"""


@pytest.mark.slow
def test_10_million_events_need_less_than_a_gigabyte(tmp_path: Path) -> None:
    path, rows, rounds = tmp_path / "e.parquet", 500_000, 20
    schema = pa.schema(
        [
            *(("subject_id", pa.int64()), ("time", pa.timestamp("us"))),
            *(("code", pa.string()), ("numeric_value", pa.float32())),
        ]
    )
    codes = np.array([f"LAB//{number}" for number in range(60)])
    with pq.ParquetWriter(path, schema) as writer:
        for batch in range(rounds):
            rng = np.random.default_rng(batch)
            stay = np.sort(rng.integers(0, 2000, rows)) + 2000 * batch
            columns = [
                pa.array(stay),
                pa.array(rng.integers(0, 48 * HOUR, rows), pa.timestamp("us")),
                pa.array(codes[rng.integers(0, 60, rows)]),
                pa.array(rng.normal(size=rows).astype(np.float32)),
            ]
            writer.write_table(pa.table(columns, schema=schema))
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    megabytes, used, stays = done.stdout.split()
    assert (int(used), int(stays)) == (rows * rounds, 2000 * rounds)
    assert float(megabytes) < 1000


def test_the_aggregates_are_listed_in_the_order_of_the_columns(tmp_path: Path) -> None:
    got = wide_from_long(write(tmp_path / "e.csv", events(20)), time_limit=48, codes=["HR"])
    assert list(got) == [f"HR_{name}" for name in AGGREGATES]
