# SPDX-License-Identifier: Apache-2.0
"""Makes the film of the README from the demo's: python tools/pictures.py FILM.mp4 PICTURE.webp

A GIF-like WebP that a page of the repository shows by itself; at most 1 MB, which is checked.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import av
from PIL import Image

WIDTH = 880  # pixels
RATE = 7.5  # pictures a second
MOST = 1_000_000  # bytes


def main() -> None:
    """Read the film, and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("film", type=Path, help="film.mp4 of xvla demo")
    parser.add_argument("picture", type=Path, help="file to write, .webp")
    parser.add_argument("--start", type=float, default=0.0, help="second of the film to begin at (default 0)")
    parser.add_argument("--seconds", type=float, default=12.0, help="length in seconds (default 12)")
    arguments = parser.parse_args()
    pictures = _pictures(arguments.film, arguments.start, arguments.seconds)
    if not pictures:
        parser.error(f"{arguments.film} ends before second {arguments.start:g}")
    for quality in (60, 45, 30):
        pictures[0].save(
            arguments.picture, save_all=True, append_images=pictures[1:], duration=round(1000 / RATE), loop=0,
            quality=quality, method=4,
        )  # fmt: skip
        size = arguments.picture.stat().st_size
        if size <= MOST:
            print(f"{arguments.picture}: {len(pictures)} pictures, quality {quality}, {size / 1e6:.2f} MB")
            return
    raise SystemExit(f"{arguments.picture}: {size / 1e6:.2f} MB at quality {quality}; give fewer --seconds")


def _pictures(film: Path, start: float, seconds: float) -> list[Image.Image]:
    found: list[Image.Image] = []
    with av.open(str(film)) as container:
        for frame in container.decode(video=0):
            if frame.time is not None and start + len(found) / RATE <= frame.time < start + seconds:
                picture = frame.to_image()
                height = round(picture.height * WIDTH / picture.width)
                found.append(picture.resize((WIDTH, height), Image.Resampling.LANCZOS))
    return found


if __name__ == "__main__":
    main()
