"""Clips made on the spot: a pattern that moves by one pixel per frame, with sound, subtitles, rotation or tags as asked for."""

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
    """Frame number `index` (H, W, 3): smooth stripes that move to the left; each corner has a colour of its own."""
    columns, rows = np.meshgrid(np.arange(width) + index, np.arange(height))
    rgb = np.stack(
        [128 + 90 * np.sin(columns / 5), 128 + 90 * np.cos(rows / 6), 60 + 3 * rows], 2
    ).astype(np.uint8)
    for corner, colour in enumerate([(230, 30, 30), (30, 230, 30), (30, 30, 230), (230, 230, 230)]):
        top, left = (height - 8) * (corner // 2), (width - 8) * (corner % 2)
        rgb[top : top + 8, left : left + 8] = colour
    return rgb


def bars(_index: int, width: int, height: int) -> np.ndarray:
    """A gray ramp above eight bars of colour."""
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[: height // 2] = np.linspace(0, 255, width).astype(np.uint8)[None, :, None]
    for place in range(8):
        rgb[height // 2 :, place * width // 8 : (place + 1) * width // 8] = [
            255 * (place >> bit & 1) for bit in range(3)
        ]
    return rgb


def flat_parts(image: np.ndarray, scale: int = 1) -> list[np.ndarray]:
    """The ramp, and the inner parts of the bars, of an image of 128x32 enlarged by `scale`."""
    inner = [
        image[20 * scale : 30 * scale, (16 * place + 4) * scale : (16 * place + 12) * scale]
        for place in range(8)
    ]
    return [image[: 12 * scale].astype(int), *(part.astype(int) for part in inner)]


def make_clip(
    path: Path, count: int = 40, size=(32, 24), codec: str = "libx264", times=None, sound: str | None = None, words: str = "",
    colours: Colours | None = None, pixels: str = "yuv420p", draw=scene, rotation: int = 0, aspect=None, time_base: Fraction = TIME_BASE, **options,
) -> Path:  # fmt: skip
    """Write `count` frames, by default 25 per second, or at `times` in ticks of `time_base`."""
    with av.open(str(path), "w", options=options.pop("container", {})) as out:
        stream = out.add_stream(codec, rate=RATE, options={"crf": "12", **options})
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        stream.codec_context.time_base = time_base
        if colours:
            stream.colorspace, stream.color_range = colours.matrix, colours.range
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
            packet.stream, packet.time_base = subtitles, Fraction(1, 1000)
            packet.pts = packet.dts = 200
            packet.duration = 500
            out.mux(packet)
        for index in range(count):
            frame = frames.from_rgb(draw(index, *size), pixels, colours or Colours(frames.BT601))
            frame.pts, frame.time_base = (times[index] if times else index * 600 // RATE), time_base
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
    frame.sample_rate, frame.pts, frame.time_base = 48000, index * count, Fraction(1, 48000)
    return frame


def decoded(path: Path) -> tuple[list[np.ndarray], list[Fraction]]:
    """The frames of a video as PyAV's own default conversion shows them, and their times in seconds."""
    with av.open(str(path)) as container:
        shown = list(container.decode(video=0))
        return [frame.to_ndarray(format="rgb24") for frame in shown], [
            frame.pts * frame.time_base for frame in shown
        ]


def packets(path: Path, kind: str) -> list[tuple]:
    """The packets of the first stream of a kind: time in seconds, and bytes."""
    with av.open(str(path)) as container:
        stream = next(stream for stream in container.streams if stream.type == kind)
        return [
            (packet.pts * packet.time_base, bytes(packet))
            for packet in container.demux(stream)
            if packet.size
        ]


def make_gif(
    path: Path, durations=(50, 100, 30, 200), loop: int | None = 0, hole: bool = False
) -> Path:
    """Write an animation, of any format that Pillow writes, with a transparent square if there is to be a hole."""
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
