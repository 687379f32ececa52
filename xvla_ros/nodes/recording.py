"""Files of one watched run: written by ``watch_node`` while it runs, read by the film and the report. No rclpy here.

A recording is a folder with two files, both append-only, so that they can be read while they grow and keep every whole
record when the writer is killed:

* ``records.jsonl``: one JSON object a line with ``kind``, ``time`` (ROS time, ns, when the message was received) and
  the fields below.
* ``images.bin``: the pictures, JPEG or PNG, one after the other.

===========  ==========================================================================================
kind         fields
===========  ==========================================================================================
joints       topic, stamp (ns), names, positions (rad, m; null where not finite)
command      topic, names, points [[s from start, [positions]], …] (the first two only), horizon (s)
chunk        stamp (ns), times (s), width, actions (row-major, policy units), inference_ms, instruction, action_mode
status       state, reason, detail, instruction, chunks, trajectories, dropped_chunks, holds, limited_points
diagnostics  values {key: text} of the policy for this robot
image        camera, stamp (ns), offset, size (bytes in images.bin)
outcome      what a simulation says of an episode of a task, see ``task_server``
===========  ==========================================================================================
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

RECORDS = "records.jsonl"
IMAGES = "images.bin"
PROGRESS = "PROGRESS "


def read_progress(line: str) -> dict[str, Any] | None:
    """Return the progress object of a line that the watching node printed, or None for any other line.

    Keys: time (ns of ROS time, 0 before the first /clock), start (ns of the first command, 0 before), elapsed (s of
    ROS time since), done, chunks, trajectories, state, reason, detail, episodes (those that are over, as the records
    ``outcome``).
    """
    if not line.startswith(PROGRESS):
        return None
    progress: dict[str, Any] = json.loads(line[len(PROGRESS) :])
    return progress


class RecordingWriter:
    """Appends records and pictures to a recording folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._records = (folder / RECORDS).open("w", encoding="utf-8")
        self._images = (folder / IMAGES).open("wb")

    def add(self, kind: str, time: int, **fields: object) -> None:
        """Append one record."""
        self._records.write(json.dumps({"kind": kind, "time": time, **fields}, allow_nan=False) + "\n")

    def add_image(self, time: int, camera: str, stamp: int, picture: bytes) -> None:
        """Append one encoded picture and its record."""
        offset = self._images.tell()
        self._images.write(picture)
        self._images.flush()
        self.add("image", time, camera=camera, stamp=stamp, offset=offset, size=len(picture))

    def flush(self) -> None:
        """Make everything added so far visible to readers."""
        self._records.flush()

    def close(self) -> None:
        """Write out and close both files."""
        self._records.close()
        self._images.close()


class RecordingReader:
    """Reads a recording folder, also while it grows."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._records: BinaryIO = (folder / RECORDS).open("rb")
        self._images: BinaryIO = (folder / IMAGES).open("rb")

    def new(self) -> Iterator[dict[str, Any]]:
        """Yield every whole record that no earlier call yielded."""
        while True:
            start = self._records.tell()
            line = self._records.readline()
            if not line.endswith(b"\n"):
                self._records.seek(start)
                return
            yield json.loads(line)

    def picture(self, record: dict[str, Any]) -> bytes:
        """Return the encoded picture of an ``image`` record."""
        self._images.seek(record["offset"])
        return self._images.read(record["size"])

    def close(self) -> None:
        """Close both files."""
        self._records.close()
        self._images.close()

    def __enter__(self) -> RecordingReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
