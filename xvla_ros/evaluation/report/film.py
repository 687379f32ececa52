# SPDX-License-Identifier: Apache-2.0
"""The film of a run: cameras side by side, what the policy is doing, every joint as measured and commanded.

Where a simulation has drawn it, the view of somebody beside the table is its largest picture.

Its time is ROS time, whatever the speed of the simulation was. A frame is composed of a background that never changes
(drawn once) and of what moves: views, curves, state, time.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xvla_ros.errors import EvaluationError, MessageError
from xvla_ros.evaluation.report.recording import RunEpisode, RunRecording, Series, StatusRecord, at
from xvla_ros.observation.images import IMAGE_TYPES, view_of
from xvla_ros.recordings.bags import Bag
from xvla_ros.recordings.cdr import peek_stamp
from xvla_ros.recordings.observations import decode_image
from xvla_ros.types import BESIDE, NS

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

    from xvla_ros.robots.profile import Profile


Image = NDArray[np.uint8]
Box = tuple[int, int, int, int]
Colour = tuple[int, int, int]

WIDTH, HEIGHT, MARGIN = 1280, 720, 16
TITLE_HEIGHT, LABEL_HEIGHT, CAPTION_HEIGHT = 64, 44, 22
LEGEND_HEIGHT = 30
PLOT_HEIGHT = 84
VIEW_WIDTH = 256
BESIDE_SHAPE = 16 / 9  # width by height of the view BESIDE
BESIDE_CAPTION = "from beside the table (the policy does not see this)"
EDGE = 6
MOST_COLUMNS = 8
SECONDS_SHOWN = 6.0
LEAST_SPAN = 0.3  # rad or m: a joint that stands still is drawn as a line, not as its noise

BACKGROUND, PANEL, GRID = (17, 21, 28), (27, 33, 43), (52, 61, 76)
INK, FAINT = (236, 240, 246), (146, 157, 174)
MEASURED, COMMANDED = (92, 200, 255), (255, 176, 72)
STATE_COLOURS = {  # ``INK`` on them has a contrast of 4.5 and more (WCAG AA)
    "running": (24, 116, 66),
    "holding": (150, 88, 0),
    "stopped": (186, 44, 44),
    "inactive": (96, 106, 122),
}
DONE_COLOUR, FAILED_COLOUR = (24, 116, 66), (186, 44, 44)
UNTRAINED_COLOUR = (196, 46, 92)
UNTRAINED_LABEL = "UNTRAINED: random weights, the motion is meaningless"

RATE = 15  # pictures a second


def write_film(
    bag: Path, recording: RunRecording, profile: Profile, scene: FilmedRun, path: Path, rate: int = RATE
) -> str:
    """Write the film of a recording to ``path`` (MP4), with the pictures of its bag; return the name of the codec.

    H.264 where PyAV has an encoder for it, else MPEG-4 part 2.

    Raises:
        EvaluationError: no encoder, or nothing to show.
    """
    if not recording.start:
        raise EvaluationError("there is nothing to show in a film: no data of the robot was recorded")
    views = _Views(bag, profile, recording)
    composer = Composer(replace(scene, beside=bool(recording.beside)))
    times = [record.time for record in recording.statuses]

    def frames() -> Iterator[Image]:
        for index in range(max(1, int(recording.duration * rate))):
            time = index / rate
            newest = bisect.bisect_right(times, time)
            status = recording.statuses[newest - 1] if newest else None
            episode = at(recording.episodes, time)
            shown = views.at(time, episode.begun if episode is not None else -math.inf)
            yield composer.frame(time, shown, status, recording.measured, recording.commanded, recording.episodes)

    return encode(frames(), path, rate=rate)


def write_view_film(bag: Path, path: Path, words: str) -> None:
    """Write the film of a bag that has nothing but the view from beside the table, with words below it.

    Raises:
        BagError, EvaluationError: what cannot be read or written.
    """
    from xvla_ros.robots.profile.schema import Camera

    kind = IMAGE_TYPES["compressed"]
    seen = [message for message in Bag(bag).messages() if message.type == kind]
    camera = Camera(topic=seen[0].topic, transport="compressed")
    times = [(message.log_time - seen[0].log_time) / NS for message in seen]

    def frames() -> Iterator[Image]:
        for index in range(int(times[-1] * RATE) + 1):
            time = index / RATE
            newest = seen[bisect.bisect_right(times, time + 0.001) - 1]
            yield side_by_side({BESIDE: decode_image(newest.data, camera)}, f"{time:4.1f} s  {words}")

    encode(frames(), path, rate=RATE)


def encode(frames: Iterable[Image], path: Path, *, rate: int) -> str:
    """Write pictures of one size, uint8 [H, W, 3] RGB with even sides, as a film; return the name of the codec.

    Raises:
        EvaluationError: no encoder, or the file cannot be written.
    """
    import av

    codec, options = _encoder(av)
    try:
        with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
            stream: Any = container.add_stream(codec, rate=rate, options=options)
            stream.pix_fmt = "yuv420p"
            for index, image in enumerate(frames):
                if not index:
                    stream.height, stream.width = image.shape[:2]
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode(None))
    except (OSError, av.error.FFmpegError) as error:
        raise EvaluationError(f"the film {path} cannot be written: {error}") from error
    return codec


def side_by_side(views: Mapping[str, Image], words: str) -> Image:
    """Return pictures of cameras in a row, each with its name below, and words below them: uint8 [H, W, 3] RGB.

    Args:
        views: slot, or ``BESIDE``, → uint8 [H, W, 3] RGB, in the order of the row; at least one.
        words: cut where they are too long.
    """
    from PIL import Image as Pictures
    from PIL import ImageDraw

    widths = [row_width([name]) for name in views]
    starts, width = np.cumsum([0, *widths]).tolist(), sum(widths)
    canvas = np.full((ROW_HEIGHT, width, 3), BACKGROUND, np.uint8)
    for start, wide, view in zip(starts, widths, views.values(), strict=False):
        _place(canvas, (start, 0, wide, VIEW_WIDTH), view)
    picture = Pictures.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    for start, name in zip(starts, views, strict=False):
        draw.text((start + 6, VIEW_WIDTH + 2), caption(name), font=font(13, bold=True), fill=INK)
    bottom = VIEW_WIDTH + CAPTION_HEIGHT + 1
    draw.text((6, bottom), _shorten(draw, words, width - 12, 13), font=font(13), fill=INK)
    return np.asarray(picture)


ROW_HEIGHT = VIEW_WIDTH + 2 * CAPTION_HEIGHT


def row_width(views: Iterable[str]) -> int:
    """Return how wide ``side_by_side`` makes a row of these views, in pixels; its height is ``ROW_HEIGHT``."""
    return sum(2 * round(VIEW_WIDTH * BESIDE_SHAPE / 2) if name == BESIDE else VIEW_WIDTH for name in views)


def caption(view: str) -> str:
    """Return what is written at a view: the camera with its side, or that no policy sees it."""
    return BESIDE_CAPTION if view == BESIDE else f"{view.replace('_', ' ')} camera"


def read_frame(path: Path, time: float) -> Image:
    """Return the frame of the film at ``time`` s: uint8 [H, W, 3] RGB; the last one if the film is shorter."""
    import av

    found = None
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            found = frame
            if frame.time is not None and frame.time >= time:
                break
    if found is None:
        raise EvaluationError(f"the film {path} contains no frame")
    return np.asarray(found.to_ndarray(format="rgb24"), dtype=np.uint8)


class _Views:
    """The newest picture of every camera at rising times, as a policy sees it; only pictures shown are decoded."""

    def __init__(self, bag: Path, profile: Profile, recording: RunRecording) -> None:
        from xvla_ros.robots.profile.schema import Camera

        self._cameras = dict(profile.cameras.by_name)
        self._names = {topic: list(slots) for topic, slots in profile.cameras.by_topic.items()}
        if recording.beside:
            self._cameras[BESIDE] = Camera(topic=recording.beside, transport="compressed")
            self._names[recording.beside] = [BESIDE]
        self._start = recording.start
        self._messages = Bag(bag).messages(set(self._names))
        self._next = next(self._messages, None)
        self._undecoded: dict[str, bytes] = {}
        self._shown: dict[str, tuple[float, Image]] = {}

    def at(self, time: float, begun: float) -> dict[str, Image]:
        """Return the pictures of ``time``, none from before ``begun`` once one of that episode has come."""
        while self._next is not None and self._due(self._next.data) <= time:
            for name in self._names[self._next.topic]:
                self._undecoded[name] = self._next.data
            self._next = next(self._messages, None)
        for name, data in self._undecoded.items():
            camera = self._cameras[name]
            with suppress(MessageError):  # the picture before it stays
                self._shown[name] = self._due(data), view_of(decode_image(data, camera), camera)
        self._undecoded.clear()
        if any(due >= begun for due, _ in self._shown.values()):
            self._shown = {name: seen for name, seen in self._shown.items() if seen[0] >= begun}
        return {name: view for name, (_, view) in self._shown.items()}

    def _due(self, data: bytes) -> float:
        try:
            return (peek_stamp(data) - self._start) / NS
        except MessageError:
            return -math.inf


def _encoder(av: Any) -> tuple[str, dict[str, str]]:
    choices = (
        ("libx264", {"preset": "veryfast", "crf": "21"}),
        ("libopenh264", {"b": "2500000"}),
        ("mpeg4", {"qscale": "4"}),
    )
    for name, options in choices:
        try:
            av.Codec(name, "w")
        except ValueError:  # av.codec.codec.UnknownCodecError
            continue
        return name, options
    raise EvaluationError("PyAV has neither an H.264 nor an MPEG-4 encoder; install the av wheel from PyPI")


@dataclass(frozen=True)
class FilmedRun:
    """What of a run does not change from frame to frame.

    Attributes:
        trained: None where no policy runs.
        instruction: that of the robot, where neither a policy nor an episode says one.
        beside: whether there is the view from beside the table.
    """

    robot: str
    trained: bool | None
    cameras: tuple[str, ...]
    joints: tuple[str, ...]
    instruction: str = ""
    beside: bool = False

    @property
    def labelled(self) -> bool:
        """Whether every frame says that the weights are random."""
        return self.trained is False

    @classmethod
    def of(cls, profile: Profile, *, trained: bool | None) -> FilmedRun:
        """Return the scene of one robot, with the joints it commands, in the order of its groups."""
        groups = profile.commands.groups
        joints = tuple(joint for group in groups for joint in profile.commands.by_name[group].joints)
        told = profile.instruction if trained is None else ""
        return cls(profile.name, trained, tuple(profile.cameras.slots), joints, told)


class Composer:
    """Draws frames of one scene: uint8 [720, 1280, 3] RGB."""

    def __init__(self, scene: FilmedRun) -> None:
        self.scene = scene
        self._views = _view_boxes(scene)
        self._plots = _plot_boxes(scene)
        self._background = self._draw_background()

    def frame(
        self,
        time: float,
        views: dict[str, Image],
        status: StatusRecord | None,
        measured: dict[str, Series],
        commanded: dict[str, Series],
        episodes: Sequence[RunEpisode] = (),
    ) -> Image:
        """Draw the frame of ``time`` (s since the first command).

        Args:
            views: newest picture of each camera, uint8 [H, W, 3] RGB; a missing one stays empty.
            status: newest report of the policy.
            measured, commanded: the whole curves; only the seconds before ``time`` are drawn.
            episodes: of a task. A result is shown from the episode's end to the next reset; curves break at resets.
        """
        canvas = self._background.copy()
        episode, resets = at(episodes, time), tuple(each.begun for each in episodes)
        ended = None
        if episode is not None and episode.success is not None and episode.ended is not None and episode.ended <= time:
            ended = episode
        for camera, box in self._views.items():
            if camera in views:
                _place(canvas, box, views[camera])
        if ended is not None:
            _draw_edges(canvas, self._views.values(), DONE_COLOUR if ended.success else FAILED_COLOUR)
        for joint, box in self._plots.items():
            curves = commanded.get(joint), measured.get(joint)
            shown = _shown_range(*curves)
            for curve, colour, thickness in ((curves[1], MEASURED, 2), (curves[0], COMMANDED, 1)):
                for part in curve.stretches(resets) if curve is not None else ():
                    _draw_curve(canvas, box, part, time, shown, colour, thickness=thickness)
        # a policy that is not active does not publish its instruction
        told = episode.instruction if episode is not None else status.instruction if status is not None else ""
        told = told or self.scene.instruction
        return self._draw_words(canvas, time, status, told, ended, measured)

    def _draw_background(self) -> Image:
        from PIL import Image as Pictures
        from PIL import ImageDraw

        picture = Pictures.new("RGB", (WIDTH, HEIGHT), BACKGROUND)
        draw = ImageDraw.Draw(picture)
        draw.text((MARGIN, 6), self.scene.robot, font=font(24, bold=True), fill=INK)
        if self.scene.labelled:
            box = (0, TITLE_HEIGHT, WIDTH, TITLE_HEIGHT + LABEL_HEIGHT)
            draw.rectangle(box, fill=UNTRAINED_COLOUR)
            centre = (WIDTH / 2, TITLE_HEIGHT + LABEL_HEIGHT / 2)
            draw.text(centre, UNTRAINED_LABEL, font=font(25, bold=True), fill=INK, anchor="mm")
        for camera, (x, y, width, height) in self._views.items():
            draw.rectangle((x, y, x + width - 1, y + height - 1), fill=PANEL)
            draw.text((x + width / 2, y + height / 2), "no picture", font=font(15), fill=FAINT, anchor="mm")
            draw.text((x, y - CAPTION_HEIGHT + 2), caption(camera), font=font(14, bold=True), fill=INK)
        for joint, box in self._plots.items():
            _draw_plot_frame(draw, joint, box)
        self._draw_legend(draw)
        return np.asarray(picture).copy()

    def _draw_legend(self, draw: Any) -> None:
        x, y = WIDTH - MARGIN, min(y for _, y, _, _ in self._plots.values()) - LEGEND_HEIGHT + 4
        for text, colour in ((f"last {SECONDS_SHOWN:.0f} s", None), ("commanded", COMMANDED), ("measured", MEASURED)):
            x -= int(draw.textlength(text, font=font(13)))
            draw.text((x, y), text, font=font(13), fill=FAINT)
            if colour is not None:
                draw.line((x - 24, y + 9, x - 6, y + 9), fill=colour, width=3)
                x -= 24
            x -= 20

    def _draw_words(
        self,
        canvas: Image,
        time: float,
        status: StatusRecord | None,
        told: str,
        ended: RunEpisode | None,
        measured: dict[str, Series],
    ) -> Image:
        from PIL import Image as Pictures
        from PIL import ImageDraw

        picture = Pictures.fromarray(canvas)
        draw = ImageDraw.Draw(picture)
        state = status.state if status else "inactive"
        words = f"{state}: {status.reason.replace('_', ' ')}" if status and status.reason else state
        draw.text((WIDTH - MARGIN, 31), f"{max(time, 0.0):6.1f} s", font=font(24, bold=True), fill=INK, anchor="rm")
        left = WIDTH - MARGIN - 124.0
        if self.scene.trained is not None:
            left = _draw_pill(draw, left, words, STATE_COLOURS.get(state, GRID))
        if ended is not None:
            colour = DONE_COLOUR if ended.success else FAILED_COLOUR
            left = _draw_pill(draw, left - 10, f"{ended.sign} {ended.outcome}", colour)
        instruction = f"“{told}”" if told else "no instruction yet"
        draw.text((MARGIN, 38), _shorten(draw, instruction, left - 2 * MARGIN, 18), font=font(18), fill=INK)
        for joint, (x, y, width, _) in self._plots.items():
            position = _value_at(measured.get(joint), time)
            if position is not None:
                draw.text((x + width - 5, y + 3), f"{position:+.2f}", font=font(11), fill=INK, anchor="ra")
        return np.asarray(picture)


@cache
def font(size: int, *, bold: bool = False) -> FreeTypeFont:
    """Return DejaVu Sans, which matplotlib brings along."""
    from matplotlib import get_data_path
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / name), size)


def _plot_boxes(scene: FilmedRun) -> dict[str, Box]:
    count = max(1, len(scene.joints))
    rows = math.ceil(count / MOST_COLUMNS)
    columns = math.ceil(count / rows)
    width = (WIDTH - MARGIN * 2 - 8 * (columns - 1)) // columns
    top = HEIGHT - MARGIN - rows * PLOT_HEIGHT - (rows - 1) * 8
    boxes = {}
    for index, joint in enumerate(scene.joints):
        row, column = divmod(index, columns)
        boxes[joint] = (MARGIN + column * (width + 8), top + row * (PLOT_HEIGHT + 8), width, PLOT_HEIGHT)
    return boxes


def _view_boxes(scene: FilmedRun) -> dict[str, Box]:
    top = TITLE_HEIGHT + (LABEL_HEIGHT if scene.labelled else 0) + MARGIN // 2
    bottom = min((y for _, y, _, _ in _plot_boxes(scene).values()), default=HEIGHT) - LEGEND_HEIGHT
    height, left, boxes = bottom - top - CAPTION_HEIGHT, MARGIN, {}
    if scene.beside:
        # no larger than leaves a third of the width to what the policy sees
        wide = min(round(height * BESIDE_SHAPE), WIDTH * 2 // 3 - MARGIN)
        boxes[BESIDE] = (MARGIN, top + CAPTION_HEIGHT, wide, round(wide / BESIDE_SHAPE))
        left += wide + MARGIN
    count, room = max(1, len(scene.cameras)), WIDTH - left
    sides = {
        columns: min(room // columns - MARGIN, (bottom - top) // math.ceil(count / columns) - CAPTION_HEIGHT)
        for columns in range(1, count + 1)
    }
    columns = max(sides, key=lambda columns: sides[columns])
    side = sides[columns]
    space = MARGIN
    if not scene.beside:  # spread over the whole width
        space = (WIDTH - columns * side) // (columns + 1)
        left = space
    for index, camera in enumerate(scene.cameras):
        row, column = divmod(index, columns)
        above = top + CAPTION_HEIGHT + row * (side + CAPTION_HEIGHT)
        boxes[camera] = (left + column * (side + space), above, side, side)
    return boxes


def _draw_plot_frame(draw: Any, joint: str, box: Box) -> None:
    x, y, width, height = box
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=PANEL)
    middle = y + height // 2 + 9
    draw.line((x + 1, middle, x + width - 2, middle), fill=GRID)
    draw.text((x + 5, y + 3), _shorten(draw, joint.replace("_", " "), width - 52, 11), font=font(11), fill=FAINT)


def _place(canvas: Image, box: Box, view: Image) -> None:
    """Draw a picture into its box, as large as fits, in its own proportions."""
    import cv2

    x, y, width, height = box
    scale = min(width / view.shape[1], height / view.shape[0])
    columns, rows = max(1, int(view.shape[1] * scale)), max(1, int(view.shape[0] * scale))
    left, top = x + (width - columns) // 2, y + (height - rows) // 2
    canvas[y : y + height, x : x + width] = PANEL
    canvas[top : top + rows, left : left + columns] = cv2.resize(view, (columns, rows), interpolation=cv2.INTER_CUBIC)


def _draw_edges(canvas: Image, boxes: Iterable[Box], colour: Colour) -> None:
    import cv2

    for x, y, width, height in boxes:
        far = x + width - 1 - EDGE // 2, y + height - 1 - EDGE // 2
        cv2.rectangle(canvas, (x + EDGE // 2, y + EDGE // 2), far, colour, EDGE)


def _draw_pill(draw: Any, right: float, words: str, colour: Colour) -> float:
    """Draw words in the title, on a colour, up to ``right``; return where that begins."""
    left = right - 26 - float(draw.textlength(words, font=font(17, bold=True)))
    draw.rounded_rectangle((left, 14, right, 48), radius=17, fill=colour)
    draw.text(((left + right) / 2, 31), words, font=font(17, bold=True), fill=INK, anchor="mm")
    return left


def _shown_range(*curves: Series | None) -> tuple[float, float]:
    """Return the lowest and highest position of a plot: all that occurred, at least ``LEAST_SPAN`` apart."""
    found = [curve.position for curve in curves if curve is not None and curve.position.size]
    if not found:
        return -LEAST_SPAN / 2, LEAST_SPAN / 2
    low, high = min(float(values.min()) for values in found), max(float(values.max()) for values in found)
    room = max(0.0, LEAST_SPAN - (high - low)) / 2
    return low - room, high + room


def _draw_curve(
    canvas: Image, box: Box, series: Series, now: float, shown: tuple[float, float], colour: Colour, *, thickness: int
) -> None:
    """Draw the seconds before ``now``; the height of the plot spans the positions ``shown``."""
    import cv2

    first, last = np.searchsorted(series.time, [now - SECONDS_SHOWN, now])
    if last - first < 2:
        return
    x, y, width, height = box
    low, high = shown
    across = x + 2 + (width - 4) * (series.time[first:last] - now + SECONDS_SHOWN) / SECONDS_SHOWN
    down = y + height - 6 - (height - 30) * (series.position[first:last] - low) / (high - low)
    # in 1/16 pixel: without it slow curves look like stairs
    points = np.rint(np.stack([across, down], axis=1) * 16).astype(np.int32).reshape(-1, 1, 2)
    cv2.polylines(canvas, [points], False, colour, thickness, cv2.LINE_AA, 4)


def _value_at(series: Series | None, time: float) -> float | None:
    if series is None:
        return None
    index = int(np.searchsorted(series.time, time, side="right")) - 1
    return float(series.position[index]) if index >= 0 else None


def _shorten(draw: Any, text: str, width: float, size: int = 15) -> str:
    length: Callable[[str], float] = lambda words: float(draw.textlength(words, font=font(size)))  # noqa: E731
    if length(text) <= width:
        return text
    while text and length(text + "…") > width:
        text = text[:-1]
    return text + "…"
