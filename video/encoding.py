"""Encode enlarged frames as video, and write them with the source's sound and subtitles.

PyAV encodes and writes. Sound and subtitles are copied packet by packet, never decoded.
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
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from utils import cli, images
from video import clips
from video.clips import Clip, reason
from video.frames import bits_of, from_rgb, pyav

if TYPE_CHECKING:
    import av
    from av.container import InputContainer, OutputContainer

# FFmpeg's muxer for each suffix
SUFFIXES = {
    ".mp4": "mp4",
    ".m4v": "mp4",
    ".mov": "mov",
    ".mkv": "matroska",
    ".webm": "webm",
}
_LARGEST_LAG = 10  # seconds by which one stream's packets may trail another's in a file
_KEPT_TAGS = ("language", "title", "handler_name")
_CONTAINERS_OWN_TAGS = ("major_brand", "minor_version", "compatible_brands", "encoder")


class Packet(NamedTuple):
    """An encoded frame: its number in the clip, whether it is a key frame, and its bytes."""

    frame: int
    key: bool
    data: bytes


@dataclass(frozen=True)
class Codec:
    """An encoder and its settings.

    Attributes:
        encoder: FFmpeg's name.
        crf: default quality, lower is better; None: lossless.
        largest_crf: the worst quality.
        reorder: by how many frames decoding runs ahead of display (B-frames).
        pixels: pixel format.
        deep_pixels: pixel format for more than 8 bits per channel; None: there is none that players
            can be expected to show.
        options: further options of the encoder.
    """

    encoder: str
    crf: int | None
    largest_crf: int
    reorder: int = 0
    pixels: str = "yuv420p"
    deep_pixels: str | None = None
    options: dict[str, str] = field(default_factory=dict)


CODECS = {
    "h264": Codec("libx264", 18, 51, reorder=2),
    "hevc": Codec(
        "libx265",
        20,
        51,
        reorder=2,
        deep_pixels="yuv420p10le",
        options={"x265-params": "log-level=error"},
    ),
    "vp9": Codec("libvpx-vp9", 24, 63, options={"b": "0", "cpu-used": "4", "row-mt": "1"}),
    "av1": Codec("libsvtav1", 24, 63, deep_pixels="yuv420p10le", options={"preset": "8"}),
    "ffv1": Codec("ffv1", None, 0, pixels="bgr0", deep_pixels="gbrp16le"),
}


def codec_for(path: str | Path, codec: str | None, crf: int | None) -> str:
    """Return the codec for an output path: H.264 (VP9 in WebM) unless another is named.

    Raises:
        UserError: the suffix or the codec is unknown, the container cannot hold the codec, or the
            codec has no such CRF.
    """
    av = pyav()

    # Suffix
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        unknown = suffix or "a file without a suffix"
        allowed = ", ".join((*SUFFIXES, ".gif", ".webp"))
        raise cli.UserError(f"{path}: cannot write {unknown}; use one of {allowed}")

    # Codec
    if not codec:
        codec = "vp9" if suffix == ".webm" else "h264"
    available = [name for name, known in CODECS.items() if known.encoder in av.codecs_available]
    if codec not in available:
        raise cli.UserError(f"--codec {codec}: not available; use one of {', '.join(available)}")
    with av.open(io.BytesIO(), "w", format=SUFFIXES[suffix]) as container:
        fitting = [name for name in available if CODECS[name].encoder in container.supported_codecs]
    if codec not in fitting:
        raise cli.UserError(
            f"--codec {codec}: {suffix} cannot hold it; use one of {', '.join(fitting)}, "
            "or another suffix"
        )

    # CRF
    known = CODECS[codec]
    if crf is not None and crf > known.largest_crf:
        allowed = "is lossless" if known.crf is None else f"takes 0 to {known.largest_crf}"
        raise cli.UserError(f"--crf {crf}: {codec} {allowed}")
    return codec


def keeps_depth(codec: str | None, clip: Clip) -> bool:
    """Tell whether a clip has more than 8 bits per channel and a codec, if any, keeps them."""
    return clip.bits > 8 and codec is not None and CODECS[codec].deep_pixels is not None


class VideoTrack:
    """The frames of a result: encoded in independent segments, then written to a file.

    The file also gets the sound, the subtitles and the attachments of the source.

    Args:
        path: output path.
        clip: the source.
        codec: key of `CODECS`.
        crf: quality; None: the codec's default.
        width, height: of the frames. The last column or row is repeated if the codec needs even
            sides.

    Attributes:
        notes: what the user should know.

    Raises:
        UserError: the encoder refuses these settings, or the container its stream.
    """

    def __init__(
        self, path: Path, clip: Clip, codec: str, crf: int | None, width: int, height: int
    ):
        self.path = path
        self.clip = clip
        self.codec = CODECS[codec]
        self.muxer = SUFFIXES[path.suffix.lower()]
        self.crf = self.codec.crf if crf is None else crf
        deep_pixels = self.codec.deep_pixels if clip.bits > 8 else None
        self.deep = deep_pixels is not None
        self.pixels = deep_pixels or self.codec.pixels

        # Size
        self.padding = (height % 2, width % 2) if self.is_subsampled else (0, 0)
        self.height = height + self.padding[0]
        self.width = width + self.padding[1]

        # Refuse early what the encoder or the container would refuse later
        av = pyav()
        try:
            self._new_encoder().open()
        except (av.FFmpegError, ValueError, OverflowError) as error:
            raise cli.UserError(
                f"{path}: {codec} cannot encode {self.width}x{self.height} ({reason(error)}); "
                "try another --codec"
            ) from error
        self.copied, self.notes = self._streams_that_fit()
        bits = bits_of(self.pixels)
        if clip.bits > bits:
            advice = "" if self.deep else "; --codec hevc and av1 keep 10"
            self.notes.append(f"{path}: {clip.bits}-bit colours become {bits}-bit{advice}")
        if any(self.padding):
            self.notes.append(
                f"{path}: {width}x{height} is padded to {self.width}x{self.height}, "
                "because the codec needs even sides"
            )

    @property
    def is_subsampled(self) -> bool:
        """Whether pixels are YCbCr with one chroma for four of them, rather than RGB."""
        return self.pixels.startswith("yuv420p")

    # --- encoding -------------------------------------------------------------------------------

    def start(self, first: int) -> None:
        """Begin a segment with frame number `first`."""
        self.encoder = self._new_encoder()
        self.first = first
        self.count = 0
        self.packets: list[Packet] = []

    def add(self, picture: images.Picture) -> None:
        """Encode the next frame, on white where it is transparent."""
        rgb = picture.rgb if self.deep and images.is_16_bit(picture) else images.on_white(picture)
        if any(self.padding):
            rows, columns = self.padding
            rgb = np.pad(rgb, ((0, rows), (0, columns), (0, 0)), "edge")
        frame = from_rgb(rgb, self.pixels, self.clip.colours)
        frame.pts = self.count
        frame.time_base = 1 / self.clip.rate
        self.count += 1
        self._keep(self.encoder.encode(frame))

    def finish(self) -> list[Packet]:
        """End the segment and return its packets in the order of decoding."""
        self._keep(self.encoder.encode(None))
        self.encoder = None
        return self.packets

    def _keep(self, encoded: "Iterable[av.Packet]") -> None:
        for packet in encoded:
            assert packet.pts is not None
            self.packets.append(Packet(self.first + packet.pts, packet.is_keyframe, bytes(packet)))

    def _new_encoder(self) -> Any:
        encoder = pyav().CodecContext.create(self.codec.encoder, "w")
        self._configure(encoder)
        return encoder

    def _configure(self, encoder: "av.VideoCodecContext") -> None:
        """Configure an encoder. It only counts frames; `write` gives them their times."""
        clip = self.clip
        encoder.width = self.width
        encoder.height = self.height
        encoder.pix_fmt = self.pixels
        encoder.framerate = clip.rate
        encoder.time_base = 1 / clip.rate
        encoder.flags |= pyav().codec.context.Flags.global_header
        if clip.aspect:
            encoder.sample_aspect_ratio = clip.aspect
        if self.is_subsampled:
            encoder.colorspace = clip.colours.matrix
            encoder.color_range = clip.colours.range
            encoder.color_primaries = clip.colours.primaries
            encoder.color_trc = clip.colours.transfer
        quality = {} if self.crf is None else {"crf": str(self.crf)}
        encoder.options = self.codec.options | quality

    # --- writing --------------------------------------------------------------------------------

    def write(self, file: IO[bytes], packets: Iterable[Packet]) -> None:
        """Write the frames with their times, and the copied streams.

        Args:
            file: opened for writing, with a name.
            packets: of all segments in order.

        Raises:
            OSError: it cannot be written.
        """
        av = pyav()

        # For faststart, which reads the file back to move its index to the front
        def read_back(_url: str, _flags: int, _options: dict[str, str]) -> IO[bytes]:
            file.flush()
            return open(file.name, "rb")

        with _source(self.clip) as source:
            options = self._muxer_options(source)
            try:
                with av.open(
                    file, "w", self.muxer, container_options=options, io_open=read_back
                ) as out:
                    # Header
                    stream, copies = self._add_streams(out, source, self.copied)
                    if source is not None:
                        for tag, text in source.metadata.items():
                            if tag not in _CONTAINERS_OWN_TAGS:
                                out.metadata[tag] = text
                        if not self.clip.span:
                            out.set_chapters(source.chapters())
                    out.start_encoding()

                    # Packets, in the order of decoding
                    merged = [self._timed(stream, packets)]
                    if source is not None and copies:
                        merged.append(_copied_packets(source, copies, self.clip))
                    for packet in heapq.merge(*merged, key=_decoding_time):
                        out.mux_one(packet)
            except (av.FFmpegError, OSError) as error:
                raise OSError(error.errno, reason(error), file.name) from error

    def _streams_that_fit(self) -> tuple[list[int], list[str]]:
        """Return which of the source's streams can be copied, and a note on each of the others.

        Raises:
            UserError: the container refuses even the frames.
        """
        fitting: list[int] = []
        notes: list[str] = []
        with _source(self.clip) as source:
            if error := self._header_error(source, []):
                raise cli.UserError(
                    f"{self.path}: cannot be written: {error}; try another --codec or suffix"
                )
            if source is None:
                return fitting, notes
            frames = clips.video_stream(self.clip.path, source)
            for stream in source.streams:
                if stream.index == frames.index:
                    continue
                if stream.type not in ("audio", "subtitle", "attachment"):
                    why = "only sound, subtitles and attached fonts are copied"
                elif self._header_error(source, [stream.index]):
                    why = f"{self.path.suffix} cannot hold it"
                else:
                    fitting.append(stream.index)
                    continue
                name = getattr(stream, "name", None) or "unknown format"
                notes.append(
                    f"{self.path}: {stream.type} stream {stream.index} ({name}) is left out: {why}"
                )
        return fitting, notes

    def _header_error(self, source: "InputContainer | None", copied: list[int]) -> str:
        """Write a file's header to memory; return what goes wrong, or an empty text."""
        av = pyav()
        try:
            with av.open(io.BytesIO(), "w", format=self.muxer) as out:
                self._add_streams(out, source, copied)
                out.start_encoding()
        except (av.FFmpegError, ValueError) as error:
            return reason(error)
        return ""

    def _add_streams(
        self, out: "OutputContainer", source: "InputContainer | None", copied: list[int]
    ) -> tuple["av.VideoStream", dict[int, "av.stream.Stream"]]:
        """Add all streams to an output.

        Returns:
            The stream of the frames, and the copied streams by their index in the source.
        """
        stream: Any = out.add_stream(self.codec.encoder, rate=self.clip.rate)
        self._configure(stream.codec_context)
        stream.time_base = self.clip.time_base
        if self.muxer in ("mp4", "mov") and self.codec.encoder == "libx265":
            stream.codec_context.codec_tag = "hvc1"  # Apple's players need it
        copies: dict[int, av.stream.Stream] = {}
        if source is None:
            return stream, copies
        for index in copied:
            template = source.streams[index]
            copy = out.add_stream_from_template(template)
            copy.disposition = template.disposition
            for tag, text in template.metadata.items():
                if tag in _KEPT_TAGS:
                    copy.metadata[tag] = text
            copies[index] = copy
        return stream, copies

    def _muxer_options(self, source: "InputContainer | None") -> dict[str, str]:
        """Return options that put an MP4's index in front and keep all of its times exact."""
        if self.muxer not in ("mp4", "mov"):
            return {}
        time_bases: list[Any] = [self.clip.time_base]
        if source is not None:
            time_bases += [source.streams[index].time_base for index in self.copied]
        common = math.lcm(*(time_base.denominator for time_base in time_bases))
        options = {
            "movflags": "+faststart",
            "movie_timescale": str(common if common < 2**31 else 90_000),
        }
        if self.clip.time_base.numerator == 1:
            options["video_track_timescale"] = str(self.clip.time_base.denominator)
        return options

    def _timed(self, stream: "av.VideoStream", packets: Iterable[Packet]) -> Iterator["av.Packet"]:
        """Give packets the times of their frames; decoding runs `reorder` frames ahead."""
        times = self.clip.times
        durations = self.clip.durations
        for place, (frame, key, data) in enumerate(packets):
            packet = pyav().Packet(data)
            packet.stream = stream
            packet.time_base = self.clip.time_base
            packet.is_keyframe = key
            packet.pts = times[frame]
            packet.duration = durations[frame]
            early = place - self.codec.reorder
            packet.dts = times[early] if early >= 0 else times[0] + early * durations[0]
            yield packet


