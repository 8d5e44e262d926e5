"""Read animated pictures (GIF, WebP, PNG, AVIF), and write GIF and WebP, with Pillow."""

import io
import struct
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import GifImagePlugin, Image

from utils import cli, decoding, images
from video.clips import Clip
from video.encoding import Packet

# Suffixes that can be written, with the largest side in pixels
SUFFIXES = {".gif": 65_535, ".webp": 16_383}

_ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")  # Pillow's formats whose frames are not pages
_WEBP_QUALITY = 90  # lossy, as lossless frames would take megabytes each

# Units of a frame's duration: per second, fewest, most
_GIF_DELAYS = (100, 2, 2**16 - 1)  # browsers show 0 and 1 as 10
_WEBP_DELAYS = (1000, 1, 2**24 - 1)
_MOST_PLAYS = 2**16 - 1


def is_picture(path: str | Path) -> bool:
    """Return whether a file's suffix is that of a picture or an animation, not of a video."""
    return Path(path).suffix.lower() in images.SUFFIXES


def is_animated(path: str | Path) -> bool:
    """Return whether a file is an animated picture; one that cannot be read is not."""
    try:
        with decoding.opened(path, images.MAX_PIXELS) as image:
            return _is_animated(image)
    except (cli.UserError, OSError):
        return False


def _is_animated(image: Image.Image) -> bool:
    return image.format in _ANIMATED and getattr(image, "n_frames", 1) > 1


# --- reading ------------------------------------------------------------------------------------


def read_clip(
    path: str | Path,
    start: Fraction | None = None,
    end: Fraction | None = None,
    max_pixels: int = images.MAX_PIXELS,
) -> Clip:
    """Decode an animation without keeping its frames.

    Arguments and errors are those of `clips.read_clip`.
    """
    path = Path(path)
    plays = _plays(path, max_pixels)
    clock = 0  # milliseconds
    skipped = 0
    transparent = False
    has_profile = False
    times: list[int] = []
    durations: list[int] = []
    for picture, duration in _frames(path, max_pixels):
        if end is not None and clock >= end * 1000:
            break
        if start is not None and clock < start * 1000:
            skipped += 1
        else:
            times.append(clock)
            durations.append(duration)
            transparent |= picture.alpha is not None
            has_profile |= picture.icc_profile is not None
        clock += duration
    if not times:
        raise cli.UserError(
            f"{path}: no frame between --start and --end; the clip lasts {clock / 1000:.2f} seconds"
        )
    height, width = picture.rgb.shape[:2]
    return Clip(
        path=path,
        width=width,
        height=height,
        rate=Fraction(1000 * len(times), sum(durations)).limit_denominator(1001),
        time_base=Fraction(1, 1000),
        times=[time - times[0] for time in times],
        durations=durations,
        notes=["its colour profile is left out"] if has_profile else [],
        animated=True,
        transparent=transparent,
        plays=plays,
        skipped=skipped,
    )


def pictures(clip: Clip, first: int = 0) -> Iterator[images.Picture]:
    """Decode the frames of an animation again, from frame number `first` on."""
    begin = clip.skipped + first
    end = clip.skipped + len(clip.times)
    for number, (picture, _) in enumerate(_frames(clip.path, images.MAX_PIXELS)):
        if number >= end:
            return
        if number >= begin:
            yield picture


def _frames(path: Path, max_pixels: int) -> Iterator[tuple[images.Picture, int]]:
    """Yield the frames of an animation with their durations in milliseconds.

    Raises:
        UserError: the file is damaged.
    """
    with decoding.opened(path, max_pixels) as image:
        # The first image of a PNG may be a still for viewers that cannot show the animation
        first = 1 if getattr(image, "default_image", False) else 0
        for number in range(first, getattr(image, "n_frames", 1)):
            image.seek(number)
            image.load()
            rgb, alpha, profile = decoding.to_rgb(decoding.to_8_bit(image.copy())[0])
            if alpha is not None and alpha.min() == 255:
                alpha = None
            duration = round(image.info.get("duration", 0))
            if duration <= 10:  # as browsers do
                duration = 100
            yield images.Picture(rgb, alpha, profile, decoding.is_gray(rgb)), duration


def _plays(path: Path, max_pixels: int) -> int:
    """Return how often an animation is shown; 0: forever.

    Raises:
        UserError: the file is damaged, or a still picture.
    """
    with decoding.opened(path, max_pixels) as image:
        animated = _is_animated(image)
        if not animated:
            image.load()  # so that a damaged file is reported as such
        loop = image.info.get("loop")
        is_gif = image.format == "GIF"
    if not animated:
        raise cli.UserError(f"{path}: a still picture; enlarge it with python test_image.py")
    if is_gif:  # which counts repetitions
        if loop is None:
            return 1
        return loop + 1 if loop else 0
    return loop or 0


# --- writing ------------------------------------------------------------------------------------

# Pillow encodes each frame and GIF's header. The rest is done here, because nothing else joins
# encoded frames (measured with Pillow 12.3 and FFmpeg 8):
# - Pillow's `save_all` takes decoded frames only, so the segments of an interrupted run would be of
#   no use. It also keeps all frames in memory (at 640x480, 0.3 MB per frame of a GIF, 1.4 MB of a
#   WebP) and merges equal ones.
# - FFmpeg's WebP muxer blends each frame with the one before, which fills transparent holes. Its
#   GIF muxer, given one GIF per frame, writes a file that ends after the first. Both need PyAV,
#   which animations otherwise do not.


