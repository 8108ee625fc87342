"""Readers: every format gives the same histories, in order, and says what is wrong with a file."""

import gzip
import json
import logging
import subprocess
import sys
from typing import get_args

import numpy as np
import pandas
import polars
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from hyenarec.config import Format
from hyenarec.data import read_histories
from hyenarec.data.delimited import _read_carefully, _read_fast, text_layout
from hyenarec.data.read import READERS

EVENTS = [  # user, item, timestamp; out of order, with ties
    (7, 30, 5),
    (2, 10, 9),
    (7, 20, 5),
    (7, 10, 1),
    (2, 30, 9),
    (10, 20, 0),
]
USERS = [2, 7, 10]
EXTERNAL = [[10, 30], [10, 30, 20], [20]]  # time order; ties in file order
TIMES = [[9, 9], [1, 5, 5], [0]]


def external_rows(histories):
    return [histories.vocabulary.decode(histories[user]).tolist() for user in range(histories.num_users)]


def check(histories):
    assert histories.user_ids.tolist() == USERS
    assert external_rows(histories) == EXTERNAL
    assert np.split(histories.timestamps, histories.offsets[1:-1])[1].tolist() == TIMES[1]
    assert histories.timestamps.tolist() == [time for times in TIMES for time in times]
    assert histories.vocabulary.item_ids.tolist() == [10, 20, 30]
    assert histories.skipped_rows == 0


def lines(delimiter, header=None):
    rows = [delimiter.join(map(str, event)) for event in EVENTS]
    return "\n".join(([header] if header else []) + rows) + "\n"


def write(path, text):
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize(
    "name, text",
    [
        ("events.txt", lines(" ")),
        ("events.txt.gz", lines(" ")),
        ("events", lines("\t")),
        ("events.dat", lines("  ")),  # irregular, but what is meant is clear
        ("events.txt", "\n" + lines(" ").replace("\n", " \r\n")),
        ("events.csv", lines(",", "user,item,timestamp")),
        ("events.csv.gz", lines(",", "user,item,timestamp")),
        ("events.csv", "\ufeff" + lines(",", "user,item,timestamp")),
        ("events.tsv", lines("\t", "user\titem\ttimestamp")),
        ("events.csv", lines(",", '"user",item,timestamp').replace("30,", '"30",')),
        ("events.inter", lines("\t", "user_id:token\titem_id:token\ttimestamp:float")),
    ],
)
def test_text_formats(tmp_path, name, text):
    check(read_histories(write(tmp_path / name, text)))


def table(kind=lambda values: values):
    users, items, times = zip(*EVENTS, strict=True)
    return pa.table(
        {"user": kind(pa.array(users)), "item": kind(pa.array(items)), "timestamp": pa.array(times)}
    )


def test_parquet(tmp_path):
    pyarrow.parquet.write_table(table(), tmp_path / "events.parquet", row_group_size=2)
    check(read_histories(tmp_path / "events.parquet"))


class Frame:
    """Any frame library's export of an Arrow stream, here in batches of two rows."""

    def __init__(self, table):
        self.table = table

    def __arrow_c_stream__(self, requested_schema=None):
        batches = self.table.to_batches(max_chunksize=2)
        reader = pa.RecordBatchReader.from_batches(self.table.schema, batches)
        return reader.__arrow_c_stream__(requested_schema)


@pytest.mark.parametrize(
    "kind",
    [
        lambda values: values,
        lambda values: values.cast(pa.int16()),
        lambda values: values.cast(pa.float64()),
        lambda values: values.cast(pa.string()),
        lambda values: values.cast(pa.string()).cast(pa.string_view()),
        lambda values: values.cast(pa.string()).dictionary_encode(),
    ],
)
def test_frames_of_every_id_type(kind):
    check(read_histories(Frame(table(kind))))
    check(read_histories(table(kind)))


def test_pandas_frames():
    check(read_histories(pandas.DataFrame(EVENTS, columns=["user", "item", "timestamp"])))


def test_polars_frames():
    check(read_histories(polars.DataFrame(EVENTS, schema=["user", "item", "timestamp"], orient="row")))


