import itertools
import math
import sys
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

av = pytest.importorskip("av", reason="videos need PyAV: pip install av")

import footage  # noqa: E402 - needs PyAV

from utils import cli  # noqa: E402
from video import clips, frames  # noqa: E402
from video.frames import BT601, BT709, FULL, LIMITED, Colours  # noqa: E402


@pytest.mark.parametrize("matrix", [BT601, BT709, 9])
@pytest.mark.parametrize("value_range", [LIMITED, FULL])
def test_ramps_and_bars_are_read_by_their_matrix_and_range(tmp_path, matrix, value_range):
    colours = Colours(matrix, value_range)
    path = footage.make_clip(
        tmp_path / "a.mp4", 2, (128, 32), draw=footage.bars, colours=colours, crf="1"
    )
    clip = clips.read_clip(path)
    assert (clip.colours.matrix, clip.colours.range) == (matrix, value_range)
    expected = footage.flat_parts(footage.bars(0, 128, 32))
    for picture in clips.pictures(clip):
        for got, true in zip(footage.flat_parts(picture.rgb), expected, strict=True):
            assert np.abs(got - true).max() <= 3


def test_colours_that_a_file_does_not_tell_are_guessed_as_players_do(tmp_path):
    small = clips.read_clip(footage.make_clip(tmp_path / "a.mp4", 1))
    large = clips.read_clip(footage.make_clip(tmp_path / "b.mp4", 1, (16, 720)))
    assert small.colours.matrix == BT601 and small.colours.range == LIMITED
    assert large.colours.matrix == BT709


