"""Encode enlarged frames as video, and write them with the sound and the subtitles of their source, by PyAV.

Sound and subtitles are copied packet by packet, never decoded.
"""

import heapq
import io
import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from utils import cli, images
from video import clips
from video.clips import Clip, reason
from video.frames import from_rgb, pyav

SUFFIXES = {
    ".mp4": "mp4",
    ".m4v": "mp4",
    ".mov": "mov",
    ".mkv": "matroska",
    ".webm": "webm",
}  # and their muxers
_GLOBAL_HEADER = 1 << 22  # a codec's flag
_LARGEST_LAG = 10  # seconds by which a file's streams may be apart
_KEPT_TAGS = ("language", "title", "handler_name")
_CONTAINERS_OWN_TAGS = ("major_brand", "minor_version", "compatible_brands", "encoder")


class Packet(NamedTuple):
    """An encoded frame: its number in the clip, whether it can be decoded alone, and its bytes."""

    frame: int
    key: bool
    data: bytes


@dataclass(frozen=True)
class Codec:
    """An encoder, its quality (CRF, lower is better; None: lossless), and how far it moves a frame to an earlier place."""

    encoder: str
    crf: int | None
    largest_crf: int
    reorder: int = 0
    pixels: str = "yuv420p"
    options: dict[str, str] = field(default_factory=dict)


CODECS = {
    "h264": Codec("libx264", 18, 51, reorder=2),
    "hevc": Codec("libx265", 20, 51, reorder=2, options={"x265-params": "log-level=error"}),
    "vp9": Codec("libvpx-vp9", 24, 63, options={"b": "0", "cpu-used": "4", "row-mt": "1"}),
    "av1": Codec("libsvtav1", 24, 63, options={"preset": "8"}),
    "ffv1": Codec("ffv1", None, 0, pixels="bgr0"),
}


# --- encoding -----------------------------------------------------------------------------------------------------


def check_codec(path: str | Path, codec: str | None, crf: int | None) -> str:
    """Return the codec for an output path: H.264 (VP9 in WebM) unless another is named.

    Raises:
        UserError: the path's suffix or the codec is unknown, they do not fit, or the codec has no such CRF.
    """
    av, suffix = pyav(), Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise cli.UserError(
            f"{path}: cannot write {suffix or 'a file without suffix'}; use one of {', '.join((*SUFFIXES, '.gif', '.webp'))}"
        )
    codec = codec or ("vp9" if suffix == ".webm" else "h264")
    available = [name for name, known in CODECS.items() if known.encoder in av.codecs_available]
    if codec not in available:
        raise cli.UserError(f"--codec {codec}: not available; use one of {', '.join(available)}")
    with av.open(io.BytesIO(), "w", format=SUFFIXES[suffix]) as container:
        fitting = [name for name in available if CODECS[name].encoder in container.supported_codecs]
    if codec not in fitting:
        raise cli.UserError(
            f"--codec {codec}: {suffix} cannot hold it; use one of {', '.join(fitting)}, or another suffix"
        )
    if crf is not None and crf > CODECS[codec].largest_crf:
        known = CODECS[codec]
        allowed = f"takes 0 to {known.largest_crf}" if known.crf is not None else "is lossless"
        raise cli.UserError(f"--crf {crf}: {codec} {allowed}")
    return codec


