"""Read video clips with PyAV, which brings FFmpeg's libraries: pip install av.

A clip is decoded twice: once to learn its frames' times and whatever is wrong with it, and once for its frames, of which only
a few are in memory. Files that a clip refers to, such as the parts of a playlist, are not opened.
"""

import itertools
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from utils import cli, decoding, images
from video.frames import Colours, colours_of, display_matrix, is_lying, pyav, to_rgb, upright


@dataclass
class Clip:
    """What is known of a clip, or of an animation, after every frame has been decoded once.

    Attributes:
        path: its file.
        width, height: of the upright frames.
        rate: average frames per second.
        time_base: seconds per tick of `times` and `durations`.
        times, durations: ticks of each frame.
        notes: what the user should know.
        aspect: shape of a pixel (width : height); None: square.
        colours: how the result is to be coded.
        matrix: the first five numbers of the display matrix that turns the frames upright; None: they are.
        animated: whether it is a GIF, WebP, PNG or AVIF animation, which Pillow reads, and not a video.
        transparent: whether a frame of an animation is transparent somewhere.
        plays: how often an animation is shown; 0: for ever.
        seek: where decoding starts, in the stream's own ticks; None: at the beginning.
        skipped: frames decoded from there before the first one that is wanted.
        offset: seconds by which times are earlier than in the file.
        span: seconds in the file of the part that is wanted; None: all of it.
    """

    path: Path
    width: int
    height: int
    rate: Fraction
    time_base: Fraction
    times: list[int]
    durations: list[int]
    notes: list[str] = field(default_factory=list)
    aspect: Fraction | None = None
    colours: Colours = field(default_factory=Colours)
    matrix: tuple[int, ...] | None = None
    animated: bool = False
    transparent: bool = False
    plays: int = 0
    seek: int | None = None
    skipped: int = 0
    offset: Fraction = Fraction(0)
    span: tuple[Fraction, Fraction] | None = None


# --- opening ------------------------------------------------------------------------------------------------------


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a clip; turn what FFmpeg's libraries report into one clear UserError."""
    av = pyav()
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise cli.UserError(f"{path}: not a file")
    if not os.stat(path).st_size:
        raise cli.UserError(f"{path}: the file is empty")

    def refuse(url: str, _flags, _options):
        raise cli.UserError(f"{path}: refers to another file, {url}, which is not opened")

    with open(path, "rb") as file:
        try:
            with av.open(file, metadata_errors="replace", io_open=refuse) as container:
                yield container
        except av.FFmpegError as error:
            if cli.is_out_of_memory(error):
                raise
            raise cli.UserError(
                f"{path}: not a video, cut short or damaged ({reason(error)})"
            ) from error
        except OSError as error:  # the disk is at fault, not the clip
            if error.filename is None:
                raise OSError(error.errno, error.strerror, str(path)) from error
            raise


def reason(error: BaseException) -> str:
    """Return what an error of FFmpeg's says, without the file's name."""
    return getattr(error, "strerror", None) or str(error)


def video_stream(path: Path, container) -> Any:
    """Return the stream of pictures that is no cover, with as many decoding threads as there are cores."""
    av = pyav()
    if container.format.name.endswith(("_pipe", "image2")):
        raise cli.UserError(f"{path}: a still picture; enlarge it with python test_image.py")
    covers = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    for stream in container.streams.video:
        if stream.codec_context is not None and not stream.disposition & covers:
            stream.thread_type = "AUTO"
            return stream
    raise cli.UserError(f"{path}: no video stream that can be decoded")


def _zero(container) -> Fraction:
    """Return the time in the file, in seconds, that players call 0."""
    return Fraction(container.start_time or 0, 1_000_000)


def _frames(container, stream, seek: int | None) -> Iterator[Any]:
    if seek is not None:
        container.seek(seek, stream=stream)
    yield from container.decode(stream)


