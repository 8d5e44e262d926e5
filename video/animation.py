"""Read animated pictures (GIF, WebP, PNG, AVIF) and write GIF and WebP, frame by frame, with Pillow."""

import io
import struct
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import IO

import numpy as np
from PIL import GifImagePlugin, Image

from utils import cli, decoding, images
from video.clips import Clip
from video.encoding import Packet
from video.frames import Colours

SUFFIXES = {".gif": 65_535, ".webp": 16_383}  # that can be written, with their largest sides
_ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")  # Pillow's formats whose frames are not pages
_QUALITY = 90  # of WebP, which is lossy here: losslessly, every frame would take megabytes
_MOST_16_BITS, _MOST_24_BITS = (
    2**16 - 1,
    2**24 - 1,
)  # what the formats' numbers hold: eleven minutes, more than four hours
_SHORTEST_DELAY = 2  # hundredths of a second; browsers take 0 and 1 for 10


def is_picture(path: str | Path) -> bool:
    """Tell by its suffix whether a file is a picture or an animation, and not a video."""
    return Path(path).suffix.lower() in images.SUFFIXES | {".apng"}


def _frames(path: Path, max_pixels: int) -> Iterator[tuple[images.Picture, int]]:
    """Yield the frames of an animation with their durations in milliseconds; raise UserError if it is damaged."""
    with decoding.opened(path, max_pixels) as image:
        first = (
            1 if getattr(image, "default_image", False) else 0
        )  # of a PNG: a still for who cannot show the animation
        for number in range(first, image.n_frames):
            image.seek(number)
            image.load()
            rgb, alpha, profile = decoding.to_rgb(decoding.to_8_bit(image.copy())[0])
            if alpha is not None and alpha.min() == 255:
                alpha = None
            duration = round(image.info.get("duration", 0))
            picture = images.Picture(rgb, alpha, profile, decoding.is_gray(rgb))
            yield picture, duration if duration > 10 else 100  # as browsers do


def _plays(path: Path, max_pixels: int) -> int:
    """Return how often an animation is shown; 0: for ever. Raise UserError if it is a still picture."""
    with decoding.opened(path, max_pixels) as image:
        animated = image.format in _ANIMATED and getattr(image, "n_frames", 1) > 1
        if not animated:
            image.load()
        loop = image.info.get("loop")
        if image.format == "GIF":  # which counts repetitions
            loop = 1 if loop is None else loop + 1 if loop else 0
    if not animated:
        raise cli.UserError(f"{path}: a still picture; enlarge it with python test_image.py")
    return loop or 0


def read_clip(
    path: str | Path,
    start: Fraction | None = None,
    end: Fraction | None = None,
    max_pixels: int = images.MAX_PIXELS,
) -> Clip:
    """Decode an animation once; arguments and errors are those of `clips.read_clip`."""
    path, clock, skipped, transparent, profiles = Path(path), 0, 0, False, False
    times: list[int] = []
    durations: list[int] = []
    plays = _plays(path, max_pixels)
    for picture, duration in _frames(path, max_pixels):
        if end is not None and clock >= end * 1000:
            break
        if start is not None and clock < start * 1000:
            skipped += 1
        else:
            times.append(clock)
            durations.append(duration)
            transparent |= picture.alpha is not None
            profiles |= picture.icc_profile is not None
        clock += duration
    if not times:
        raise cli.UserError(
            f"{path}: no frame between --start and --end; it lasts {clock / 1000:.2f} seconds"
        )
    height, width = picture.rgb.shape[:2]
    shift = times[0]
    return Clip(
        path=path, width=width, height=height, time_base=Fraction(1, 1000), times=[time - shift for time in times],
        durations=durations, rate=Fraction(1000 * len(times), sum(durations)).limit_denominator(1001), colours=Colours(),
        skipped=skipped, animated=True, transparent=transparent, plays=plays,
        notes=["its colour profile is left out"] if profiles else [],
    )  # fmt: skip


def pictures(clip: Clip, first: int = 0) -> Iterator[images.Picture]:
    """Decode the frames of an animation again, from number `first` on."""
    begin, end = clip.skipped + first, clip.skipped + len(clip.times)
    for number, (picture, _) in enumerate(_frames(clip.path, images.MAX_PIXELS)):
        if number >= end:
            return
        if number >= begin:
            yield picture