class VideoTrack:
    """The pictures of a result: encoded in segments that need nothing of each other, written with the source's other streams.

    Args:
        path: output path.
        clip: the source.
        codec: key of `CODECS`.
        crf: quality; None: the codec's default.
        width, height: of the pictures; an odd side is made even by repeating the last column or row.

    Raises:
        UserError: the encoder refuses these settings, or the container its stream.
    """

    def __init__(
        self, path: Path, clip: Clip, codec: str, crf: int | None, width: int, height: int
    ):
        self.path, self.clip, self.codec = path, clip, CODECS[codec]
        self.muxer = SUFFIXES[path.suffix.lower()]
        self.crf = self.codec.crf if crf is None else crf
        subsampled = self.codec.pixels == "yuv420p"
        self.padding = (height % 2, width % 2) if subsampled else (0, 0)
        self.height, self.width = height + self.padding[0], width + self.padding[1]
        av = pyav()
        try:
            self._set_up(av.CodecContext.create(self.codec.encoder, "w")).open()
        except (av.FFmpegError, ValueError, OverflowError) as error:
            raise cli.UserError(
                f"{path}: {codec} cannot encode {self.width}x{self.height} ({reason(error)}); try another --codec"
            ) from error
        self.copied, self.notes = self._streams_that_fit()
        if any(self.padding):
            self.notes.append(
                f"{path}: {width}x{height} becomes {self.width}x{self.height}, as the codec needs even sides"
            )

    def _set_up(self, context) -> Any:
        """Configure an encoder; it counts frames, and `write` gives them their times."""
        clip = self.clip
        context.width, context.height, context.pix_fmt = self.width, self.height, self.codec.pixels
        context.framerate, context.time_base = clip.rate, 1 / clip.rate
        context.flags |= _GLOBAL_HEADER
        if clip.aspect:
            context.sample_aspect_ratio = clip.aspect
        if self.codec.pixels == "yuv420p":
            colours = clip.colours
            context.colorspace, context.color_range = colours.matrix, colours.range
            context.color_primaries, context.color_trc = colours.primaries, colours.transfer
        context.options = self.codec.options | ({} if self.crf is None else {"crf": str(self.crf)})
        return context

    def start(self, first: int) -> None:
        """Begin a segment with frame number `first`."""
        self.encoder = self._set_up(pyav().CodecContext.create(self.codec.encoder, "w"))
        self.first, self.count, self.packets = first, 0, []

    def add(self, picture: images.Picture) -> None:
        """Encode the next frame, on white where it is transparent."""
        rgb = images.on_white(picture)
        if any(self.padding):
            rgb = np.pad(rgb, ((0, self.padding[0]), (0, self.padding[1]), (0, 0)), "edge")
        frame = from_rgb(rgb, self.codec.pixels, self.clip.colours)
        frame.pts, frame.time_base = self.count, 1 / self.clip.rate
        self.count += 1
        self._keep(self.encoder.encode(frame))

    def finish(self) -> list[Packet]:
        """End the segment and return its packets in the order of decoding."""
        self._keep(self.encoder.encode(None))
        self.encoder = None
        return self.packets

    def _keep(self, encoded: Iterable) -> None:
        self.packets += [
            Packet(self.first + packet.pts, packet.is_keyframe, bytes(packet)) for packet in encoded
        ]

    # --- writing --------------------------------------------------------------------------------------------------

    def _streams_that_fit(self) -> tuple[list[int], list[str]]:
        """Return which of the source's streams can be copied, and a line about each of the others."""
        with _source(self.clip) as source:
            if error := self._header_error(source, []):
                raise cli.UserError(
                    f"{self.path}: cannot be written: {error}; try another --codec or suffix"
                )
            fitting, notes = [], []
            pictures = None if source is None else clips.video_stream(self.clip.path, source)
            for stream in () if source is None else source.streams:
                if stream.index == pictures.index:
                    continue
                name = getattr(stream, "name", None) or "unknown format"
                if stream.type not in ("audio", "subtitle", "attachment"):
                    why = "only sound, subtitles and attached fonts are copied"
                elif self._header_error(source, [stream.index]):
                    why = f"{self.path.suffix} cannot hold it"
                else:
                    fitting.append(stream.index)
                    continue
                notes.append(
                    f"{self.path}: {stream.type} stream {stream.index} ({name}) is left out: {why}"
                )
        return fitting, notes

    def _header_error(self, source, copied: list[int]) -> str:
        """Try to write a file's header; return what goes wrong, or an empty text."""
        av = pyav()
        try:
            with av.open(io.BytesIO(), "w", format=self.muxer) as out:
                self._streams(out, source, copied)
                out.start_encoding()
        except (av.FFmpegError, ValueError) as error:
            return reason(error)
        return ""

    def _streams(self, out, source, copied: list[int]) -> tuple[Any, dict[int, Any]]:
        """Add the streams to an output; return that of the pictures and, by their numbers in the source, those to copy."""
        stream = out.add_stream(self.codec.encoder, rate=self.clip.rate)
        self._set_up(stream.codec_context)
        stream.time_base = self.clip.time_base
        if self.muxer in ("mp4", "mov") and self.codec.encoder == "libx265":
            stream.codec_context.codec_tag = "hvc1"  # Apple's players want it
        copies = {}
        for index in copied:
            template = source.streams[index]
            copies[index] = out.add_stream_from_template(template)
            copies[index].disposition = template.disposition
            copies[index].metadata.update(
                {tag: text for tag, text in template.metadata.items() if tag in _KEPT_TAGS}
            )
        return stream, copies

    def write(self, file: IO[bytes], packets: Iterable[Packet]) -> None:
        """Write the file: the encoded pictures with their times, and the streams that are copied.

        Args:
            file: opened for writing, with a name.
            packets: of all segments in order.

        Raises:
            OSError: it cannot be written.
        """
        av = pyav()

        def read_back(_url, _flags, _options):  # for faststart, which moves the index to the front
            file.flush()
            return open(file.name, "rb")

        with _source(self.clip) as source:
            try:
                with av.open(
                    file,
                    "w",
                    self.muxer,
                    container_options=self._options(source),
                    io_open=read_back,
                ) as out:
                    stream, copies = self._streams(out, source, self.copied)
                    if source is not None:
                        out.metadata.update(
                            {
                                k: v
                                for k, v in source.metadata.items()
                                if k not in _CONTAINERS_OWN_TAGS
                            }
                        )
                        if not self.clip.span:
                            out.set_chapters(source.chapters())
                    out.start_encoding()
                    others = _copied_packets(source, copies, self.clip) if copies else ()
                    for packet in heapq.merge(
                        self._timed(stream, packets), others, key=_decoding_time
                    ):
                        out.mux_one(packet)
            except (av.FFmpegError, OSError) as error:
                raise OSError(error.errno, reason(error), file.name) from error

    def _options(self, source) -> dict[str, str]:
        """Return the muxer's options: an MP4 has its index in front and units in which all times are whole."""
        if self.muxer not in ("mp4", "mov"):
            return {}
        units = [
            self.clip.time_base.denominator,
            *(source.streams[index].time_base.denominator for index in self.copied),
        ]
        common = math.lcm(*units)
        return {
            "movflags": "+faststart",
            "movie_timescale": str(common if common < 2**31 else 90_000),
            **(
                {"video_track_timescale": str(units[0])}
                if self.clip.time_base.numerator == 1
                else {}
            ),
        }

    def _timed(self, stream, packets: Iterable[Packet]) -> Iterator[Any]:
        """Give the packets the times of their frames; they are decoded `reorder` frames before these are due."""
        clip, delay = self.clip, self.codec.reorder
        for place, (frame, key, data) in enumerate(packets):
            packet = pyav().Packet(data)
            packet.stream, packet.time_base, packet.is_keyframe = stream, clip.time_base, key
            packet.pts, packet.duration = clip.times[frame], clip.durations[frame]
            early = place - delay
            packet.dts = (
                clip.times[early] if early >= 0 else clip.times[0] + early * clip.durations[0]
            )
            yield packet