class AnimationTrack:
    """The frames of a GIF or WebP animation, with the methods of `encoding.VideoTrack`.

    Args:
        path: output path.
        clip: the source.
        width, height: of the frames.

    Attributes:
        notes: what the user should know.

    Raises:
        UserError: the format cannot hold frames of this size.
    """

    def __init__(self, path: Path, clip: Clip, width: int, height: int):
        self.path = path
        self.clip = clip
        self.width = width
        self.height = height
        suffix = path.suffix.lower()
        if max(width, height) > SUFFIXES[suffix]:
            raise cli.UserError(
                f"{path}: {suffix} holds at most {SUFFIXES[suffix]} pixels per side, "
                f"but the result has {width}x{height}"
            )
        self.is_gif = suffix == ".gif"
        self.delays = _delays(clip, *(_GIF_DELAYS if self.is_gif else _WEBP_DELAYS))
        self.notes = []
        if clip.bits > 8:
            self.notes.append(f"{path}: {clip.bits}-bit colours become 8-bit")
        if not clip.animated:
            self.notes.append(f"{path}: sound and subtitles, if any, are left out")

    def start(self, first: int) -> None:
        """Begin a segment with frame number `first`."""
        self.frame = first
        self.packets: list[Packet] = []

    def add(self, picture: images.Picture) -> None:
        """Encode the next frame."""
        encode = self._gif_frame if self.is_gif else self._webp_frame
        data = encode(picture, self.delays[self.frame])
        self.packets.append(Packet(self.frame, True, data))
        self.frame += 1

    def finish(self) -> list[Packet]:
        """End the segment and return its packets."""
        return self.packets

    def write(self, file: IO[bytes], packets: Iterable[Packet]) -> None:
        """Write the file from the packets of all segments in order.

        Raises:
            UserError: it is too large for its format.
        """
        file.write(self._gif_header() if self.is_gif else self._webp_header())
        for packet in packets:
            file.write(packet.data)
        if self.is_gif:
            file.write(b";")
            return
        size = file.tell() - 8
        if size >= 2**32:
            raise cli.UserError(f"{self.path}: WebP holds at most 4 GiB; use .mp4")
        file.seek(4)
        file.write(struct.pack("<I", size))

    def _gif_header(self) -> bytes:
        info: dict[str, Any] = {"duration": 1}  # for a version of GIF that has durations
        if self.clip.plays != 1:
            info["loop"] = min(max(self.clip.plays - 1, 0), _MOST_PLAYS)
        canvas = Image.new("P", (self.width, self.height))
        parts, _ = GifImagePlugin.getheader(canvas, info=info)
        return b"".join(parts)

    def _gif_frame(self, picture: images.Picture, delay: int) -> bytes:
        """Encode a frame with its own palette.

        If any frame of the clip is transparent, colour 255 stands for transparent pixels, and each
        frame is removed before the next one is shown.
        """
        options: dict[str, Any] = {"duration": 10 * delay, "include_color_table": True}
        image = Image.fromarray(picture.rgb)
        if not self.clip.transparent:
            return b"".join(GifImagePlugin.getdata(image.quantize(256), **options))
        image = image.quantize(255)
        palette = image.getpalette() or []
        image.putpalette((palette + [0] * 768)[:768])  # makes room for colour 255
        if picture.alpha is not None:
            hidden = np.where(picture.alpha < 128, 255, 0).astype(np.uint8)
            image.paste(255, mask=Image.fromarray(hidden))
        options |= {"transparency": 255, "disposal": 2}
        return b"".join(GifImagePlugin.getdata(image, **options))

    def _webp_header(self) -> bytes:
        animation = 0x02
        alpha = 0x10 if self.clip.transparent else 0
        size = _three_bytes(self.width - 1) + _three_bytes(self.height - 1)
        canvas = _chunk(b"VP8X", bytes([animation | alpha, 0, 0, 0]) + size)
        plays = min(self.clip.plays, _MOST_PLAYS)
        background = 0
        return b"RIFF\0\0\0\0WEBP" + canvas + _chunk(b"ANIM", struct.pack("<IH", background, plays))

    def _webp_frame(self, picture: images.Picture, delay: int) -> bytes:
        """Encode a frame: a still WebP, whose chunks of pixels become one chunk of an animation."""
        image = Image.fromarray(picture.rgb)
        if picture.alpha is not None:
            image.putalpha(Image.fromarray(picture.alpha))
        still = io.BytesIO()
        image.save(still, "WEBP", quality=_WEBP_QUALITY)
        data = still.getvalue()

        pixels = b""
        start = 12  # after RIFF, the size and WEBP
        while start < len(data):
            name, size = struct.unpack_from("<4sI", data, start)
            end = start + 8 + size + size % 2
            if name in (b"ALPH", b"VP8 ", b"VP8L"):
                pixels += data[start:end]
            start = end

        numbers = (0, 0, self.width - 1, self.height - 1, delay)  # left, top, ...
        header = b"".join(_three_bytes(number) for number in numbers)
        replace = b"\x02"  # no blending with the frame before
        return _chunk(b"ANMF", header + replace + pixels)


def _chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def _three_bytes(number: int) -> bytes:
    return number.to_bytes(3, "little")


def _delays(clip: Clip, per_second: int, shortest: int, longest: int) -> list[int]:
    """Return how long to show each frame, without adding up rounding errors.

    Args:
        clip: with the exact durations.
        per_second: units per second.
        shortest, longest: units that a frame may take.
    """
    clock = 0
    delays = []
    for time, duration in zip(clip.times, clip.durations, strict=True):
        end = round((time - clip.times[0] + duration) * clip.time_base * per_second)
        delay = min(max(shortest, end - clock), longest)
        delays.append(delay)
        clock += delay
    return delays