@pytest.mark.parametrize("unit, ticks", [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
def test_frame_times_become_seconds(unit, ticks):
    times = pa.array([3 * ticks, -1, ticks // 2, 3 * ticks - 1]).cast(pa.timestamp(unit))
    histories = read_histories(pa.table({"user": [1] * 4, "item": [5, 6, 7, 8], "timestamp": times}))
    assert external_rows(histories) == [[6, 7, 8, 5]]  # fractions count for the order
    assert histories.timestamps.tolist() == [-1, 0, 2, 3]


@pytest.mark.parametrize("kind", [pa.date32(), pa.date64()])
def test_frame_dates_become_seconds(kind):
    days = pa.array([30, 10, 20], pa.int32()).cast(pa.date32()).cast(kind)
    histories = read_histories(pa.table({"user": [1, 1, 1], "item": [5, 6, 7], "timestamp": days}))
    assert external_rows(histories) == [[6, 7, 5]]
    assert histories.timestamps.tolist() == [day * 86_400 for day in (10, 20, 30)]


def test_column_names_and_unused_columns(tmp_path):
    text = "when,rating,who,what\n2,x,a,i\n1,,a,j\n"
    histories = read_histories(
        write(tmp_path / "e.csv", text), user_column="who", item_column="what", timestamp_column="when"
    )
    assert external_rows(histories) == [["j", "i"]]
    assert histories.user_ids.tolist() == ["a"]


def test_inter_takes_names_of_its_own(tmp_path):
    path = write(tmp_path / "e.inter", "uid:token\titem_id:token\trating:float\n1\t5\t3.5\n1\t4\t2\n")
    histories = read_histories(path, user_column="uid", timestamp_column=None)
    assert external_rows(histories) == [[5, 4]]


def test_without_timestamps_the_order_of_the_file_counts(tmp_path):
    histories = read_histories(write(tmp_path / "e.txt", "2 9\n1 5\n2 3\n1 4\n"))
    assert (external_rows(histories), histories.timestamps) == ([[5, 4], [9, 3]], None)
    histories = read_histories(write(tmp_path / "f.txt", lines(" ")), timestamp_column=None)
    assert (external_rows(histories)[1], histories.timestamps) == ([30, 20, 10], None)


def test_fractions_of_a_second_count_for_the_order(tmp_path):
    histories = read_histories(write(tmp_path / "e.txt", "1 5 2.75\n1 6 2.5\n1 7 -0.5\n"))
    assert external_rows(histories) == [[7, 6, 5]]
    assert histories.timestamps.tolist() == [-1, 2, 2]


def test_large_timestamps_are_exact(tmp_path):
    histories = read_histories(write(tmp_path / "e.txt", f"1 5 {2**62 + 1}\n1 6 {2**62}\n"))
    assert histories.timestamps.tolist() == [2**62, 2**62 + 1]
    assert external_rows(histories) == [[6, 5]]


@pytest.mark.parametrize(
    "ids, expected",
    [
        (["10", "9", "-3"], [-3, 9, 10]),
        (["10", "9", "x"], ["10", "9", "x"]),
        (["10", "010", "9"], ["010", "10", "9"]),  # not one item, and not 10
        (["1" * 19, "2", "3"], ["1" * 19, "2", "3"]),
        (["z", "é", "Z"], ["Z", "z", "é"]),
    ],
)
def test_ids_are_integers_only_where_all_are(tmp_path, ids, expected):
    path = write(tmp_path / "e.txt", "".join(f"1 {item}\n" for item in ids))
    histories = read_histories(path)
    assert histories.vocabulary.item_ids.tolist() == expected
    assert external_rows(histories) == [ids if isinstance(expected[0], str) else list(map(int, ids))]


def test_the_order_of_the_rows_does_not_matter(tmp_path):
    rng = np.random.default_rng(0)
    rows = [f"{rng.integers(1, 20)} i{rng.integers(1, 50)} {time}\n" for time in range(500)]
    one = read_histories(write(tmp_path / "one.txt", "".join(rows)))
    other = read_histories(write(tmp_path / "other.txt", "".join(rng.permutation(rows))))
    assert np.array_equal(one.items, other.items)
    assert np.array_equal(one.offsets, other.offsets)
    assert np.array_equal(one.timestamps, other.timestamps)
    assert one.vocabulary == other.vocabulary


def test_minimum_counts(tmp_path):
    histories = read_histories(write(tmp_path / "e.txt", "1 a\n1 b\n1 a\n2 a\n"), min_user_events=2)
    assert external_rows(histories) == [["a", "b", "a"]]
    histories = read_histories(tmp_path / "e.txt", min_item_events=2)
    assert external_rows(histories) == [["a", "a"], ["a"]]


NAMES = "user,item,timestamp\n"
INTER_NAMES = "user_id:token\titem_id:token\ttimestamp:float\n"
BAD = [  # file, content, line and reason of the one malformed row, number of good ones
    ("events.txt", "1 2 3\n1 2\n1 2 4\n", 2, "expected 3 columns, got 2", 2),
    ("events.txt", "1 2\n1 2\n\n1 2 4\n", 4, "expected 2 columns, got 3", 2),
    ("events.txt", "1 2 3 4\n1 2 3\n", 1, "expected 3 columns, got 4", 1),
    ("events.txt", "1 2 3\n1 2 noon\n", 2, "timestamp 'noon' is not a number", 1),
    ("events.txt", "1 2 3\n1 2 nan\n", 2, "timestamp 'nan' is not a number", 1),
    ("events.txt", "1 2 3.5\n1 2 inf\n", 2, "timestamp 'inf' is not a number", 1),
    ("events.txt", f"1 2 3\n1 2 {2**63}\n", 2, "is not a number that fits 64 bits", 1),
    ("events.txt.gz", "1 2 3\n1 2 x\n", 2, "timestamp 'x' is not a number", 1),
    ("events.csv", NAMES + "1,2,3\n\n1,,4\n", 4, "item is empty", 1),
    ("events.csv", NAMES + '1,2,3\n"",2,4\n', 3, "user is empty", 1),
    ("events.csv", NAMES + "1,2,3\n1,2,\n", 3, "timestamp is empty", 1),
    ("events.csv", NAMES + "1,2,3\n1,2,3,4\n", 3, "expected 3 columns, got 4", 1),
    ("events.csv", NAMES + '"1\n0",2,3\n1,2\n', 4, "expected 3 columns, got 2", 1),
    ("events.inter", INTER_NAMES + "1\t2\t3\n1\t2\t\n", 3, "timestamp is empty", 1),
]


@pytest.mark.parametrize("name, text, line, reason, good", BAD)
def test_malformed_rows_are_named(tmp_path, name, text, line, reason, good):
    path = write(tmp_path / name, text)
    with pytest.raises(ValueError) as error:
        read_histories(path)
    assert str(error.value).startswith(f"{path}, line {line}: ")
    assert reason in str(error.value)


@pytest.mark.parametrize("name, text, line, reason, good", BAD)
def test_malformed_rows_are_skipped_counted_and_logged(tmp_path, caplog, name, text, line, reason, good):
    with caplog.at_level(logging.WARNING):
        histories = read_histories(write(tmp_path / name, text), on_bad_rows="skip")
    assert (histories.skipped_rows, histories.num_events) == (1, good)
    assert f"skipped 1 malformed rows; the first is line {line}" in caplog.text
    assert reason in caplog.text


def test_bytes_that_are_not_utf8(tmp_path):
    (tmp_path / "e.txt").write_bytes(b"1 a\n1 \xff\n1 b\n")
    with pytest.raises(ValueError, match=r"line 2: item .* is not valid UTF-8"):
        read_histories(tmp_path / "e.txt")
    histories = read_histories(tmp_path / "e.txt", on_bad_rows="skip")
    assert (external_rows(histories), histories.skipped_rows) == ([["a", "b"]], 1)


def test_the_line_is_right_beyond_the_first_block(tmp_path, monkeypatch):
    monkeypatch.setattr("hyenarec.data.delimited._BLOCK_BYTES", 1 << 12)
    rows = [f"{n % 1000} {n % 77} {n}\n" for n in range(5000)]
    assert read_histories(write(tmp_path / "good.txt", "".join(rows))).num_events == 5000
    rows[3456] = "5 6 seven\n"
    with pytest.raises(ValueError, match="line 3457: timestamp 'seven'"):
        read_histories(write(tmp_path / "e.txt", "".join(rows)))


def test_both_passes_read_the_same(tmp_path):
    rng = np.random.default_rng(3)
    text = "".join(f"u{rng.integers(9)} {rng.integers(30)} {rng.integers(-99, 99)}\n" for _ in range(300))
    path = write(tmp_path / "e.txt", text)
    layout = text_layout(path, with_timestamps=True)
    fast, careful = _read_fast(path, layout, pa.int64()), _read_carefully(path, layout, "error")
    for one, other in ((fast.users, careful.users), (fast.items, careful.items)):
        assert one.ids.equals(other.ids)
        assert np.array_equal(one.codes, other.codes)
    assert np.array_equal(fast.timestamps, careful.timestamps)


@pytest.mark.parametrize("name", ["user", "item", "timestamp"])
def test_nulls_in_frames(tmp_path, name, caplog):
    columns = {"user": [1, 2, 3], "item": [4, 5, 6], "timestamp": [7, 8, 9], name: [1, None, 3]}
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "e.parquet")
    with pytest.raises(ValueError, match=rf"e\.parquet, row 2: {name} is null"):
        read_histories(tmp_path / "e.parquet")
    histories = read_histories(Frame(pa.table(columns)), on_bad_rows="skip")
    assert (histories.num_events, histories.skipped_rows) == (2, 1)
    assert "skipped 1 rows" in caplog.text


def test_nan_and_empty_strings_in_frames_are_missing():
    columns = {"user": [1.0, np.nan, 3.0], "item": ["a", "b", ""], "timestamp": [1.5, 2.0, 0.0]}
    histories = read_histories(pa.table(columns), on_bad_rows="skip")
    assert (histories.user_ids.tolist(), external_rows(histories), histories.skipped_rows) == (
        [1],
        [["a"]],
        2,
    )


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"user": [1.5], "item": [1]}, "column 'user' must hold whole numbers or strings, got double"),
        ({"user": [1], "item": [[1]]}, "column 'item' must hold whole numbers or strings, got list"),
        ({"user": [1]}, "item_column must name one column of the frame, which has 'user', got 'item'"),
        ({"user": [], "item": []}, "the frame must hold at least one event, got none"),
    ],
)
def test_unusable_frames(columns, message):
    with pytest.raises(ValueError, match=message):
        read_histories(pa.table(columns), timestamp_column=None)