@contextmanager
def _source(clip: Clip) -> Iterator[Any]:
    """Open a clip once more for its other streams; an animation has none."""
    if clip.animated:
        yield None
    else:
        with clips.opened(clip.path) as container:
            yield container


def _decoding_time(packet) -> Fraction:
    return packet.dts * packet.time_base


def _copied_packets(source, copies: dict[int, Any], clip: Clip) -> Iterator[Any]:
    """Yield the packets of the copied streams that begin within the clip, at their new times."""
    for packet in _until_damaged(
        source.demux([source.streams[index] for index in copies]), clip.path
    ):
        if packet.dts is None:  # the end of a stream
            continue
        begin = (packet.dts if packet.pts is None else packet.pts) * packet.time_base
        if clip.span and begin > clip.span[1] + _LARGEST_LAG:
            return
        if clip.span and not clip.span[0] <= begin < clip.span[1]:
            continue
        shift = round(clip.offset / packet.time_base)
        packet.dts -= shift
        packet.pts = None if packet.pts is None else packet.pts - shift
        packet.stream = copies[packet.stream_index]
        yield packet


def _until_damaged(packets: Iterator[Any], path: Path) -> Iterator[Any]:
    try:
        yield from packets
    except pyav().FFmpegError as error:
        print(
            f"{path}: sound and subtitles end where the file is damaged ({reason(error)})",
            file=sys.stderr,
        )
