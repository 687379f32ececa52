# SPDX-License-Identifier: Apache-2.0
"""Tables of parquet files: what is read of them, and damaged footers, at which pyarrow would end the process."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="needs xvla_ros[lerobot]")

import pyarrow as pa
import pyarrow.parquet as pq

from xvla_ros import limits
from xvla_ros.recordings import parquet_files

DEADLINE = 600  # s, only ends a hang
VALUES = (0x1F, 0xFF)


def write(file, episodes=4, rows=5, columns=None, **options):
    """A row group for each episode."""
    count = episodes * rows
    table = pa.table(
        {
            "episode_index": pa.array([number // rows for number in range(count)], pa.int64()),
            "frame_index": pa.array(range(count), pa.int64()),
            "action": [[float(number), -1.0] for number in range(count)],
            "about": [{"by": "hand", "at": number} for number in range(count)],
        }
    )
    table = table if columns is None else table.select(columns)
    pq.write_table(table, file, row_group_size=rows, **options)
    return table


@pytest.mark.parametrize("options", [{}, {"write_statistics": False}, {"compression": "zstd", "version": "1.0"}])
def test_an_episode_is_read_of_the_groups_that_may_have_it(tmp_path, options):
    whole = write(tmp_path / "a.parquet", **options)
    found = parquet_files.read_table(tmp_path / "a.parquet", ["action", "frame_index"], 2)
    assert found.column_names == ["action", "frame_index"]
    assert found.to_pylist() == whole.select(["action", "frame_index"]).slice(10, 5).to_pylist()
    assert parquet_files.read_table(tmp_path / "a.parquet", ["action"], 9).num_rows == 0
    assert parquet_files.read_table(tmp_path / "a.parquet").equals(whole)


def test_groups_of_other_episodes_are_not_decoded(tmp_path):
    write(tmp_path / "a.parquet", compression="none")
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    about = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(0)
    begin = about.column(0).dictionary_page_offset or about.column(0).data_page_offset
    data[begin : begin + 20] = b"\xff" * 20
    (tmp_path / "a.parquet").write_bytes(data)
    assert parquet_files.read_table(tmp_path / "a.parquet", ["frame_index"], 1).num_rows == 5
    with pytest.raises(OSError):
        parquet_files.read_table(tmp_path / "a.parquet", ["frame_index"], 0)


def test_what_is_not_there_or_too_much_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "a.parquet"
    write(file)
    with pytest.raises(KeyError, match="voltage"):
        parquet_files.read_table(file, ["voltage"])
    monkeypatch.setattr(limits, "VALUES", 39)
    with pytest.raises(limits.LimitError, match="40 values in a column; expected at most 39"):
        parquet_files.read_table(file)
    assert parquet_files.read_table(file, ["action"], 1).num_rows == 5, "no more than what is read counts"


def test_a_footer_with_any_byte_changed_is_read_or_raises(tmp_path):
    """In a process apart, as pyarrow ended it at some of these, and waited for ever at others."""
    write(tmp_path / "a.parquet", episodes=1, columns=("episode_index", "frame_index", "action"))
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path / "a.parquet")],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    read, refused = map(int, done.stdout.split())
    assert read > 100 and refused > 100


def change_each_byte(file):
    whole = file.read_bytes()
    length, _ = parquet_files.TAIL.unpack(whole[-parquet_files.TAIL.size :])
    counts = [0, 0]
    for place in range(len(whole) - parquet_files.TAIL.size - length, len(whole)):
        for value in VALUES:
            file.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
            try:
                parquet_files.read_table(file, ["action", "frame_index"], 0)
                counts[0] += 1
            except Exception:  # of many kinds; each reader names it
                counts[1] += 1
    print(*counts)


if __name__ == "__main__":
    change_each_byte(Path(sys.argv[1]))