def test_unusable_timestamps():
    with pytest.raises(ValueError, match="column 'timestamp' must hold numbers or times, got string"):
        read_histories(pa.table({"user": [1], "item": [1], "timestamp": ["noon"]}))


def test_unusable_arguments(tmp_path):
    path = write(tmp_path / "e.csv", "user,item\n1,2\n")
    with pytest.raises(
        ValueError, match=r"timestamp_column must name one column of .*e\.csv, which has 'user', 'item'"
    ):
        read_histories(path)
    with pytest.raises(ValueError, match="format must be one of 'auto', 'text'"):
        read_histories(path, format="json")
    with pytest.raises(ValueError, match='on_bad_rows must be "error" or "skip"'):
        read_histories(path, on_bad_rows="ignore")
    with pytest.raises(ValueError, match="path must be a file"):
        read_histories(tmp_path / "missing.csv")
    with pytest.raises(ValueError, match="source must be a path, or a frame"):
        read_histories([(1, 2, 3)])


@pytest.mark.parametrize("name, text", [("e.txt", "\n"), ("e.csv", ""), ("e.csv", "user,item,timestamp\n")])
def test_files_without_events(tmp_path, name, text):
    with pytest.raises(ValueError, match=r"must (hold|start)"):
        read_histories(write(tmp_path / name, text))


MEASURE = """
import json, resource, sys
from hyenarec.data import read_histories
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
read_histories(sys.argv[1])
before = peak()
histories = read_histories(sys.argv[2])
print(json.dumps({"events": histories.num_events, "bytes": peak() - before}))
"""


@pytest.mark.slow
def test_memory_stays_at_an_event_s_share_of_two_gigabytes(tmp_path):
    """20 million events in 2 GB are 100 bytes each; half a million, shuffled, have to live on that."""
    rng = np.random.default_rng(0)
    events = 500_000
    columns = {
        "user": rng.integers(1, 10_000, events),
        "item": rng.integers(1, 5_000, events),
        "timestamp": rng.integers(10**9, 2 * 10**9, events),
    }
    big, small = tmp_path / "big.csv", tmp_path / "small.csv"
    pyarrow.csv.write_csv(pa.table(columns), big)
    pyarrow.csv.write_csv(pa.table(columns).slice(0, 1000), small)
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, small, big], capture_output=True, text=True, check=True
    )
    measured = json.loads(run.stdout)
    assert measured["events"] == events
    assert measured["bytes"] < 100 * events


def test_every_format_has_a_reader() -> None:
    assert {"auto", *READERS} == set(get_args(Format))
