"""Films: pictures of several environments side by side, with captions, into an MP4 or a GIF."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fasta2c.errors import RunError, UserError
from fasta2c.run.files import check_output, temporary_beside

SUFFIXES = (".mp4", ".gif")
# Smaller pictures are enlarged, by whole numbers so that their pixels stay square and sharp, until they are as high.
LEAST_HEIGHT = 240
CAPTION_HEIGHT = 20
GAP = 4

_CODECS: dict[str, dict[str, Any]] = {
    # Its blocks are 2 x 2; the index comes first, so that a browser can start before the end is there.
    ".mp4": {
        "codec": "libx264",
        "macro_block_size": 2,
        "output_params": ["-f", "mp4", "-crf", "20", "-movflags", "+faststart"],
    },
    # 256 colours anew for each picture: few games have more.
    ".gif": {
        "codec": "gif",
        "pix_fmt_out": "pal8",
        "macro_block_size": 1,
        "output_params": [
            "-f",
            "gif",
            "-filter_complex",
            "split[a][b];[a]palettegen=stats_mode=single[p];[b][p]paletteuse=new=1:dither=none",
        ],
    },
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
        self._writer: Any = None

    def add(self, picture: NDArray[np.uint8]) -> None:
        """Append a picture [height, width, 3]. Raises `RunError` where the disk refuses."""
        try:
            if self._writer is None:
                self._writer = self._open(picture.shape[1], picture.shape[0])
            self._writer.send(np.ascontiguousarray(_even(picture)))
        except OSError as error:
            raise self._refused(error) from None
        self.pictures += 1

    def __enter__(self) -> Film:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._writer is not None:
                self._writer.close()
            if kind is None and self.pictures:
                if not self._temporary.stat().st_size:
                    raise OSError("ffmpeg wrote nothing")
                os.replace(self._temporary, self.path)
        except OSError as refusal:
            if kind is None:
                raise self._refused(refusal) from None
        finally:
            with contextlib.suppress(OSError):
                self._temporary.unlink()

    def _open(self, width: int, height: int) -> Any:
        import imageio_ffmpeg

        writer = imageio_ffmpeg.write_frames(
            self._temporary,
            (width + width % 2, height + height % 2),
            fps=self.fps,
            quality=None,
            ffmpeg_log_level="error",
            **_CODECS[self.path.suffix.lower()],
        )
        writer.send(None)
        return writer

    def _refused(self, error: OSError) -> RunError:
        told = error.strerror or str(error).strip().splitlines()[-1][:200]
        return RunError(f"{self.path} cannot be written ({told}).")


def tiled(pictures: NDArray[np.uint8], captions: Sequence[str]) -> NDArray[np.uint8]:
    """Pictures [E, height, width, 3] side by side in rows, each above its caption, as one [height, width, 3].

    Small ones are enlarged; an empty caption takes no room where all are empty.
    """
    count, height, width, _ = pictures.shape
    scale = max(1, math.ceil(LEAST_HEIGHT / height))
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
