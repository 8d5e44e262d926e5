import itertools
import shutil
import subprocess
from fractions import Fraction

import numpy as np
import pytest

av = pytest.importorskip("av", reason="videos need PyAV: pip install av")

import footage  # noqa: E402 - needs PyAV

from utils import cli, images  # noqa: E402
from video import clips, encoding, frames  # noqa: E402
from video.frames import BT601, BT709, FULL, LIMITED, Colours  # noqa: E402


def encode(path, clip, codec, pictures, crf=None, segment=7) -> encoding.VideoTrack:
    """Encode pictures in segments, and write them."""
    height, width = pictures[0].shape[:2]
    track = encoding.VideoTrack(path, clip, codec, crf, width, height)
    packets = []
    for first in range(0, len(pictures), segment):
        track.start(first)
        for rgb in pictures[first : first + segment]:
            track.add(images.Picture(rgb))
        packets += track.finish()
    with open(path, "w+b") as file:
        track.write(file, packets)
    return track


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [
        ("h264", ".mp4"),
        ("h264", ".mkv"),
        ("hevc", ".mp4"),
        ("hevc", ".mov"),
        ("vp9", ".webm"),
        ("av1", ".mp4"),
        ("ffv1", ".mkv"),
    ],
)
def test_every_codec_gives_every_frame_at_its_time(tmp_path, codec, suffix, capfd):
    source = footage.make_clip(tmp_path / "a.mp4", 10, (64, 64), times=footage.UNEVEN)
    pictures = [footage.scene(index, 64, 64) for index in range(10)]
    path = tmp_path / f"b{suffix}"
    encode(path, clips.read_clip(source), codec, pictures)
    shown, times = footage.decoded(path)

    # Times of display: Matroska rounds to milliseconds
    true = [Fraction(ticks, 600) for ticks in footage.UNEVEN]
    tolerance = Fraction(1, 2000) if suffix in (".mkv", ".webm") else 0
    assert all(abs(a - b) <= tolerance for a, b in zip(times, true, strict=True))

    # Times of decoding
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.dts is not None]
    assert all(packet.dts <= packet.pts for packet in packets)
    assert all(before.dts < after.dts for before, after in itertools.pairwise(packets))

    # Pixels
    assert len(shown) == 10
    for got, expected in zip(shown, pictures, strict=True):
        difference = np.abs(got.astype(int) - expected)
        assert difference.max() == 0 if codec == "ffv1" else difference.mean() < 8
    assert not any(capfd.readouterr())


def ramp_of_16_bits(index: int, width: int, height: int) -> np.ndarray:
    """A gray ramp so gentle that 8 bits have only 21 steps of it."""
    levels = np.linspace(30_000 + 100 * index, 35_000 + 100 * index, width).round()
    return np.broadcast_to(levels[None, :, None], (height, width, 3)).astype(np.uint16)


@pytest.mark.parametrize(
    ("codec", "suffix", "pixels", "steps", "error"),
    [
        ("hevc", ".mp4", "yuv420p10le", 60, 80),
        ("av1", ".mkv", "yuv420p10le", 60, 80),
        ("ffv1", ".mkv", "gbrp16le", 250, 0),
        ("h264", ".mp4", "yuv420p", 15, 200),
    ],
)
def test_ten_bits_are_kept_where_the_codec_can(tmp_path, codec, suffix, pixels, steps, error):
    source = footage.make_clip(
        tmp_path / "a.mp4", 3, (256, 64), pixels="yuv420p10le", draw=ramp_of_16_bits
    )
    pictures = [ramp_of_16_bits(index, 256, 64) for index in range(3)]
    path = tmp_path / f"b{suffix}"
    track = encode(path, clips.read_clip(source), codec, pictures, crf=0 if codec == "ffv1" else 4)
    notes = [note for note in track.notes if "bit" in note]
    told = [f"{path}: 10-bit colours become 8-bit; --codec hevc and av1 keep 10"]
    assert notes == (told if codec == "h264" else [])
    result = clips.read_clip(path)
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.pix_fmt == pixels
    for picture, expected in zip(clips.pictures(result, deep=True), pictures, strict=True):
        assert np.abs(picture.rgb.astype(int) - expected).mean() <= error
        assert len(np.unique(picture.rgb[32, :, 1])) >= steps
        if codec == "h264":
            assert len(np.unique(picture.rgb[32, :, 1])) < 30