def read_clip(
    path: str | Path,
    start: Fraction | None = None,
    end: Fraction | None = None,
    max_pixels: int = images.MAX_PIXELS,
) -> Clip:
    """Decode a clip once, without keeping its frames, so that whatever is wrong with it shows before any work is done.

    Args:
        path: its file.
        start, end: seconds of the player's clock; frames that begin at `start` or later and before `end` are wanted.
        max_pixels: of a frame.

    Raises:
        OSError: the file cannot be opened.
        UserError: PyAV is missing, or the file is not a video, is damaged or cut short, has frames of several sizes, or has no
            frame in that part.
    """
    path, seek = Path(path), None
    if start:
        with opened(path) as container:
            seek = _seek_point(container, video_stream(path, container), start)
    with opened(path) as container:
        stream = video_stream(path, container)
        scan = _Scan(path, stream, start, end, _zero(container))
        with cli.progress_bar(desc="reading", unit=" frames") as bar:
            try:
                for frame in _frames(container, stream, seek):
                    if not scan.add(frame, max_pixels):
                        break
                    bar.update()
            except pyav().FFmpegError as error:
                raise scan.cut_short(reason(error)) from error
        return scan.clip(container, seek)


def _seek_point(container, stream, start: Fraction) -> int | None:
    """Return where to seek to decode every frame from `start` on, or None if that can only be done from the beginning."""
    target = round((start + _zero(container)) / stream.time_base)
    try:
        first = next(_frames(container, stream, target), None)
    except pyav().FFmpegError:
        return None
    return (
        target
        if first is not None and first.key_frame and first.pts is not None and first.pts <= target
        else None
    )


