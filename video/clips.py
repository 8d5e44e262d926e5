"""Read video clips with PyAV, which brings FFmpeg's libraries: pip install av.

A clip is decoded twice: first to learn its frames' times and to find any damage, then for the
frames themselves. Only a few frames are in memory at a time. Files that a clip refers to, such as
the parts of a playlist, are not opened.
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
from typing import IO, TYPE_CHECKING, Any

from utils import cli, decoding, images
from video.frames import (
    Colours,
    bits_of,
    colours_of,
    display_matrix,
    is_sideways,
    pyav,
    to_rgb,
    upright,
)

if TYPE_CHECKING:
    import av
    from av.container import InputContainer


@dataclass
class Clip:
    """What is known of a clip or an animation once every frame has been decoded.

    Attributes:
        path: its file.
        width, height: of the upright frames.
        rate: average frames per second.
        time_base: seconds per tick of `times` and `durations`.
        times, durations: ticks of each frame.
        notes: what the user should know.
        bits: per channel.
        aspect: shape of a pixel (width : height); None: square.
        colours: how the result is to be coded.
        matrix: the first five numbers of the display matrix that turns the frames upright; None:
            they are upright.
        animated: whether it is a GIF, WebP, PNG or AVIF animation, which Pillow reads.
        transparent: whether any frame of an animation has transparent pixels.
        plays: how often an animation is shown; 0: forever.
        seek: where decoding starts, in ticks of the stream; None: at the beginning.
        skipped: number of frames between `seek` and the first one that is wanted.
        offset: seconds in the file at which `times` begin to count.
        span: begin and end of the wanted part, in seconds in the file; None: all of it.
    """

    path: Path
    width: int
    height: int
    rate: Fraction
    time_base: Fraction
    times: list[int]
    durations: list[int]
    notes: list[str] = field(default_factory=list)
    bits: int = 8
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


# --- opening ------------------------------------------------------------------------------------


@contextmanager
def opened(path: Path) -> Iterator["InputContainer"]:
    """Open a clip, and turn errors of FFmpeg's libraries into one clear UserError."""
    av = pyav()
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise cli.UserError(f"{path}: not a file")
    if not os.stat(path).st_size:
        raise cli.UserError(f"{path}: the file is empty")

    def refuse(url: str, _flags: int, _options: dict[str, str]) -> IO[bytes]:
        raise cli.UserError(f"{path}: refers to another file, {url}, which is not opened")

    with open(path, "rb") as file:
        try:
            with av.open(file, metadata_errors="replace", io_open=refuse) as container:
                yield container
        except av.FFmpegError as error:
            if cli.is_out_of_memory(error):
                raise
            raise cli.UserError(
                f"{path}: not a video, or cut short or damaged ({reason(error)})"
            ) from error
        except OSError as error:
            if error.filename is None:  # the disk is at fault, not the clip
                raise OSError(error.errno, error.strerror, str(path)) from error
            raise


def reason(error: BaseException) -> str:
    """Return the text of an FFmpeg error without the file's name."""
    return getattr(error, "strerror", None) or str(error)


def video_stream(path: Path, container: "InputContainer") -> "av.VideoStream":
    """Return the first video stream that is not a cover, set up to decode on all cores.

    Raises:
        UserError: there is none, or the file is a still picture.
    """
    if container.format.name.endswith(("_pipe", "image2")):
        raise cli.UserError(f"{path}: a still picture; enlarge it with python test_image.py")
    disposition = pyav().stream.Disposition
    covers = disposition.attached_pic | disposition.timed_thumbnails
    for stream in container.streams.video:
        if stream.codec_context is not None and not stream.disposition & covers:
            stream.thread_type = "AUTO"
            return stream
    raise cli.UserError(f"{path}: no video stream that can be decoded")


def _start_seconds(container: "InputContainer") -> Fraction:
    """Return the time in the file that players show as 0."""
    return Fraction(container.start_time or 0, 1_000_000)


def _frames(
    container: "InputContainer", stream: "av.VideoStream", seek: int | None
) -> Iterator["av.VideoFrame"]:
    if seek is not None:
        container.seek(seek, stream=stream)
    yield from container.decode(stream)


# --- first pass: times and damage ---------------------------------------------------------------


