import os
from fractions import Fraction

import numpy as np
import pytest
import torch
from conftest import ROOT, run, started_script, the_error
from PIL import Image

av = pytest.importorskip("av", reason="videos need PyAV: pip install av")

import footage  # noqa: E402 - needs PyAV

import inference  # noqa: E402
import metrics  # noqa: E402
import test_video  # noqa: E402
from model import Generator  # noqa: E402
from utils import generator_file, images  # noqa: E402

FIXED = ["--device", "cpu", "--precision", "fp32"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    for upscale in (2, 3, 4):
        generator_file.save(folder / f"x{upscale}.pth", Generator(upscale, 1))
    return folder


def video(*args, status=0):
    return run("test_video.py", *args, *FIXED, status=status)


def said(done) -> list[str]:
    """The lines on stderr, without progress bars."""
    return [line for line in done.stderr.splitlines() if line.strip() and "frames [" not in line]


def leftovers(folder) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(".")]


def test_a_clip_of_ten_bits_is_enlarged_in_more_than_eight(tmp_path, weights):
    options = {"pixels": "yuv420p10le", "draw": lambda index, *size: footage.scene(index, *size)}
    clip = footage.make_clip(tmp_path / "a.mp4", 2, **options)
    words = [clip, "--weights", weights / "x2.pth", "--compare"]
    video(*words, "--codec", "hevc", "--out", tmp_path / "b.mp4")
    shown = {}
    for name in ("b", "b_compare"):
        with av.open(str(tmp_path / f"{name}.mp4")) as container:
            assert container.streams.video[0].codec_context.pix_fmt == "yuv420p10le"
            shown[name] = next(container.decode(video=0)).to_ndarray(format="rgb48le")
    assert len(np.unique(shown["b"])) > 256
    for suffix in (".mp4", ".webp"):
        done = video(*words, "--out", tmp_path / f"c{suffix}")
        assert any(f"c{suffix}: 10-bit colours become 8-bit" in line for line in said(done))


def test_a_clip_keeps_its_times_sound_and_subtitles(tmp_path, weights):
    clip = footage.make_clip(
        tmp_path / "a.mkv", 40, sound="libopus", words="Hello", aspect=Fraction(4, 3)
    )
    done = video(clip, "--weights", weights / "x2.pth")
    result = tmp_path / "a_x2.mkv"
    assert done.stdout.splitlines()[0] == str(result)
    assert "mean difference between consecutive frames" in done.stdout
    assert not said(done) and sorted(os.listdir(tmp_path)) == ["a.mkv", "a_x2.mkv"]
    shown, times = footage.decoded(result)
    assert len(shown) == 40 and shown[0].shape == (48, 64, 3) and times == footage.decoded(clip)[1]
    for kind in ("audio", "subtitle"):
        assert footage.packets(result, kind) == footage.packets(clip, kind)
    with av.open(str(result)) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(4, 3)
        assert container.streams.subtitles[0].language == "eng"
    lr = footage.decoded(clip)[0]
    generator = inference.open_generator(weights / "x2.pth", torch.device("cpu"))
    for index in (31, 32):  # on both sides of the border between two segments
        expected = images.to_tensor(inference.upscale(generator, lr[index]))
        assert metrics.psnr_ssim_rgb(images.to_tensor(shown[index]), expected)[0] > 30


def test_a_variable_frame_rate_is_kept_exactly(tmp_path, weights):
    count = len(footage.UNEVEN)
    clip = footage.make_clip(tmp_path / "a.mp4", count, times=footage.UNEVEN, sound="aac")
    result = tmp_path / "b.mp4"
    video(clip, "--weights", weights / "x2.pth", "--out", result)
    expected = [Fraction(ticks, 600) for ticks in footage.UNEVEN]
    assert footage.decoded(result)[1] == expected
    assert footage.packets(result, "audio") == footage.packets(clip, "audio")
    with av.open(str(clip)) as one, av.open(str(result)) as other:
        before, after = one.streams.video[0], other.streams.video[0]
        assert before.time_base == after.time_base
        assert before.duration == after.duration
    data = result.read_bytes()
    assert 0 < data.find(b"moov") < data.find(b"mdat")  # so that it plays while it is loading