@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
def test_frames_are_turned_upright(tmp_path, rotation):
    clip = clips.read_clip(
        footage.make_clip(tmp_path / "a.mp4", 2, rotation=rotation, aspect=Fraction(4, 3))
    )
    expected = np.rot90(footage.scene(0), rotation // 90)  # counter-clockwise
    assert (clip.height, clip.width) == expected.shape[:2]
    assert np.abs(next(clips.pictures(clip)).rgb.astype(int) - expected).mean() < 8
    assert clip.aspect == (Fraction(3, 4) if rotation % 180 else Fraction(4, 3))


def test_a_mirrored_frame_is_mirrored_back():
    image, one = footage.scene(0), 65536
    assert np.array_equal(frames.upright(image, (-one, 0, 0, 0, one)), image[:, ::-1])
    assert np.array_equal(frames.upright(image, (one, 0, 0, 0, -one)), image[::-1])
    assert np.array_equal(frames.upright(image, (0, one, 0, one, 0)), image.swapaxes(0, 1))
    assert np.array_equal(frames.upright(image, (0, -one, 0, one, 0)), np.rot90(image))


@pytest.mark.parametrize(
    ("options", "can_seek"),
    [({"g": "10"}, True), ({"g": "10", "flags": "-cgop", "x264-params": "open-gop=1"}, None)],
)
def test_a_part_is_the_same_whether_it_can_be_sought_or_not(tmp_path, options, can_seek):
    path = footage.make_clip(tmp_path / "a.mp4", 60, **options)
    whole = [picture.rgb for picture in clips.pictures(clips.read_clip(path))]
    for start, end in (("1", "1.5"), ("0.41", "2"), ("0", "0.2")):
        clip = clips.read_clip(path, Fraction(start), Fraction(end))
        first, last = (math.ceil(Fraction(seconds) * 25) for seconds in (start, end))
        part = [picture.rgb for picture in clips.pictures(clip)]
        assert len(clip.times) == len(part) == last - first and clip.times[0] == 0
        assert all(np.array_equal(a, b) for a, b in zip(part, whole[first:last], strict=True))
        if can_seek and first:
            assert clip.seek is not None and clip.skipped < 11
    rest = [picture.rgb for picture in clips.pictures(clip, 3)]
    assert all(np.array_equal(a, b) for a, b in zip(rest, part[3:], strict=True))


def test_times_are_those_of_the_file_but_begin_at_0_in_a_broadcast(tmp_path):
    times = [300 + ticks for ticks in footage.UNEVEN]
    path = footage.make_clip(tmp_path / "a.mp4", len(times), times=times)
    clip = clips.read_clip(path)
    seconds = [Fraction(ticks, 600) for ticks in times]
    assert [time * clip.time_base for time in clip.times] == seconds
    durations = [(after - before) / clip.time_base for before, after in itertools.pairwise(seconds)]
    assert clip.durations[:-1] == durations
    path = footage.make_clip(tmp_path / "a.ts", 5)
    with av.open(str(path)) as container:
        assert container.start_time > 0
    clip = clips.read_clip(path)
    seconds = [time * clip.time_base for time in clip.times]
    assert seconds == [Fraction(index, 25) for index in range(5)]


def test_an_avi_whose_times_are_those_of_decoding_is_read_in_order(tmp_path):
    clip = clips.read_clip(
        footage.make_clip(tmp_path / "a.avi", 20, times=range(20), time_base=Fraction(1, 25))
    )
    assert len(clip.times) == 20 and set(np.diff(clip.times)) == {1}


def test_frames_without_a_time_follow_the_one_before(tmp_path):
    clip = clips.read_clip(
        footage.make_clip(
            tmp_path / "a.mpg", 24, times=range(24), time_base=Fraction(1, 25), bf="3"
        )
    )
    assert len(clip.times) == 24
    seconds = [float((time - clip.times[0]) * clip.time_base) for time in clip.times]
    assert seconds == pytest.approx([index / 25 for index in range(24)], abs=1e-3)


def test_a_size_that_changes_midway_is_refused(tmp_path):
    halves = [footage.make_clip(tmp_path / f"{width}.ts", 5, (width, 24)) for width in (32, 48)]
    both = tmp_path / "both.ts"
    both.write_bytes(b"".join(half.read_bytes() for half in halves))
    error = r"both.ts: the frame size changes from 32x24 to 48x24 at frame \d"
    with pytest.raises(cli.UserError, match=error):
        clips.read_clip(both)


def test_large_frames_unknown_colours_and_a_missing_package_are_refused(tmp_path, monkeypatch):
    path = footage.make_clip(tmp_path / "a.mp4", 2)
    with pytest.raises(cli.UserError, match="32x24 is more than 767 pixels"):
        clips.read_clip(path, max_pixels=767)
    odd = footage.make_clip(
        tmp_path / "b.mp4", 2, colours=Colours(8), draw=lambda *_: footage.scene(0)
    )
    with pytest.raises(cli.UserError, match="not supported"):
        clips.read_clip(odd)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(cli.UserError, match="videos need PyAV"):
        clips.read_clip(path)


def test_what_becomes_of_deep_and_transparent_pixels_is_said(tmp_path):
    deep = clips.read_clip(footage.make_clip(tmp_path / "a.mp4", 2, pixels="yuv420p10le"))
    assert deep.bits == 10 and deep.notes == []
    eight, sixteen = (next(clips.pictures(deep, deep=wanted)).rgb for wanted in (False, True))
    assert np.abs(eight.astype(int) - footage.scene(0)).mean() < 8
    assert sixteen.dtype == np.uint16 and np.abs(sixteen / 257 - eight).max() < 1.5
    clear = clips.read_clip(footage.make_clip(tmp_path / "a.mkv", 2, codec="ffv1", pixels="bgra"))
    assert clear.notes == ["transparency is left out"]
    assert np.array_equal(next(clips.pictures(clear)).rgb, footage.scene(0))
    for codec in ("libvpx-vp9", "libvpx"):
        options = {"codec": codec, "pixels": "yuva420p", "auto-alt-ref": "0"}
        clear = clips.read_clip(footage.make_clip(tmp_path / "a.webm", 2, **options))
        assert clear.notes == ["transparency is left out"], codec


def test_interlaced_and_damaged_frames_are_said(tmp_path):
    with av.open(str(footage.make_clip(tmp_path / "a.mp4", 1))) as container:
        stream = container.streams.video[0]
        scan = clips._Scan(tmp_path, container, stream, None, None)
        frame = next(container.decode(stream))
        scan.add(frame, 1000)
        assert scan.notes() == []
        scan.damaged = 2
        scan.first = SimpleNamespace(format=frame.format, interlaced_frame=True)
        assert scan.notes() == [
            "2 damaged frames, enlarged as found",
            "interlaced, and stays so; deinterlace it first for a better result",
        ]