def read_clip(
    path: str | Path,
    start: Fraction | None = None,
    end: Fraction | None = None,
    max_pixels: int = images.MAX_PIXELS,
) -> Clip:
    """Decode a clip without keeping its frames, to find what is wrong before any work is done.

    Args:
        path: its file.
        start: take frames from this time on, in seconds as players count them.
        end: take frames before this time.
        max_pixels: refuse larger frames.

    Raises:
        OSError: the file cannot be opened.
        UserError: PyAV is missing, or the file is not a video, is damaged or cut short, has frames
            of several sizes, or has no frame in that part.
    """
    path = Path(path)

    # Seek
    seek = None
    if start:
        with opened(path) as container:
            seek = _seek_point(container, video_stream(path, container), start)

    # Decode
    with opened(path) as container:
        stream = video_stream(path, container)
        scan = _Scan(path, container, stream, start, end)
        frames = _frames(container, stream, seek)
        try:
            for frame in cli.progress_bar(frames, desc="reading", unit=" frames"):
                if not scan.add(frame, max_pixels):
                    break
        except pyav().FFmpegError as error:
            raise scan.cut_short(reason(error)) from error
        return scan.clip(seek)


def _seek_point(
    container: "InputContainer", stream: "av.VideoStream", start: Fraction
) -> int | None:
    """Return where to seek so that every frame from `start` on is decoded; None: nowhere."""
    if stream.time_base is None:
        return None
    target = round((start + _start_seconds(container)) / stream.time_base)
    try:
        first = next(_frames(container, stream, target), None)
    except pyav().FFmpegError:
        return None
    if first is None or not first.key_frame or first.pts is None or first.pts > target:
        return None
    return target