@pytest.fixture(scope="module")
def whole(tmp_path_factory, weights):
    """A command for a clip of two segments (40 frames), what it prints, and the file it writes."""
    folder = tmp_path_factory.mktemp("whole")
    times = [7 * index + index % 3 for index in range(40)]
    clip = footage.make_clip(folder / "a.mp4", 40, (16, 16), sound="aac", times=times)
    command = ["test_video.py", clip, "--weights", weights / "x2.pth", *FIXED]
    command += ["--codec", "vp9", "--out"]
    return command, run(*command, folder / "whole.mp4").stdout, folder / "whole.mp4"


# Events: 4 to write the settings, 32 frames, 4 to write a segment, 8 frames, 4 to write the other
# segment, 5 for the result.
@pytest.mark.parametrize(
    ("fault", "status", "event", "kept"),
    [("interrupt", 130, 9, 0), ("stop", 143, 45, 32), ("kill", -9, 38, 0), ("kill", -9, 54, 40)],
)
def test_an_interrupted_run_goes_on_and_ends_with_the_same_file(
    tmp_path, whole, fault, status, event, kept
):
    command, printed, expected = whole
    out = tmp_path / "parts.mp4"
    stopped = started_script(ROOT / "tests/faulty.py", fault, event, *command, out)()
    assert stopped.returncode == status and not out.exists()
    if fault == "interrupt":
        assert said(stopped) == ["stopped: 0 of 40 frames kept; nothing is written"]
        assert not leftovers(tmp_path)
    else:
        assert leftovers(tmp_path) == [".parts.mp4.unfinished"]
    if fault == "stop":
        advice = "run the same command again to continue"
        assert said(stopped) == [f"stopped: 32 of 40 frames kept; {advice}"]
        error = the_error(run(*command, out, "--crf", 40, status=None))
        assert "holds an unfinished run with a different crf; finish it with its own comm" in error
        assert "or discard it with --overwrite" in error
    again = run(*command, out)
    assert said(again) == ([f"{kept} of 40 frames kept from an unfinished run"] if kept else [])
    assert out.read_bytes() == expected.read_bytes() and not leftovers(tmp_path)
    assert again.stdout.splitlines()[1:] == printed.splitlines()[1:]
    shown, times = footage.decoded(out)
    assert len(shown) == 40 and times == footage.decoded(command[1])[1]


def test_an_interrupted_run_of_several_goes_on_with_the_clips_that_are_left(
    tmp_path, whole, weights
):
    clip, expected = whole[0][1], whole[2]
    other = footage.make_clip(tmp_path / "b.mp4", 2, (16, 16))
    command = ["test_video.py", clip, other, "--weights", weights / "x2.pth", *FIXED]
    command += ["--codec", "vp9", "--out", tmp_path / "out"]
    stopped = started_script(ROOT / "tests/faulty.py", "stop", 45, *command)()
    advice = "run the same command with --skip-existing to continue"
    assert said(stopped) == [
        f"1 of 2: {clip}",
        f"stopped: 32 of 40 frames kept; {advice}",
    ]
    done = run(*command, "--skip-existing")
    assert "0 of 2 clips skipped" in done.stdout
    assert (tmp_path / "out/a_x2.mp4").read_bytes() == expected.read_bytes()
    assert sorted(os.listdir(tmp_path / "out")) == ["a_x2.mp4", "b_x2.mp4"]


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_an_interrupted_animation_ends_with_the_same_file_too(tmp_path, whole, weights, suffix):
    clip = whole[0][1]
    command = ["test_video.py", clip, "--weights", weights / "x2.pth", *FIXED, "--out"]
    expected = tmp_path / f"whole{suffix}"
    run(*command, expected)
    out = tmp_path / f"parts{suffix}"
    stopped = started_script(ROOT / "tests/faulty.py", "stop", 45, *command, out)()
    assert stopped.returncode == 143 and not out.exists()
    assert "32 of 40 frames kept from an unfinished run" in run(*command, out).stderr
    assert out.read_bytes() == expected.read_bytes() and not leftovers(tmp_path)