@pytest.mark.parametrize("matrix", [BT601, BT709])
@pytest.mark.parametrize("value_range", [LIMITED, FULL])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_ramps_and_bars_survive_and_are_tagged(tmp_path, matrix, value_range, suffix):
    true = np.kron(footage.bars(0, 128, 32), np.ones((2, 2, 1), np.uint8))
    source = footage.make_clip(tmp_path / "a.mp4", 2, colours=Colours(matrix, value_range))
    path = tmp_path / f"b{suffix}"
    encode(path, clips.read_clip(source), "h264", [true, true], crf=1)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        assert (frame.colorspace, frame.color_range) == (matrix, value_range)
        planes = []
        for plane in frame.planes:
            rows = np.asarray(plane).reshape(-1, plane.line_size)
            planes.append(rows[:, : plane.width].astype(float))

    # Decode by the formulas of BT.601 and BT.709
    low, span, chroma = (0, 255, 255) if value_range == FULL else (16, 219, 224)
    kr, kb = (0.299, 0.114) if matrix == BT601 else (0.2126, 0.0722)
    y = (planes[0] - low) / span
    cb, cr = ((np.kron(plane, np.ones((2, 2))) - 128) / chroma for plane in planes[1:])
    r = y + 2 * (1 - kr) * cr
    b = y + 2 * (1 - kb) * cb
    g = (y - kr * r - kb * b) / (1 - kr - kb)
    shown = (255 * np.stack([r, g, b], 2)).clip(0, 255)
    parts = zip(footage.flat_parts(shown, 2), footage.flat_parts(true, 2), strict=True)
    for got, expected in parts:
        assert np.abs(got - expected).max() <= 2.6


def test_ffmpeg_sees_the_same_colours_and_times(tmp_path):
    if not shutil.which("ffmpeg"):
        pytest.skip("ffmpeg's command line is not here")
    options = {"colours": Colours(BT709, FULL), "times": footage.UNEVEN[:9]}
    source = footage.make_clip(tmp_path / "a.mp4", 9, (64, 48), rotation=90, **options)
    clip = clips.read_clip(source)
    pictures = [picture.rgb for picture in clips.pictures(clip)]
    encode(tmp_path / "b.mp4", clip, "h264", pictures, crf=4)
    for path in (source, tmp_path / "b.mp4"):
        ffmpeg = ["ffmpeg", "-v", "error", "-i", str(path)]
        ffmpeg += ["-fps_mode", "passthrough", "-pix_fmt", "rgb24", "-f", "rawvideo", "-"]
        raw = subprocess.run(ffmpeg, capture_output=True, check=True).stdout
        upright = np.frombuffer(raw, np.uint8).reshape(9, 64, 48, 3)
        assert np.abs(upright.astype(int) - np.stack(pictures)).mean() < 8
        ffprobe = ["ffprobe", "-v", "error", "-show_entries", "frame=pts_time", "-of", "csv=p=0"]
        done = subprocess.run([*ffprobe, str(path)], capture_output=True, text=True)
        times = [float(line.strip(",")) for line in done.stdout.split()]
        assert np.allclose(times, [ticks / 600 for ticks in footage.UNEVEN[:9]], atol=1e-5)


def test_chapters_and_titles_are_kept_and_a_cover_is_named(tmp_path):
    source = footage.make_clip(tmp_path / "a.mkv", 25, sound="libopus")
    with av.open(str(source)) as old, av.open(str(tmp_path / "b.mkv"), "w") as new:
        streams = {}
        for stream in old.streams:
            streams[stream.index] = new.add_stream_from_template(stream, opaque=True)
        cover = new.add_stream("mjpeg", rate=1)
        cover.width = cover.height = 16
        cover.pix_fmt = "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        new.metadata["title"] = "A title"
        chapter = {"id": 1, "start": 0, "end": 500, "time_base": Fraction(1, 1000)}
        new.set_chapters([chapter | {"metadata": {"title": "One"}}])
        for packet in old.demux():
            if packet.size:
                packet.stream = streams[packet.stream_index]
                new.mux(packet)
        picture = frames.from_rgb(footage.scene(0, 16, 16), "yuvj420p", Colours(BT601, FULL))
        new.mux(cover.encode(picture))
    clip = clips.read_clip(tmp_path / "b.mkv")
    track = encode(tmp_path / "c.mkv", clip, "h264", [footage.scene(index) for index in range(25)])
    assert track.notes == [
        f"{tmp_path / 'c.mkv'}: video stream 2 (mjpeg) is left out: "
        "only sound, subtitles and attached fonts are copied"
    ]
    with av.open(str(tmp_path / "c.mkv")) as container:
        assert container.metadata["title"] == "A title"
        assert [chapter["metadata"]["title"] for chapter in container.chapters()] == ["One"]


def test_settings_that_an_encoder_refuses_are_one_line(tmp_path):
    clip = clips.read_clip(footage.make_clip(tmp_path / "a.mp4", 2))
    with pytest.raises(cli.UserError, match=r"h264 cannot encode 20000x16 .*; try another --codec"):
        encoding.VideoTrack(tmp_path / "b.mp4", clip, "h264", None, 20_000, 16)


def test_damaged_sound_ends_where_it_can_be_read(tmp_path, capsys):
    def packets():
        yield "first"
        raise av.InvalidDataError(1094995529, "damaged")

    assert list(encoding._until_damaged(packets(), "a.mp4")) == ["first"]
    assert "a.mp4: sound and subtitles end where the file is damaged" in capsys.readouterr().err