class _Scan:
    """Record the times of a clip's frames, and what is wrong with them, during decoding."""

    def __init__(
        self,
        path: Path,
        container: "InputContainer",
        stream: "av.VideoStream",
        start: Fraction | None,
        end: Fraction | None,
    ):
        self.path = path
        self.container = container
        self.stream = stream
        self.start = start
        self.end = end
        self.zero = _start_seconds(container)
        self.rate = _plausible(stream.average_rate or stream.guessed_rate)
        self.time_base = stream.time_base or 1 / self.rate
        self.first: Any = None  # av.VideoFrame, after the first call of `add`
        self.ticks = 0  # of the latest frame
        self.step = 0  # ticks from one frame to the next
        self.skipped = 0
        self.damaged = 0
        self.times: list[int] = []
        self.last_duration = 0
        self.counted = False  # frames carry no times

    def seconds(self, ticks: int) -> Fraction:
        """Convert ticks to seconds as players count them."""
        return ticks * self.time_base - self.zero

    def add(self, frame: "av.VideoFrame", max_pixels: int) -> bool:
        """Record a frame; return False if it is beyond the wanted part."""
        if self.first is None:
            self.first = frame
            if frame.width * frame.height > max_pixels:
                raise cli.UserError(
                    f"{self.path}: {frame.width}x{frame.height} is more than {max_pixels:,} pixels"
                )
            if frame.pts is None or self.stream.time_base is None:
                self.counted = True
                self.time_base = 1 / self.rate
                self.zero = Fraction(0)
            self.step = round(1 / self.rate / self.time_base)

        # Size
        number = self.skipped + len(self.times)
        size = f"{frame.width}x{frame.height}"
        first_size = f"{self.first.width}x{self.first.height}"
        if size != first_size:
            raise cli.UserError(
                f"{self.path}: the frame size changes from {first_size} to {size} at frame "
                f"{number}; enlarge the parts one by one, with --start and --end"
            )

        # Time
        if self.counted:
            self.ticks = number
        elif frame.pts is None:  # MPEG program streams give a time to some frames only
            self.ticks += self.step
        else:
            self.ticks = frame.pts
        seconds = self.seconds(self.ticks)
        if self.end is not None and seconds >= self.end:
            return False
        if self.start is not None and not self.times and seconds < self.start:
            self.skipped += 1
            return True

        self.damaged += frame.is_corrupt
        self.times.append(self.ticks)
        self.last_duration = 0 if self.counted else frame.duration
        return True

    def cut_short(self, cause: str) -> cli.UserError:
        """Return the error for a clip that can only be decoded up to some point."""
        usable = float(self.seconds(self.times[-1])) if self.times else 0.0
        advice = f"; --end {usable:.2f} enlarges what comes before" if usable > 0 else ""
        return cli.UserError(
            f"{self.path}: cut short or damaged after {usable:.2f} seconds ({cause}){advice}"
        )

    def clip(self, seek: int | None) -> Clip:
        """Return the clip.

        Raises:
            UserError: it has no frame in the wanted part, is cut short, or is coded in colours
                that are not supported.
        """
        if self.first is None:
            raise cli.UserError(f"{self.path}: no frame can be decoded")
        if not self.times:
            raise cli.UserError(
                f"{self.path}: no frame between --start and --end; "
                f"the clip lasts {self.length()} seconds"
            )

        # Times: frames arrive in the order of display, but AVI has the times of decoding
        times = sorted(self.times)
        for index in range(1, len(times)):
            times[index] = max(times[index], times[index - 1] + 1)
        durations = [after - before for before, after in itertools.pairwise(times)]
        usual = durations[-1] if durations else self.step
        durations.append(self.last_duration or usual or 1)
        end = times[-1] + durations[-1]
        self.check_length(end)

        # Where times count from; the clock of a broadcast starts anywhere
        shift = times[0] if self.start is not None else 0
        broadcast = self.container.format.flags & pyav().format.Flags.ts_discont.value
        if not shift and broadcast:
            shift = round(self.zero / self.time_base)
        span = None
        if self.start is not None or self.end is not None:
            span = (times[0] * self.time_base, end * self.time_base)

        # Orientation
        matrix = display_matrix(self.first)
        width, height = self.first.width, self.first.height
        aspect = self.stream.sample_aspect_ratio or None
        if is_sideways(matrix):
            width, height = height, width
            aspect = 1 / aspect if aspect else None

        return Clip(
            path=self.path,
            width=width,
            height=height,
            rate=self.rate,
            time_base=self.time_base,
            times=[time - shift for time in times],
            durations=durations,
            notes=self.notes(),
            bits=bits_of(self.first.format.name),
            aspect=aspect,
            colours=self.colours(),
            matrix=matrix,
            seek=seek,
            skipped=self.skipped,
            offset=shift * self.time_base,
            span=span,
        )

    def colours(self) -> Colours:
        """Return how the frames are coded."""
        try:
            return colours_of(self.first)
        except cli.UserError as error:
            raise cli.UserError(f"{self.path}: {error}") from error

    def length(self) -> str:
        """Return the clip's length in seconds, for a message."""
        if self.container.duration:
            return f"{self.container.duration / 1_000_000:.2f}"
        return f"{float(self.skipped / self.rate):.2f}"

    def check_length(self, end: int) -> None:
        """Raise UserError if the header promises more than the frames, which last until `end`.

        Nothing is checked if the user gave an end, or if the frames carry no times.
        """
        if self.end is not None or self.counted:
            return

        # What the header promises, in seconds
        stream = self.stream
        promised = None
        tag = re.fullmatch(r"(\d+):(\d\d):([\d.]+)", stream.metadata.get("DURATION", ""))
        if self.container.format.name == "avi":  # its duration is that of the frames it has
            promised = stream.frames / self.rate
        elif stream.duration is not None:
            promised = ((stream.start_time or 0) + stream.duration) * self.time_base
        elif tag:  # Matroska, WebM
            hours, minutes, seconds = tag.groups()
            promised = int(hours) * 3600 + int(minutes) * 60 + Fraction(seconds)

        tolerance = max(Fraction(1, 2), 2 / self.rate)
        if promised is not None and promised - end * self.time_base > tolerance:
            raise self.cut_short(f"its header promises {float(promised):.2f}")

    def notes(self) -> list[str]:
        """Return what the user should know."""
        components = self.first.format.components
        notes = []
        if self.damaged:
            notes.append(f"{cli.counted(self.damaged, 'damaged frame')}, enlarged as found")
        if self.first.interlaced_frame:
            notes.append("interlaced, and stays so; deinterlace it first for a better result")
        # FFmpeg's VP8 and VP9 decoders leave alpha out; only the container says that it is there
        hidden_alpha = self.stream.metadata.get("alpha_mode") == "1"
        if hidden_alpha or any(component.is_alpha for component in components):
            notes.append("transparency is left out")
        return notes


def _plausible(rate: Fraction | None) -> Fraction:
    if rate and 1 <= rate <= 1000:
        return Fraction(rate).limit_denominator(1001)
    return Fraction(25)


# --- second pass: pixels ------------------------------------------------------------------------


def pictures(clip: Clip, first: int = 0, deep: bool = False) -> Iterator[images.Picture]:
    """Decode a clip again, as upright RGB, from frame number `first` on.

    Args:
        clip: of `read_clip`.
        first: number of the first frame that is wanted.
        deep: return 16 bits per channel instead of 8.

    Raises:
        OSError: the file cannot be opened.
        UserError: it has changed since `read_clip`.
    """
    skip = clip.skipped + first
    left = len(clip.times) - first
    with opened(clip.path) as container:
        stream = video_stream(clip.path, container)
        for number, frame in enumerate(_frames(container, stream, clip.seek)):
            if not left:
                return
            if number < skip:
                continue
            rgb = upright(to_rgb(frame, clip.colours, deep), clip.matrix)
            left -= 1
            yield images.Picture(rgb, gray=decoding.is_gray(rgb))
        if left:
            lost = cli.counted(left, "frame")
            raise cli.UserError(f"{clip.path}: changed while being read; {lost} missing")
