"""Clips made on the spot: a pattern that moves by one pixel per frame.

Sound, subtitles, rotation and tags are added as asked for.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from video import frames
from video.frames import Colours

RATE = 25
TIME_BASE = Fraction(1, 600)
UNEVEN = [0, 24, 48, 60, 160, 161, 200, 400, 420, 440]  # ticks of a variable frame rate


def scene(index: int, width: int = 32, height: int = 24) -> np.ndarray:
    """Frame number `index` (H, W, 3): stripes that move to the left, and four coloured corners."""
    columns, rows = np.meshgrid(np.arange(width) + index, np.arange(height))
    red = 128 + 90 * np.sin(columns / 5)
    green = 128 + 90 * np.cos(rows / 6)
    blue = 60 + 3 * rows
    rgb = np.stack([red, green, blue], 2).astype(np.uint8)
    for corner, colour in enumerate([(230, 30, 30), (30, 230, 30), (30, 30, 230), (230, 230, 230)]):
        top = (height - 8) * (corner // 2)
        left = (width - 8) * (corner % 2)
        rgb[top : top + 8, left : left + 8] = colour
    return rgb


def bars(_index: int, width: int, height: int) -> np.ndarray:
    """A gray ramp above eight bars of colour."""
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[: height // 2] = np.linspace(0, 255, width).astype(np.uint8)[None, :, None]
    for bar in range(8):
        left = bar * width // 8
        right = (bar + 1) * width // 8
        rgb[height // 2 :, left:right] = [255 * (bar >> bit & 1) for bit in range(3)]
    return rgb


def flat_parts(image: np.ndarray, scale: int = 1) -> list[np.ndarray]:
    """The ramp, and the inner parts of the bars, of an image of 128x32 enlarged by `scale`."""
    parts = [image[: 12 * scale].astype(int)]
    for bar in range(8):
        left = (16 * bar + 4) * scale
        right = (16 * bar + 12) * scale
        parts.append(image[20 * scale : 30 * scale, left:right].astype(int))
    return parts


def make_clip(
    path: Path,
    count: int = 40,
    size: tuple[int, int] = (32, 24),
    codec: str = "libx264",
    times: Sequence[int] | None = None,
    time_base: Fraction = TIME_BASE,
    sound: str | None = None,
    words: str = "",
    colours: Colours | None = None,
    pixels: str = "yuv420p",
    draw: Callable[[int, int, int], np.ndarray] = scene,
    rotation: int = 0,
    aspect: Fraction | None = None,
    **options,
) -> Path:
    """Write `count` frames, by default 25 per second, or at `times` in ticks of `time_base`.

    Args:
        sound: codec of a sine wave.
        words: text of a subtitle, which begins after 0.2 seconds and lasts 0.5.
        draw: makes frame number `index` of (width, height).
        options: of the encoder, or of the container as `container`.
    """
    with av.open(str(path), "w", options=options.pop("container", {})) as out:
        stream = out.add_stream(codec, rate=RATE, options={"crf": "12", **options})
        stream.width, stream.height = size
        stream.pix_fmt = pixels
        stream.codec_context.time_base = time_base
        if colours:
            stream.colorspace = colours.matrix
            stream.color_range = colours.range
        if rotation:
            stream.set_display_rotation(rotation)
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        audio = out.add_stream(sound, rate=48000, layout="mono") if sound else None
        subtitles = out.add_mux_stream("subrip") if words else None
        if subtitles:
            subtitles.time_base = Fraction(1, 1000)
            subtitles.metadata["language"] = "eng"
            out.start_encoding()
            packet = av.Packet(words.encode())
            packet.stream = subtitles
            packet.time_base = Fraction(1, 1000)
            packet.pts = packet.dts = 200
            packet.duration = 500
            out.mux(packet)
        for index in range(count):
            frame = frames.from_rgb(draw(index, *size), pixels, colours or Colours(frames.BT601))
            frame.pts = times[index] if times else index * 600 // RATE
            frame.time_base = time_base
            out.mux(stream.encode(frame))
            if audio:
                out.mux(audio.encode(sine(index, audio)))
        out.mux(stream.encode(None))
        if audio:
            out.mux(audio.encode(None))
    return path


def sine(index: int, stream) -> av.AudioFrame:
    """The sound of a 25th of a second."""
    count = 48000 // RATE
    wave = 0.3 * np.sin(np.arange(index * count, (index + 1) * count) * (2 * np.pi * 440 / 48000))
    frame = av.AudioFrame.from_ndarray(wave.astype(np.float32)[None], format="flt", layout="mono")
    frame.sample_rate = 48000
    frame.pts = index * count
    frame.time_base = Fraction(1, 48000)
    return frame


def decoded(path: Path) -> tuple[list[np.ndarray], list[Fraction]]:
    """The frames of a video by PyAV's default conversion, and their times in seconds."""
    shown = []
    times = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            shown.append(frame.to_ndarray(format="rgb24"))
            times.append(frame.pts * frame.time_base)
    return shown, times


def packets(path: Path, kind: str) -> list[tuple]:
    """The packets of the first stream of a kind: time in seconds, and bytes."""
    with av.open(str(path)) as container:
        stream = next(stream for stream in container.streams if stream.type == kind)
        found = [packet for packet in container.demux(stream) if packet.size]
        return [(packet.pts * packet.time_base, bytes(packet)) for packet in found]


def make_gif(
    path: Path, durations=(50, 100, 30, 200), loop: int | None = 0, hole: bool = False
) -> Path:
    """Write an animation in any format that Pillow writes; a hole is a transparent square."""
    pages = [Image.fromarray(scene(4 * index)) for index in range(len(durations))]
    if hole:
        for page in pages:
            page.putalpha(255)
            page.paste((0, 0, 0, 0), (8, 8, 16, 16))
    options = {} if loop is None else {"loop": loop}
    pages[0].save(
        path,
        save_all=True,
        append_images=pages[1:],
        duration=list(durations),
        disposal=2 if hole else 0,
        **options,
    )
    return path
