"""Films: pictures of several environments side by side, with captions, into an MP4 or a GIF."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np
from numpy.typing import NDArray

from fasta2c.errors import RunError, UserError, reason
from fasta2c.run.files import check_output, temporary_beside

SUFFIXES = (".mp4", ".gif")
# Smaller pictures are enlarged, by whole numbers so that their pixels stay square and sharp, until they are as high or
# as wide.
LEAST_HEIGHT = 240
MOST_WIDTH = 1920
CAPTION_HEIGHT = 20
GAP = 4

_CODECS = {
    # Its index comes first, so that a browser can start before the end is there.
    ".mp4": ("-f", "mp4", "-codec", "libx264", "-pix_fmt", "yuv420p", "-crf", "20", "-movflags", "+faststart"),
    # 256 colours anew for each picture: few games have more.
    ".gif": (
        *("-f", "gif", "-filter_complex"),
        "split[a][b];[a]palettegen=stats_mode=single[p];[b][p]paletteuse=new=1:dither=none",
    ),
}


def check_film(path: Path) -> None:
    """Raise `UserError` where no film can be written to `path`: another kind of file, no folder, or no ffmpeg."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path} must end in {' or '.join(SUFFIXES)}.")
    check_output(path)
    check_ffmpeg()


def check_ffmpeg() -> None:
    """Raise `UserError` where there is nothing to write films by."""
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        raise UserError("films are written by imageio-ffmpeg: pip install '.[video]' in its source folder.")


def gif(pictures: Iterable[NDArray[np.uint8]], fps: float) -> bytes:
    """A GIF of pictures [height, width, 3]. Raises `RunError` where the disk refuses."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "film.gif")
        with Film(path, fps) as film:
            for picture in pictures:
                film.add(picture)
        return path.read_bytes()


class Film:
    """Writes pictures of one size to `path` as they come; the file is there, whole, once its `with` has ended well.

    Args:
        path: `.mp4` or `.gif`; what was there is replaced at the end.
        fps: pictures a second.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path = path
        self.fps = fps
        self.pictures = 0
        self._temporary = temporary_beside(path)
        self._ffmpeg: subprocess.Popen[bytes] | None = None
        self._complaints: IO[bytes] | None = None

    def add(self, picture: NDArray[np.uint8]) -> None:
        """Append a picture [height, width, 3]. Raises `RunError` where the disk refuses."""
        try:
            if self._ffmpeg is None:
                self._ffmpeg = self._start(picture.shape[1], picture.shape[0])
            assert self._ffmpeg.stdin is not None
            self._ffmpeg.stdin.write(_even(picture).tobytes())
        except BrokenPipeError:
            raise self._refused(self._complaint() or "ffmpeg has ended before its pictures") from None
        except OSError as error:
            raise self._refused(reason(error)) from None
        self.pictures += 1

    def __enter__(self) -> Film:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._ffmpeg is not None:
                if complaint := self._complaint():
                    raise self._refused(complaint)
                os.replace(self._temporary, self.path)
        except OSError as refusal:
            raise self._refused(reason(refusal)) from None
        finally:
            if self._ffmpeg is not None:
                self._ffmpeg.kill()
                self._ffmpeg.communicate()
            if self._complaints is not None:
                self._complaints.close()
            with contextlib.suppress(OSError):
                self._temporary.unlink()

    def _start(self, width: int, height: int) -> subprocess.Popen[bytes]:
        import imageio_ffmpeg

        size = f"{width + width % 2}x{height + height % 2}"
        pace = str(Fraction(self.fps).limit_denominator())
        taken = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", pace, "-i", "-")
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the film)
        made = (*_CODECS[self.path.suffix.lower()], f"file:{self._temporary}")
        return subprocess.Popen(
            [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", *taken, *made],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._complaints,
            start_new_session=True,  # a Ctrl-C is for us
        )

    def _complaint(self) -> str:
        """Wait for ffmpeg's end; what it complains of, empty for nothing."""
        assert self._ffmpeg is not None and self._ffmpeg.stdin is not None and self._complaints is not None
        with contextlib.suppress(BrokenPipeError):
            self._ffmpeg.stdin.close()
        if not (code := self._ffmpeg.wait()):
            return ""
        self._complaints.seek(0)
        first = self._complaints.readline(300).decode(errors="replace")  # what follows comes of it
        return re.sub(r"^(\[[^]]*\] *)+", "", first).strip() or f"ffmpeg has ended with code {code}"

    def _refused(self, told: str) -> RunError:
        return RunError(f"{self.path} cannot be written ({told}).")


def tiled(pictures: NDArray[np.uint8], captions: Sequence[str]) -> NDArray[np.uint8]:
    """Pictures [E, height, width, 3] side by side in rows, each above its caption, as one [height, width, 3].

    Small ones are enlarged; an empty caption takes no room where all are empty.

    Raises:
        UserError: the pictures have no pixels.
    """
    count, height, width, _ = pictures.shape
    if not height or not width:
        raise UserError(f"the environment draws pictures without pixels, {width} x {height}.")
    scale = max(1, min(math.ceil(LEAST_HEIGHT / height), MOST_WIDTH // width))
    tiles = pictures.repeat(scale, axis=1).repeat(scale, axis=2)
    if any(captions):
        strips = np.stack([_caption(text, width * scale) for text in captions])
        tiles = np.concatenate([tiles, strips], axis=1)
    columns = min(count, math.ceil(math.sqrt(count * tiles.shape[1] / tiles.shape[2])))  # nearly square in all
    rows = math.ceil(count / columns)
    tile_height, tile_width = tiles.shape[1] + GAP, tiles.shape[2] + GAP
    whole = np.zeros((rows * tile_height - GAP, columns * tile_width - GAP, 3), np.uint8)
    for number, tile in enumerate(tiles):
        top, left = number // columns * tile_height, number % columns * tile_width
        whole[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return whole


def _caption(text: str, width: int) -> NDArray[np.uint8]:
    """`text`, white on black [CAPTION_HEIGHT, width, 3]."""
    from PIL import Image, ImageDraw, ImageFont

    strip = Image.new("RGB", (width, CAPTION_HEIGHT))
    ImageDraw.Draw(strip).text((4, 2), text, fill="white", font=ImageFont.load_default(size=13))
    return np.asarray(strip)


def _even(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`picture` with a black line added where its sides are odd, which MP4 does not take."""
    height, width, _ = picture.shape
    return np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)))