# --- the source's other streams -----------------------------------------------------------------


@contextmanager
def _source(clip: Clip) -> Iterator["InputContainer | None"]:
    """Open a clip again for its other streams; an animation has none."""
    if clip.animated:
        yield None
    else:
        with clips.opened(clip.path) as container:
            yield container


def _decoding_time(packet: "av.Packet") -> Fraction:
    assert packet.dts is not None
    return packet.dts * packet.time_base


def _copied_packets(
    source: "InputContainer", copies: dict[int, "av.stream.Stream"], clip: Clip
) -> Iterator["av.Packet"]:
    """Yield the packets of copied streams that begin within the clip, at their new times."""
    wanted = [source.streams[index] for index in copies]
    for packet in _until_damaged(source.demux(wanted), clip.path):
        if packet.dts is None:  # the end of a stream
            continue
        begin = (packet.dts if packet.pts is None else packet.pts) * packet.time_base
        if clip.span and begin > clip.span[1] + _LARGEST_LAG:
            return
        if clip.span and not clip.span[0] <= begin < clip.span[1]:
            continue
        shift = round(clip.offset / packet.time_base)
        packet.dts -= shift
        if packet.pts is not None:
            packet.pts -= shift
        packet.stream = copies[packet.stream_index]
        yield packet


def _until_damaged(packets: "Iterator[av.Packet]", path: Path) -> Iterator["av.Packet"]:
    try:
        yield from packets
    except pyav().FFmpegError as error:
        print(
            f"{path}: sound and subtitles end where the file is damaged ({reason(error)})",
            file=sys.stderr,
        )