def test_a_full_disk_is_one_line_and_the_kept_segments_survive(tmp_path, whole):
    command, _, expected = whole
    out = tmp_path / "a.mp4"
    # Segments that are kept need no event, so later runs have fewer
    for event, kept in ((1, 0), (6, 0), (9, 32), (10, 40), (5, 40), (9, 40)):
        done = started_script(ROOT / "tests/faulty.py", "full", event, *command, out)()
        error = said(done)[-1]
        assert done.returncode == 2
        assert "No space left on device" in error and str(tmp_path) in error
        assert len(said(done)) == 1 or "of 40 frames kept" in said(done)[0]
        assert not out.exists() and leftovers(tmp_path) == ([".a.mp4.unfinished"] if kept else [])
    assert "40 of 40 frames kept" in run(*command, out).stderr
    assert out.read_bytes() == expected.read_bytes() and not leftovers(tmp_path)


def test_a_run_stopped_while_its_files_are_moved_goes_on_too(tmp_path, weights):
    """Of 23 events, the last 12 join the comparison (4), join the result (4) and move each (2)."""
    clip = footage.make_clip(tmp_path / "a.mp4", 3, (16, 16))
    command = ["test_video.py", clip, "--weights", weights / "x2.pth", *FIXED]
    command += ["--codec", "vp9", "--compare", "--out"]
    expected = tmp_path / "whole.mp4"
    expected_comparison = tmp_path / "whole_compare.mp4"
    run(*command, expected)
    for event in (17, 21, 22):
        out = tmp_path / f"{event}.mp4"
        comparison = tmp_path / f"{event}_compare.mp4"
        killed = started_script(ROOT / "tests/faulty.py", "kill", event, *command, out)()
        assert killed.returncode == -9
        assert not out.exists() and comparison.exists() == (event > 20)
        assert run(*command, out).stdout.splitlines()[:2] == [str(out), str(comparison)]
        assert out.read_bytes() == expected.read_bytes()
        assert comparison.read_bytes() == expected_comparison.read_bytes()
        assert not leftovers(tmp_path)


def test_a_part_of_a_clip_with_its_sound_and_a_comparison(tmp_path, weights):
    clip = footage.make_clip(tmp_path / "a.mp4", 50, sound="aac", g="10")
    part = ["--start", "0:00.9", "--end", 1.5]
    done = video(clip, "--weights", weights / "x4.pth", *part, "--compare", "--codec", "hevc")
    result, comparison = tmp_path / "a_x4.mp4", tmp_path / "a_x4_compare.mp4"
    assert done.stdout.splitlines()[:2] == [str(result), str(comparison)]

    # Frames: number 23, at 0.92 seconds, is the first
    shown, times = footage.decoded(result)
    assert times == [Fraction(index, 25) for index in range(15)]
    source = footage.decoded(clip)[0]
    small = shown[0][::4, ::4].astype(int)
    assert np.abs(small - source[23]).mean() < np.abs(small - source[22]).mean()

    # Sound
    begin, end = Fraction(23, 25), Fraction(38, 25)
    inside = [packet for packet in footage.packets(clip, "audio") if begin <= packet[0] < end]
    sound = footage.packets(result, "audio")
    for (new_time, new_data), (old_time, old_data) in zip(sound, inside, strict=True):
        assert new_data == old_data
        assert abs(new_time - (old_time - begin)) < 1e-4

    # Comparison
    pair = footage.decoded(comparison)[0]
    assert len(pair) == 15 and pair[0].shape == (96 + 20, 2 * 128 + 4, 3)
    bicubic = images.upscale_bicubic(source[23], 4)
    assert np.abs(pair[0][20:, :128].astype(int) - bicubic).mean() < 6
    assert np.abs(pair[0][20:, -128:].astype(int) - shown[0]).mean() < 6


def test_odd_sides_rotation_and_other_containers(tmp_path, weights):
    clip = footage.make_clip(
        tmp_path / "a.mov", 6, size=(33, 25), pixels="yuv444p", rotation=90, sound="aac"
    )
    done = video(clip, "--weights", weights / "x3.pth", "--out", tmp_path / "b.webm")
    assert said(done) == [
        f"{tmp_path / 'b.webm'}: audio stream 1 (aac) is left out: .webm cannot hold it",
        f"{tmp_path / 'b.webm'}: 75x99 is padded to 76x100, because the codec needs even sides",
    ]
    shown = footage.decoded(tmp_path / "b.webm")[0]
    assert shown[0].shape == (100, 76, 3)
    expected = np.rot90(footage.scene(0, 33, 25))  # counter-clockwise
    assert np.abs(shown[0][:99:3, :75:3].astype(int) - expected).mean() < 12


