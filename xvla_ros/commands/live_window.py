"""A window that shows the film of a run while it happens. Nothing depends on it: without a display there is none."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xvla_ros.errors import XvlaError
from xvla_ros.nodes.recording import RecordingReader

if TYPE_CHECKING:
    from xvla_ros.robots.profile import Profile

PERIOD = 0.2  # s; five pictures a second leave the processor to the policy
SECONDS_KEPT = 7.0
OUTCOMES_KEPT = 32  # of the episodes in those seconds, and some more
NANOSECONDS = 1e9


class WindowError(XvlaError, RuntimeError):
    """A window was asked for and cannot be had."""


@contextlib.contextmanager
def open_window(wanted: bool | None, recording: Path, profile: Profile) -> Iterator[Callable[[], None]]:
    """Open the window and yield the function that refreshes it, to be called often from the main thread.

    Args:
        wanted: True needs a window, False wants none, None takes one where it can be had.
        recording: folder that the watching node writes.

    Raises:
        WindowError: ``wanted`` is True and there is no display or no tkinter.
    """
    window = None
    if wanted is not False:
        try:
            window = _Window(recording, profile)
        except WindowError:
            if wanted:
                raise
    try:
        yield window.refresh if window else _nothing
    finally:
        if window:
            window.close()


def require_display() -> None:
    """Check that a display is named.

    Raises:
        WindowError: none is.
    """
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise WindowError("a window was asked for, but there is no display (DISPLAY is not set)")


def _nothing() -> None:
    return


class _Window:
    """A Tk window. The user may close it; the run goes on."""

    def __init__(self, recording: Path, profile: Profile) -> None:
        self._root, self._label = _open_tk(f"xvla demo: {profile.name}")
        self._source = _LiveFrames(recording, profile)
        self._photo: Any = None
        self._next = 0.0
        self._root.protocol("WM_DELETE_WINDOW", self.close)

    def refresh(self) -> None:
        """Draw the newest frame when it is time to, and let the window answer to its user."""
        if self._root is None or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + PERIOD
        from tkinter import TclError

        try:
            self._draw(self._source.frame())
        except TclError:  # the display went away; the run does not need it
            self.close()

    def close(self) -> None:
        """Close the window; harmless when it is closed already."""
        from tkinter import TclError

        root, self._root = self._root, None
        if root is not None:
            self._source.close()
            with contextlib.suppress(TclError):
                root.destroy()

    def _draw(self, frame: Any) -> None:
        from PIL import Image, ImageTk

        if frame is not None:
            self._photo = ImageTk.PhotoImage(Image.fromarray(frame), master=self._root)
            self._label.configure(image=self._photo)
        self._root.update()


class _LiveFrames:
    """Film frames from the last seconds of a growing recording."""

    def __init__(self, recording: Path, profile: Profile) -> None:
        self._profile = profile
        self._reader = RecordingReader(recording)
        self._records: deque[dict[str, Any]] = deque()
        self._start = 0
        self._pictures: dict[str, dict[str, Any]] = {}
        self._diagnostics: dict[str, str] = {}
        self._status: dict[str, Any] | None = None
        self._outcomes: deque[dict[str, Any]] = deque(maxlen=OUTCOMES_KEPT)
        self._composers: dict[bool, Any] = {}

    def frame(self) -> Any:
        """The newest frame, uint8 [H, W, 3] RGB, or None before there is something to show."""
        from xvla_ros.evaluation.report.film import decode
        from xvla_ros.evaluation.report.film_frame import Composer, Scene
        from xvla_ros.evaluation.report.recording import gather

        self._take_in()
        if not self._records or not self._start:
            return None
        trained = self._diagnostics.get("trained") == "true"
        if trained not in self._composers:
            self._composers[trained] = Composer(Scene.of(self._profile, trained=trained))
        now = (self._records[-1]["time"] - self._start) / NANOSECONDS
        recent = [*self._records, *self._outcomes, *([self._status] if self._status else [])]
        seen = gather(recent, self._profile, start=self._start)
        views = {camera: decode(self._reader.picture(record)) for camera, record in self._pictures.items()}
        shown = {camera: view for camera, view in views.items() if view is not None}
        status = seen.statuses[-1] if seen.statuses else None
        return self._composers[trained].frame(now, shown, status, seen.measured, seen.commanded, seen.episodes)

    def close(self) -> None:
        self._reader.close()

    def _take_in(self) -> None:
        for record in self._reader.new():
            kind = record["kind"]
            if kind == "image":
                self._pictures[record["camera"]] = record
            elif kind == "status":
                self._status = record
            elif kind == "outcome":
                self._outcomes.append(record)
            elif kind == "diagnostics":
                self._diagnostics = record["values"]
            elif kind in ("joints", "command"):
                self._records.append(record)
                if kind == "command" and not self._start:
                    self._start = record["time"]
        while self._records and self._records[-1]["time"] - self._records[0]["time"] > SECONDS_KEPT * NANOSECONDS:
            self._records.popleft()


def _open_tk(title: str) -> tuple[Any, Any]:
    require_display()
    try:
        import tkinter

        from PIL import ImageTk  # noqa: F401 - missing in some builds of Pillow
    except ImportError as error:
        raise WindowError(f"a window needs tkinter and Pillow's ImageTk: {error}; install python3-tk") from error
    try:
        root = tkinter.Tk()
    except tkinter.TclError as error:
        raise WindowError(f"the display {os.environ.get('DISPLAY')} cannot be opened: {error}") from error
    root.title(title)
    label = tkinter.Label(root, borderwidth=0)
    label.pack()
    return root, label
