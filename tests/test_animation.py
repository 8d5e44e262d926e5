from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("av", reason="the helper that makes clips needs PyAV: pip install av")

import footage

from utils import cli, images
from video import animation
from video.clips import Clip

DURATIONS = (50, 100, 30, 200)


def write(path, clip, pictures) -> None:
    height, width = pictures[0].rgb.shape[:2]
    track = animation.AnimationTrack(path, clip, width, height)
    packets = []
    for first in range(0, len(pictures), 3):
        track.start(first)
        for picture in pictures[first : first + 3]:
            track.add(picture)
        packets += track.finish()
    with open(path, "w+b") as file:
        track.write(file, packets)


@pytest.mark.parametrize("hole", [False, True])
@pytest.mark.parametrize(
    ("source", "target"),
    [("a.gif", "b.gif"), ("a.webp", "b.webp"), ("a.png", "b.webp"), ("a.webp", "b.gif")],
)
def test_frames_durations_and_transparency_survive(tmp_path, source, target, hole):
    clip = animation.read_clip(footage.make_gif(tmp_path / source, DURATIONS, hole=hole))
    pictures = list(animation.pictures(clip))
    assert tuple(clip.durations) == DURATIONS and clip.transparent == hole and len(pictures) == 4
    write(tmp_path / target, clip, pictures)
    with Image.open(tmp_path / target) as image:
        assert image.n_frames == 4 and image.info["loop"] == 0
        for index, picture in enumerate(pictures):
            image.seek(index)
            rgba = np.asarray(image.convert("RGBA")).astype(int)
            assert image.info["duration"] == DURATIONS[index]
            opaque = np.full((24, 32), 255, np.uint8) if picture.alpha is None else picture.alpha
            assert (opaque == 0).any() == hole and np.array_equal(rgba[..., 3], opaque)
            assert np.abs(rgba[..., :3] - picture.rgb)[opaque == 255].mean() < 8


@pytest.mark.parametrize(("loop", "gif", "webp"), [(None, None, 1), (0, 0, 0), (2, 2, 3)])
def test_the_number_of_repetitions_is_kept(tmp_path, loop, gif, webp):
    clip = animation.read_clip(footage.make_gif(tmp_path / "a.gif", DURATIONS, loop=loop))
    pictures = list(animation.pictures(clip))
    for name, expected in (("b.gif", gif), ("b.webp", webp)):
        write(tmp_path / name, clip, pictures)
        with Image.open(tmp_path / name) as image:
            assert image.info.get("loop") == expected
        assert animation.read_clip(tmp_path / name).plays == webp


@pytest.mark.parametrize(
    ("name", "ticks", "duration"),
    [("a.webp", 2**24 + 5, 2**24 - 1), ("b.gif", 700_000, 655_350)],
)
def test_repetitions_and_durations_beyond_what_the_formats_hold_are_cut(
    tmp_path, name, ticks, duration
):
    pictures = [images.Picture(footage.scene(index)) for index in range(2)]
    clip = Clip(
        path=tmp_path,
        width=32,
        height=24,
        rate=Fraction(1),
        time_base=Fraction(1, 1000),
        times=[0, ticks],
        durations=[ticks, 50],
        plays=70_000,
        animated=True,
    )
    write(tmp_path / name, clip, pictures)
    with Image.open(tmp_path / name) as image:
        image.load()
        assert image.info["loop"] == 65_535 and image.info["duration"] == duration
        image.seek(1)
        shown = np.asarray(image.convert("RGB")).astype(int)
        assert np.abs(shown - pictures[1].rgb).mean() < 8