def test_animations_keep_their_durations_and_transparency(tmp_path, weights):
    gif = footage.make_gif(tmp_path / "a.gif", (50, 100, 30, 200), loop=3, hole=True)
    option = ["--weights", weights / "x4.pth"]
    video(gif, *option)
    video(gif, *option, "--out", tmp_path / "b.webp")
    for path, plays in ((tmp_path / "a_x4.gif", 3), (tmp_path / "b.webp", 4)):
        with Image.open(path) as image:
            assert image.n_frames == 4 and image.size == (128, 96) and image.info["loop"] == plays
            for index, duration in enumerate((50, 100, 30, 200)):
                image.seek(index)
                rgba = np.asarray(image.convert("RGBA")).astype(int)
                assert image.info["duration"] == duration
                assert rgba[48, 48, 3] < 10 and rgba[20, 20, 3] > 245
                expected = images.upscale_bicubic(footage.scene(4 * index), 4)
                assert np.abs(rgba[..., :3] - expected)[rgba[..., 3] > 245].mean() < 15
    video(gif, *option, "--out", tmp_path / "c.mp4", "--start", 0.05)
    shown, times = footage.decoded(tmp_path / "c.mp4")
    assert times == [0, Fraction(1, 10), Fraction(13, 100)]
    assert shown[0][48, 48].min() > 240  # on white
    clip = footage.make_clip(tmp_path / "d.mp4", 8)
    assert "left out" in video(clip, *option, "--out", tmp_path / "d.gif").stderr
    with Image.open(tmp_path / "d.gif") as image:
        assert image.n_frames == 8 and image.info["loop"] == 0


def test_bad_input_is_one_line_and_writes_nothing(tmp_path, weights):
    container = {"movflags": "faststart"}
    clip = footage.make_clip(tmp_path / "a.mp4", 50, sound="aac", container=container)
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[: clip.stat().st_size * 5 // 10])
    (tmp_path / "none.mp4").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "list.m3u8").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{clip}\n#EXT-X-ENDLIST\n"
    )
    Image.fromarray(footage.scene(0)).save(tmp_path / "still.png")
    with av.open(str(tmp_path / "sound.mp4"), "w") as out:
        stream = out.add_stream("aac", rate=48000, layout="mono")
        out.mux([*stream.encode(footage.sine(0, stream)), *stream.encode(None)])
    still = "still.png: a still picture; enlarge it with python test_image.py"
    clips = {
        "missing.mp4": "missing.mp4: no such clip or folder",
        "empty": "empty: no clip in this folder",
        "none.mp4": "none.mp4: the file is empty",
        "text.mp4": "text.mp4: not a video, or cut short or damaged",
        "cut.mp4": "cut.mp4: cut short or damaged after",
        "list.m3u8": "list.m3u8: refers to another file",
        "sound.mp4": "sound.mp4: no video stream",
        "still.png": still,
    }
    options = {
        "--start 7": "no frame between --start and --end; the clip lasts 2.0",
        "--start 1 --end 0:01": "--end 1 is not after --start 1",
        "--end soon": "'soon' is not a time such as 7.5 or 1:05",
        "--out a.mp4": "a.mp4 is an input and would be overwritten",
        "--out sound.mp4": "sound.mp4: already exists; pass --overwrite or --skip-existing",
        "--out text.mp4/x.mp4": "cannot be written",
        "--out x.avi": "cannot write .avi; use one of .mp4",
        "--out x.mp4 --codec h266": "not available; use one of h264, hevc, vp9, av1",
        "--out x.webm --codec h264": ".webm cannot hold it; use one of vp9, av1",
        "--out x.mp4 --crf 52": "--crf 52: h264 takes 0 to 51",
        "--out x.gif --crf 9": "--codec and --crf are for videos",
        "--weights w.pth": "w.pth: no such generator file",
    }
    good = ["--weights", weights / "x2.pth"]
    cases = [([tmp_path / name, *good], reason) for name, reason in clips.items()]
    cases += [([clip, *good, *words.split()], reason) for words, reason in options.items()]
    several = [clip, tmp_path / "cut.mp4", *good, "--out", tmp_path / "x.mp4"]
    cases.append((several, "x.mp4: one file cannot hold several results"))
    before = sorted(tmp_path.rglob("*"))
    for arguments, reason in cases:
        done = run("test_video.py", *arguments, status=None, cwd=tmp_path)
        assert reason in the_error(done), arguments
    assert sorted(tmp_path.rglob("*")) == before
    video(tmp_path / "cut.mp4", *good, "--end", 0.2)  # what the message advises
    assert len(footage.decoded(tmp_path / "cut_x2.mp4")[0]) == 5