class AnimationTrack:
    """The frames of a GIF or an animated WebP, each encoded by itself; used as `encoding.VideoTrack` is.

    Raises:
        UserError: the format cannot hold frames of this size.
    """

    def __init__(self, path: Path, clip: Clip, width: int, height: int):
        self.path, self.clip, self.width, self.height = path, clip, width, height
        self.gif, largest = path.suffix.lower() == ".gif", SUFFIXES[path.suffix.lower()]
        if max(width, height) > largest:
            raise cli.UserError(
                f"{path}: holds at most {largest} pixels per side, this is {width}x{height}"
            )
        self.notes = (
            []
            if clip.animated
            else [f"{path}: sound and subtitles, if there are any, are left out"]
        )
        self.delays = (
            _delays(clip, 100, _SHORTEST_DELAY, _MOST_16_BITS)
            if self.gif
            else _delays(clip, 1000, 1, _MOST_24_BITS)
        )

    def start(self, first: int) -> None:
        """Begin a segment with frame number `first`."""
        self.frame, self.packets = first, []

    def add(self, picture: images.Picture) -> None:
        """Encode the next frame."""
        encode = self._gif_frame if self.gif else self._webp_frame
        self.packets.append(Packet(self.frame, True, encode(picture, self.delays[self.frame])))
        self.frame += 1

    def finish(self) -> list[Packet]:
        """End the segment and return its packets."""
        return self.packets

    def write(self, file: IO[bytes], packets: Iterable[Packet]) -> None:
        """Write the file from the packets of all segments in order."""
        file.write(self._gif_header() if self.gif else self._webp_header())
        for packet in packets:
            file.write(packet.data)
        if self.gif:
            file.write(b";")
        else:
            size = file.tell() - 8
            if size >= 2**32:
                raise cli.UserError(f"{self.path}: WebP holds at most 4 GiB; use .mp4")
            file.seek(4)
            file.write(struct.pack("<I", size))

    def _gif_header(self) -> bytes:
        header = struct.pack(
            "<6sHHBBB", b"GIF89a", self.width, self.height, 0x70, 0, 0
        )  # no global palette
        plays = self.clip.plays
        again = min(max(plays - 1, 0), _MOST_16_BITS)
        loop = b"" if plays == 1 else b"!\xff\x0bNETSCAPE2.0\x03\x01" + struct.pack("<HB", again, 0)
        return header + loop

    def _gif_frame(self, picture: images.Picture, delay: int) -> bytes:
        """Return a frame with a palette of its own; it is removed before the next one if anything is transparent."""
        transparent = self.clip.transparent
        image = Image.fromarray(picture.rgb).quantize(255 if transparent else 256)
        options = {"duration": 10 * delay, "include_color_table": True}
        if transparent:
            image.putpalette(
                (image.getpalette() + [0] * 768)[:768]
            )  # so that there is a colour 255
            if picture.alpha is not None:
                image.paste(
                    255,
                    mask=Image.fromarray(np.where(picture.alpha < 128, 255, 0).astype(np.uint8)),
                )
            options |= {"transparency": 255, "disposal": 2}
        return b"".join(GifImagePlugin.getdata(image, **options))

    def _webp_header(self) -> bytes:
        flags = 0x02 | (0x10 if self.clip.transparent else 0)
        size = _three_bytes(self.width - 1) + _three_bytes(self.height - 1)
        canvas = _chunk(b"VP8X", bytes([flags, 0, 0, 0]) + size)
        return (
            b"RIFF\0\0\0\0WEBP"
            + canvas
            + _chunk(b"ANIM", struct.pack("<IH", 0, min(self.clip.plays, _MOST_16_BITS)))
        )

    def _webp_frame(self, picture: images.Picture, delay: int) -> bytes:
        """Return a frame that replaces the one before: a still WebP's chunks of pixels in one of its own."""
        image, still = Image.fromarray(picture.rgb), io.BytesIO()
        if picture.alpha is not None:
            image.putalpha(Image.fromarray(picture.alpha))
        image.save(still, "WEBP", quality=_QUALITY)
        data, place, pixels = still.getvalue(), 12, b""
        while place < len(data):
            name, size = struct.unpack_from("<4sI", data, place)
            end = place + 8 + size + size % 2
            if name in (b"ALPH", b"VP8 ", b"VP8L"):
                pixels += data[place:end]
            place = end
        where = b"".join(map(_three_bytes, (0, 0, self.width - 1, self.height - 1, delay)))
        return _chunk(b"ANMF", where + b"\x02" + pixels)  # 2: without blending


def _chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def _three_bytes(number: int) -> bytes:
    return number.to_bytes(3, "little")


def _delays(clip: Clip, per_second: int, shortest: int, longest: int) -> list[int]:
    """Return how long each frame is shown, in ticks of which there are `per_second`, without adding up rounding errors."""
    clock, delays = 0, []
    for time, duration in zip(clip.times, clip.durations, strict=True):
        end = round((time - clip.times[0] + duration) * clip.time_base * per_second)
        delays.append(min(max(shortest, end - clock), longest))
        clock += delays[-1]
    return delays