@pytest.mark.parametrize("name", ["a.gif", "a.webp"])
def test_equal_frames_stay_apart_and_a_hole_that_moves_leaves_no_trace(tmp_path, name):
    """Neither Pillow's `save_all` nor FFmpeg's muxers do this."""
    rgb = footage.scene(0)
    pictures = []
    for left in (0, 8, 16, 16):
        alpha = np.full((24, 32), 255, np.uint8)
        alpha[8:16, left : left + 8] = 0
        pictures.append(images.Picture(rgb, alpha))
    clip = Clip(
        path=tmp_path,
        width=32,
        height=24,
        rate=Fraction(20),
        time_base=Fraction(1, 1000),
        times=[0, 50, 100, 150],
        durations=[50, 50, 50, 50],
        transparent=True,
        animated=True,
    )
    write(tmp_path / name, clip, pictures)
    shown = list(animation.pictures(animation.read_clip(tmp_path / name)))
    assert len(shown) == 4
    for got, expected in zip(shown, pictures, strict=True):
        assert np.array_equal(got.alpha, expected.alpha)


def test_the_still_of_an_animated_png_is_no_frame(tmp_path):
    still, *frames = (Image.fromarray(footage.scene(index)) for index in (9, 0, 4))
    still.save(
        tmp_path / "a.png", save_all=True, append_images=frames, default_image=True, duration=50
    )
    clip = animation.read_clip(tmp_path / "a.png")
    assert clip.durations == [50, 50]
    assert np.array_equal(next(animation.pictures(clip)).rgb, footage.scene(0))
    assert np.array_equal(next(animation.pictures(clip, 1)).rgb, footage.scene(4))


def test_a_part_can_be_read_and_gone_on_with(tmp_path):
    path = footage.make_gif(tmp_path / "a.gif", DURATIONS)
    clip = animation.read_clip(path, Fraction(4, 100), Fraction(18, 100))
    assert clip.times == [0, 100] and clip.durations == [100, 30] and clip.skipped == 1
    whole = [picture.rgb for picture in animation.pictures(animation.read_clip(path))]
    rest = [picture.rgb for picture in animation.pictures(clip, 1)]
    assert len(rest) == 1 and np.array_equal(rest[0], whole[2])
    with pytest.raises(cli.UserError, match=r"no frame between .*; the clip lasts 0\.38 seconds"):
        animation.read_clip(path, Fraction(1))


def test_rounded_delays_do_not_drift(tmp_path):
    clip = animation.read_clip(footage.make_gif(tmp_path / "a.webp", (33, 34, 33, 33, 34, 33)))
    assert animation._delays(clip, 100, 2, 99) == [3, 4, 3, 3, 4, 3]
    assert animation._delays(clip, 1000, 1, 99) == clip.durations
    assert set(animation._delays(clip, 1000, 1, 33)) == {33}
    slow = animation.read_clip(footage.make_gif(tmp_path / "b.gif", (0, 0, 0)))
    assert slow.durations in ([100, 100, 100], [300])  # as browsers show it


def test_still_damaged_and_too_large_pictures_are_refused(tmp_path):
    Image.fromarray(footage.scene(0)).save(tmp_path / "a.webp")
    pages = [Image.fromarray(footage.scene(index)) for index in range(2)]
    pages[0].save(tmp_path / "b.tif", save_all=True, append_images=pages[1:])
    for name in ("a.webp", "b.tif"):
        with pytest.raises(cli.UserError, match="a still picture; enlarge it with python"):
            animation.read_clip(tmp_path / name)
    path = footage.make_gif(tmp_path / "c.gif", DURATIONS)
    clip = animation.read_clip(path)
    (tmp_path / "d.gif").write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(cli.UserError, match=r"d.gif: cut short"):
        animation.read_clip(tmp_path / "d.gif")
    with pytest.raises(cli.UserError, match="more than 767 pixels"):
        animation.read_clip(path, max_pixels=767)
    with pytest.raises(cli.UserError, match=r"at most 16383 pixels per side, .* has 16384x9"):
        animation.AnimationTrack(tmp_path / "x.webp", clip, 16_384, 9)


def test_gray_stays_gray(tmp_path):
    gray = [Image.fromarray(footage.scene(index)).convert("L") for index in (0, 4)]
    gray[0].save(tmp_path / "a.gif", save_all=True, append_images=gray[1:], duration=50)
    pictures = list(animation.pictures(animation.read_clip(tmp_path / "a.gif")))
    assert all(isinstance(picture, images.Picture) and picture.gray for picture in pictures)