class _Scan:
    """Notes down the frames of a clip while they are decoded."""

    def __init__(
        self, path: Path, stream, start: Fraction | None, end: Fraction | None, zero: Fraction
    ):
        self.path, self.stream, self.start, self.end, self.zero = path, stream, start, end, zero
        self.rate = _plausible(stream.average_rate or stream.guessed_rate)
        self.time_base = stream.time_base
        self.first = None
        self.ticks = self.step = 0  # of the latest frame, and from one frame to the next
        self.skipped = self.damaged = 0
        self.times: list[int] = []
        self.last_duration = 0
        self.counted = False  # frames carry no times

    def seconds(self, ticks: int) -> Fraction:
        """Return a time of the player's clock."""
        return ticks * self.time_base - self.zero

    def add(self, frame, max_pixels: int) -> bool:
        """Note down a frame; tell whether to go on."""
        if self.first is None:
            self.first = frame
            if frame.width * frame.height > max_pixels:
                raise cli.UserError(
                    f"{self.path}: {frame.width}x{frame.height} is more than {max_pixels:,} pixels"
                )
            if frame.pts is None or self.time_base is None:
                self.counted, self.time_base, self.zero = True, 1 / self.rate, Fraction(0)
            self.step = round(1 / self.rate / self.time_base)
        number = self.skipped + len(self.times)
        if (frame.width, frame.height) != (self.first.width, self.first.height):
            raise cli.UserError(
                f"{self.path}: its size changes from {self.first.width}x{self.first.height} to {frame.width}x{frame.height} at "
                f"frame {number}; cut it there, with --start and --end"
            )
        following = self.ticks + self.step  # MPEG program streams give a time to some frames only
        ticks = self.ticks = (
            number if self.counted else following if frame.pts is None else frame.pts
        )
        if self.end is not None and self.seconds(ticks) >= self.end:
            return False
        if self.start is not None and not self.times and self.seconds(ticks) < self.start:
            self.skipped += 1
            return True
        self.damaged += frame.is_corrupt
        self.times.append(ticks)
        self.last_duration = 0 if self.counted else frame.duration
        return True

    def cut_short(self, cause: str) -> cli.UserError:
        """Return the error of a clip that can be decoded only to some point."""
        usable = self.seconds(self.times[-1]) if self.times else 0
        advice = f"; --end {float(usable):.2f} enlarges what comes before" if usable > 0 else ""
        return cli.UserError(
            f"{self.path}: cut short or damaged after {float(usable):.2f} seconds ({cause}){advice}"
        )

    def clip(self, container, seek: int | None) -> Clip:
        """Return what has been noted down."""
        first, stream = self.first, self.stream
        if first is None:
            raise cli.UserError(f"{self.path}: no frame can be decoded")
        if not self.times:
            raise cli.UserError(
                f"{self.path}: no frame between --start and --end; it lasts {self.length(container)} seconds"
            )
        times = sorted(
            self.times
        )  # frames arrive as they are shown, but AVI has the times of decoding
        for index in range(1, len(times)):
            times[index] = max(times[index], times[index - 1] + 1)
        durations = [after - before for before, after in itertools.pairwise(times)]
        durations.append(self.last_duration or (durations[-1] if durations else self.step) or 1)
        self.check_length(times[-1] + durations[-1], container)
        cut = self.start is not None or self.end is not None
        shift = times[0] if self.start is not None else 0
        anywhere = pyav().format.Flags.ts_discont.value  # where the clock of a broadcast starts
        if not shift and container.format.flags & anywhere:
            shift = round(self.zero / self.time_base)
        matrix = display_matrix(first)
        height, width = (
            (first.width, first.height) if is_lying(matrix) else (first.height, first.width)
        )
        aspect = stream.sample_aspect_ratio
        if aspect and is_lying(matrix):
            aspect = 1 / aspect
        return Clip(
            path=self.path, width=width, height=height, rate=self.rate, time_base=self.time_base,
            times=[time - shift for time in times], durations=durations, notes=self.notes(), aspect=aspect or None,
            colours=self.colours(), matrix=matrix, seek=seek, skipped=self.skipped,
            offset=shift * self.time_base,
            span=(times[0] * self.time_base, (times[-1] + durations[-1]) * self.time_base) if cut else None,
        )  # fmt: skip

    def colours(self) -> Colours:
        """Return how the frames are coded."""
        try:
            return colours_of(self.first)
        except cli.UserError as error:
            raise cli.UserError(f"{self.path}: {error}") from error

    def length(self, container) -> str:
        """Return how long the clip lasts, for a message."""
        seconds = container.duration / 1_000_000 if container.duration else self.skipped / self.rate
        return f"{float(seconds):.2f}"

    def check_length(self, end: int, container) -> None:
        """Raise UserError if the file says that the pictures last longer than they do, unless `end` was given."""
        if self.end is not None or self.counted:
            return
        said = None
        if container.format.name == "avi":  # whose durations are those of what is there
            said = self.stream.frames / self.rate
        elif self.stream.duration is not None:
            said = (
                self.stream.start_time or 0
            ) * self.time_base + self.stream.duration * self.time_base
        elif match := re.fullmatch(
            r"(\d+):(\d\d):([\d.]+)", self.stream.metadata.get("DURATION", "")
        ):  # Matroska, WebM
            hours, minutes, seconds = match.groups()
            said = int(hours) * 3600 + int(minutes) * 60 + Fraction(seconds)
        if said is not None and said - end * self.time_base > max(Fraction(1, 2), 2 / self.rate):
            raise self.cut_short(f"its header promises {float(said):.2f}")

    def notes(self) -> list[str]:
        """Return what the user should know."""
        pixels, found = self.first.format, []
        if self.damaged:
            found.append(f"{self.damaged} damaged frames, which are enlarged as they are")
        if self.first.interlaced_frame:
            found.append(
                "interlaced, and will remain so; the result is better if it is deinterlaced first"
            )
        if any(part.bits > 8 for part in pixels.components):
            found.append(f"{pixels.components[0].bits}-bit colours become 8-bit")
        if any(part.is_alpha for part in pixels.components):
            found.append("transparency is left out")
        return found


def _plausible(rate: Fraction | None) -> Fraction:
    return Fraction(rate).limit_denominator(1001) if rate and 1 <= rate <= 1000 else Fraction(25)


def pictures(clip: Clip, first: int = 0) -> Iterator[images.Picture]:
    """Decode the frames of a clip again, from number `first` on, as upright 8-bit RGB.

    Raises:
        OSError: the file cannot be opened.
        UserError: it has changed since `read_clip`.
    """
    with opened(clip.path) as container:
        stream, skip = video_stream(clip.path, container), clip.skipped + first
        left = len(clip.times) - first
        for number, frame in enumerate(_frames(container, stream, clip.seek)):
            if not left:
                return
            if number < skip:
                continue
            rgb = upright(to_rgb(frame, clip.colours), clip.matrix)
            left -= 1
            yield images.Picture(rgb, gray=decoding.is_gray(rgb))
        if left:
            raise cli.UserError(
                f"{clip.path}: has changed while it was read: {left} frames are missing"
            )