def test_clips_and_folders_are_enlarged_one_after_another(tmp_path, weights):
    folder = tmp_path / "clips"
    folder.mkdir()
    footage.make_clip(folder / "a.mp4", 2, (16, 16))
    (folder / "a_x2.mp4").touch()  # an earlier result
    (folder / "bad.mp4").write_text("no video")
    footage.make_gif(folder / "c.gif")
    Image.fromarray(footage.scene(0)).save(folder / "still.png")
    (folder / "words.txt").touch()
    other = footage.make_clip(tmp_path / "d.mov", 2, (16, 16))
    out = tmp_path / "out"
    command = [folder, other, "--weights", weights / "x2.pth", "--out", out]
    done = video(*command, "--crf", 30, status=2)  # the animation takes no notice of it
    assert sorted(os.listdir(out)) == ["a_x2.mp4", "c_x2.gif", "d_x2.mov"]
    assert f"{folder}: not clips that can be read (2): still.png, words.txt" in done.stdout
    assert f"{folder}: earlier results, left out (1): a_x2.mp4, ...;" in done.stdout
    lines = said(done)
    assert [line for line in lines if " of 4: " in line] == [
        f"{number} of 4: {path}"
        for number, path in enumerate(
            [folder / "a.mp4", folder / "bad.mp4", folder / "c.gif", other], 1
        )
    ]
    assert any(f"error: {folder / 'bad.mp4'}: not a video" in line for line in lines)
    assert lines[-1] == "test_video.py: error: 1 of 4 clips could not be enlarged"

    (folder / "bad.mp4").unlink()
    reason = "a_x2.mp4: already exists; pass --overwrite or --skip-existing"
    assert reason in video(*command, status=2).stderr
    (out / "c_x2.gif").unlink()
    done = video(*command, "--skip-existing")
    assert "2 of 3 clips skipped: their results exist" in done.stdout
    assert (out / "c_x2.gif").exists() and not said(done)


def test_results_of_clips_are_kept_apart_and_subfolders_mirrored(tmp_path):
    for name in ("a.avi", "a.MP4", "b.ts", "deep/a.mkv", "deep/long.webm"):
        path = tmp_path / "clips" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    clips = tmp_path / "clips"
    plan = test_video.plan_outputs([clips], tmp_path / "out", "_x4", recursive=True)
    assert {path.relative_to(clips).as_posix(): target.name for path, target in plan.items()} == {
        "a.MP4": "a_mp4_x4.mp4",
        "a.avi": "a_avi_x4.mp4",
        "b.ts": "b_x4.mp4",
        "deep/a.mkv": "a_x4.mkv",
        "deep/long.webm": "long_x4.webm",
    }
    assert plan[clips / "deep/a.mkv"].parent == tmp_path / "out/deep"
    assert len(test_video.plan_outputs([clips], None, "_x4")) == 3


@pytest.mark.parametrize(
    ("options", "name", "size"),
    [(["--outscale", 3], "a_x3.mp4", (96, 72)), (["--size", "x54"], "a_x54.mp4", (72, 54))],
)
def test_a_clip_of_any_size(tmp_path, weights, options, name, size):
    clip = footage.make_clip(tmp_path / "a.mp4", 3)
    video(clip, "--weights", weights / "x2.pth", *options, "--compare")
    width, height = size
    shown, _times = footage.decoded(tmp_path / name)
    assert [frame.shape for frame in shown] == [(height, width, 3)] * 3
    compared, _times = footage.decoded(tmp_path / name.replace(".mp4", "_compare.mp4"))
    assert compared[0].shape[1] >= 2 * width


def test_a_size_that_would_distort_a_clip_is_one_line(tmp_path, weights):
    clip = footage.make_clip(tmp_path / "a.mp4", 1)
    error = the_error(video(clip, "--weights", weights / "x2.pth", "--size", "50x50", status=2))
    assert "a.mp4: a size of 50x50 would distort 32x24 pixels" in error
    assert os.listdir(tmp_path) == ["a.mp4"]
