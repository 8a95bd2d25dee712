"""Films hold the pictures they were given, whole or not at all."""

import errno
import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from fasta2c.errors import RunError, UserError
from fasta2c.run import film
from fasta2c.run.film import CAPTION_HEIGHT, GAP, Film, check_film, tiled


def frames(path):
    reader = imageio_ffmpeg.read_frames(path)
    width, height = (told := next(reader))["size"]
    return told, [np.frombuffer(data, np.uint8).reshape(height, width, 3) for data in reader]


def pictures(count, height=60, width=81):
    """A white bar that wanders over green, from picture to picture."""
    made = np.zeros((count, height, width, 3), np.uint8)
    made[..., 1] = 120
    for number, picture in enumerate(made):
        picture[:, 8 * number : 8 * number + 8] = 255
    return made


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".MP4"])
def test_what_is_written_is_what_is_seen(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    given = pictures(9)
    with Film(path, 10.0) as made:
        for picture in given:
            made.add(picture)
    told, seen = frames(path)
    assert told["fps"] == 10.0 and len(seen) == 9
    off = [np.abs(a[:60, :81].astype(int) - b).mean() for a, b in zip(seen, given, strict=True)]
    assert max(off) < 12
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_film_that_is_not_finished_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), Film(path, 10.0) as made:
        made.add(pictures(1)[0])
        raise KeyboardInterrupt
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_disk_that_refuses_is_told_in_words(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(film.os, "replace", full)
    with (
        pytest.raises(RunError, match=r"a\.gif cannot be written \(No space left on device\)"),
        Film(tmp_path / "a.gif", 10.0) as made,
    ):
        made.add(pictures(1)[0])
    assert not list(tmp_path.iterdir())


WRITES = """
import resource, sys, numpy as np
from pathlib import Path
from fasta2c.errors import RunError
from fasta2c.run.film import Film
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
noise = np.random.default_rng(0)
try:
    with Film(Path(sys.argv[1]), 30.0) as made:
        for _ in range(200):
            made.add(noise.integers(0, 255, (240, 320, 3), dtype=np.uint8))
except RunError as error:
    print(error)
"""


@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
def test_a_full_disk_ends_a_film_in_words(tmp_path, name):
    """The limit is ffmpeg's too, which dies of it."""
    done = subprocess.run([sys.executable, "-c", WRITES, tmp_path / name], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path / name} cannot be written (") and len(done.stdout.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_film_that_ffmpeg_could_not_finish_leaves_the_old_one(tmp_path, monkeypatch):
    """A disk that is full only at the end: all pictures were taken, and the file cannot be played."""
    ffmpeg = tmp_path / "ffmpeg"
    ffmpeg.write_text(
        '#!/bin/sh\nfor last; do :; done\ncat > "${last#file:}"\n'
        'echo "[out#0/mp4 @ 0x1] Error writing trailer: No space left on device" >&2\necho more >&2\nexit 228\n'
    )
    ffmpeg.chmod(0o755)
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(ffmpeg))
    path = tmp_path / "a.mp4"
    path.write_text("old")
    told = r"a\.mp4 cannot be written \(Error writing trailer: No space left on device\)\.$"
    with pytest.raises(RunError, match=told), Film(path, 10.0) as made:
        made.add(pictures(1)[0])
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["-a.mp4", "a:b.gif", "%d.mp4", "ä b.gif"])
def test_any_name_will_do(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with Film(Path(name), 10.0) as made:
        made.add(pictures(1)[0])
    assert [p.name for p in tmp_path.iterdir()] == [name] and Path(name).stat().st_size > 500


def test_pictures_that_ffmpeg_does_not_take_are_told_of(tmp_path):
    with pytest.raises(RunError, match=r"GIF does not support resolutions"), Film(tmp_path / "a.gif", 10.0) as made:
        for picture in pictures(2, 2, 70_000):
            made.add(picture)


def test_wide_pictures_are_not_made_wider_and_empty_ones_refused():
    assert tiled(pictures(1, 1, 2000), [""]).shape == (1, 2000, 3)
    with pytest.raises(UserError, match="without pixels, 80 x 0"):
        tiled(pictures(1, 0, 80), [""])


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a.avi", r"a\.avi must end in \.mp4 or \.gif"),
        ("a", "must end in"),
        ("none/a.mp4", "is no folder"),
        ("folder.mp4", "is a folder"),
        ("x" * 300 + ".mp4", "cannot be written"),
        ("nul\0.mp4", "cannot be written"),
    ],
)
def test_files_that_cannot_be_are_refused_before_anything_is_played(tmp_path, name, told):
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(UserError, match=told):
        check_film(tmp_path / name)


def test_without_ffmpeg_it_is_said_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(UserError, match=r"pip install '\.\[video\]'"):
        check_film(tmp_path / "a.mp4")


def test_small_pictures_are_enlarged_and_captioned():
    shown = tiled(pictures(1, 100, 80), ["score 3"])
    assert shown.shape == (300 + CAPTION_HEIGHT, 240, 3)
    assert (shown[0, :24] == 255).all() and (shown[0, 24:] == (0, 120, 0)).all()
    strip = shown[300:]
    assert strip.max() > 200 and strip.min() == 0, "something is written there"
    assert not np.array_equal(strip, tiled(pictures(1, 100, 80), ["score 4"])[300:])


def test_without_captions_there_is_no_room_for_them():
    assert tiled(pictures(1, 250, 80), [""]).shape == (250, 80, 3)


@pytest.mark.parametrize(
    ("count", "grid"), [(1, (1, 1)), (2, (1, 2)), (3, (2, 2)), (4, (2, 2)), (5, (2, 3)), (16, (4, 4))]
)
def test_tiles_are_each_in_their_place(count, grid):
    given = np.stack([np.full((240, 240, 3), 10 * (number + 1), np.uint8) for number in range(count)])
    shown = tiled(given, [""] * count)
    rows, columns = grid
    assert shown.shape == (rows * (240 + GAP) - GAP, columns * (240 + GAP) - GAP, 3)
    for number in range(rows * columns):
        top, left = number // columns * (240 + GAP), number % columns * (240 + GAP)
        assert (shown[top : top + 240, left : left + 240] == (10 * (number + 1) if number < count else 0)).all()
