"""Enlarge a video clip or an animated picture with a generator file, frame by frame.

python test_video.py clip.mp4                             writes clip_x4.mp4 beside it
python test_video.py clip.mp4 --out clip.mkv --codec hevc --crf 22
python test_video.py clip.mp4 --start 1:05 --end 1:08.5 --compare
python test_video.py animation.gif                        writes animation_x4.gif
python test_video.py clips/ other.mov --out enlarged/ --skip-existing

The result keeps the sound, the subtitles and the time of every frame; rotated clips are turned
upright. If a run is interrupted, run the same command again to continue; for several clips, with
--skip-existing. Videos need PyAV: pip install av. Each frame is enlarged on its own, so fine
texture may flicker: see docs/video.md.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import inference
from utils import cli, decoding, files, images, machine, output_size, outputs, weights
from utils.output_size import OutputSize
from video import animation, clips, encoding, segments
from video.segments import RESULT

if TYPE_CHECKING:
    import metrics

BAR = (
    "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} frames "
    "[{elapsed}<{remaining}, {rate_noinv_fmt}]"
)
COMPARISON = "compare"  # name of the other track
SUFFIXES = (*encoding.SUFFIXES, *animation.SUFFIXES)


def is_clip(path: Path) -> bool:
    """Tell whether a file of a folder is named as a video, or is an animation."""
    if animation.is_picture(path):
        return animation.is_animated(path)
    return path.suffix.lower() in decoding.CLIP_SUFFIXES


CLIPS = outputs.Kind(
    script="test_video.py",
    noun="clip",
    sort=partial(images.sorted_by_kind, is_wanted=is_clip),
    suffixes=SUFFIXES,
    ending="_compare.webm.unfinished.",  # with the dot that begins the name of a hidden folder
)

Track = encoding.VideoTrack | animation.AnimationTrack


def get_args_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = cli.ArgumentParser(prog="test_video.py", description=__doc__)
    parser.add_argument(
        "inputs",
        nargs="+",
        type=Path,
        metavar="CLIP_OR_FOLDER",
        help="videos that FFmpeg can read, animated GIF, WebP, PNG or AVIF, or folders of these",
    )
    parser.add_argument(
        "--recursive",
        action="store_true",
        help="also read subfolders, and mirror them in the folder given with --out",
    )
    weights.add_weights_option(parser)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE_OR_FOLDER",
        help="output file or, if it has no suffix, folder; the suffix is one of "
        f"{' '.join(SUFFIXES)} (default: <clip>_x4 beside the clip, with the clip's suffix if it "
        "is one of these, otherwise .mp4 for a video and .webp for an animation)",
    )
    parser.add_argument(
        "--codec",
        metavar="NAME",
        help=f"{', '.join(encoding.CODECS)} (default: vp9 for .webm, otherwise h264)",
    )
    output_size.add_options(parser)
    parser.add_argument(
        "--crf",
        type=cli.non_negative_int,
        metavar="N",
        help="quality of the codec; lower means better quality and larger files "
        f"(default: {default_crfs()})",
    )
    parser.add_argument(
        "--start",
        type=seconds,
        metavar="TIME",
        help="skip what comes before this time: seconds, minutes:seconds or hours:minutes:seconds "
        "(default: the beginning)",
    )
    parser.add_argument(
        "--end",
        type=seconds,
        metavar="TIME",
        help="stop before this time (default: the end)",
    )
    parser.add_argument(
        "--compare",
        action="store_true",
        help="also write bicubic and SR side by side, as <result>_compare",
    )
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument(
        "--overwrite",
        action="store_true",
        help="replace existing results, and discard an unfinished run with other settings",
    )
    existing.add_argument(
        "--skip-existing",
        action="store_true",
        help="skip clips that already have a result, to continue an interrupted run of several",
    )
    parser.add_argument(
        "--tile",
        type=cli.tile_side,
        default="auto",
        metavar="auto|N|0",
        help="side of a tile in input pixels; auto: as large as memory allows; 0: no tiles",
    )
    machine.add_options(parser, backend=True)
    return parser


def default_crfs() -> str:
    """Return the default CRF of each codec, for the help."""
    lossy = {name: codec.crf for name, codec in encoding.CODECS.items() if codec.crf is not None}
    return ", ".join(f"{name} {crf}" for name, crf in lossy.items())


def seconds(text: str) -> Fraction:
    """Parse a time: seconds, minutes:seconds or hours:minutes:seconds."""
    if not re.fullmatch(r"(\d+:){0,2}\d+(\.\d+)?", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 7.5 or 1:05")
    total = Fraction(0)
    for part in text.split(":"):
        total = 60 * total + Fraction(part)
    return total


# --- the plan -----------------------------------------------------------------------------------


def plan_outputs(
    inputs: list[Path],
    out: Path | None,
    suffix: str,
    recursive: bool = False,
    compare: bool = False,
) -> dict[Path, Path]:
    """Return the output path of every input clip.

    Raises:
        UserError: as for `outputs.find`, `only_input` and `check_apart`.
    """
    found = outputs.find(CLIPS, inputs, out, suffix, recursive)
    if out is not None and not out.is_dir() and out.suffix:
        plan = {outputs.only_input(found, inputs, out): out}
    else:
        plan = outputs.name_results(CLIPS, found, suffix, result_form)
    outputs.check_apart(plan, partial(written_files, compare=compare))
    return plan


def result_form(clip: Path) -> str:
    """Return the suffix of a clip's result: its own if it can be written."""
    suffix = clip.suffix.lower()
    if suffix in SUFFIXES:
        return suffix
    return ".webp" if animation.is_picture(clip) else ".mp4"


def result_files(out: Path, compare: bool) -> dict[str, Path]:
    """Return the path of each track's file: the result and, with `compare`, the comparison."""
    if not compare:
        return {RESULT: out}
    return {RESULT: out, COMPARISON: out.with_name(f"{out.stem}_compare{out.suffix}")}


def written_files(out: Path, compare: bool) -> list[Path]:
    """Return the files that are written for a clip."""
    return list(result_files(out, compare).values())


def check_times(args: argparse.Namespace) -> None:
    """Raise UserError if --end is not after --start."""
    if args.start is not None and args.end is not None and args.start >= args.end:
        raise cli.UserError(f"--end {float(args.end):g} is not after --start {float(args.start):g}")


def codec_of(args: argparse.Namespace, out: Path, only_animations: bool) -> str | None:
    """Return the codec of a result, or None for an animation.

    Args:
        args: the options.
        out: path of a result.
        only_animations: whether there is no video that --codec and --crf could be meant for.

    Raises:
        UserError: --codec and --crf do not fit the result.
    """
    if out.suffix.lower() not in animation.SUFFIXES:
        return encoding.codec_for(out, args.codec, args.crf)
    if only_animations and (args.codec or args.crf is not None):
        raise cli.UserError(f"{out}: --codec and --crf are for videos; {out.suffix} has neither")
    return None


def open_tracks(
    paths: dict[str, Path],
    clip: clips.Clip,
    codec: str | None,
    crf: int | None,
    size: tuple[int, int],
) -> dict[str, Track]:
    """Return what encodes and writes each output; print what will not be kept."""
    sizes = {RESULT: size, COMPARISON: images.side_by_side_size(*size, 2)}
    tracks: dict[str, Track] = {}
    for name, path in paths.items():
        if codec is None:
            tracks[name] = animation.AnimationTrack(path, clip, *sizes[name])
        else:
            tracks[name] = encoding.VideoTrack(path, clip, codec, crf, *sizes[name])
    for note in clip.notes:
        print(f"{clip.path}: {note}", file=sys.stderr)
    for note in tracks[RESULT].notes:
        print(note, file=sys.stderr)
    return tracks


# --- enlarging ----------------------------------------------------------------------------------


def enlarge(
    upscale_frame: Callable[[images.Picture], images.Picture],
    read_frames: Callable[[clips.Clip, int], Iterator[images.Picture]],
    clip: clips.Clip,
    tracks: dict[str, Track],
    kept: segments.Segments,
) -> metrics.FrameDifference:
    """Enlarge and keep the frames of which no segment is kept yet.

    Args:
        upscale_frame: enlarges one frame.
        read_frames: decodes a clip from a frame number on.
        clip: the clip.
        tracks: what encodes each output.
        kept: the segments.

    Returns:
        The differences between consecutive frames, of kept and new segments.
    """
    import metrics  # imports PyTorch, which the command line does without

    total = len(clip.times)
    measured = kept.check()  # which removes what is damaged
    first = kept.frames(total)
    if first:
        kept_frames = f"{first} of {cli.counted(total, 'frame')} kept"
        print(f"{kept_frames} from an unfinished run", file=sys.stderr)

    frames = read_frames(clip, first) if first < total else iter(())
    bar = cli.progress_bar(
        frames, total=total, initial=first, desc="enlarging", unit=" frames", bar_format=BAR
    )
    for number, lr in enumerate(bar, first):
        # Begin a segment
        if number % segments.FRAMES == 0:
            difference = metrics.FrameDifference()
            for track in tracks.values():
                track.start(number)

        add_frame(lr, upscale_frame(lr), tracks, difference)

        # End it
        if (number + 1) % segments.FRAMES == 0 or number + 1 == total:
            encoded = {name: track.finish() for name, track in tracks.items()}
            kept.save(len(measured), encoded, difference.sums)
            measured.append(difference.sums)

    return metrics.FrameDifference.of_parts(measured)


def add_frame(
    lr: images.Picture,
    sr: images.Picture,
    tracks: dict[str, Track],
    difference: metrics.FrameDifference,
) -> None:
    """Encode a frame and its comparison, and measure how it differs from the frame before."""
    tracks[RESULT].add(sr)
    shown = images.on_white(sr)
    height, width = shown.shape[:2]
    bicubic = images.resize_bicubic(images.on_white(lr), width, height)
    if COMPARISON in tracks:
        pair = images.side_by_side([("bicubic", bicubic), ("SR", shown)])
        tracks[COMPARISON].add(images.Picture(pair))
    difference.add(images.to_tensor(shown), images.to_tensor(bicubic))


def write_results(
    paths: dict[str, Path], tracks: dict[str, Track], kept: segments.Segments
) -> None:
    """Join the kept segments without encoding again, and move the results into place.

    The result itself comes last in each step: an interrupted run that finds it joined has only to
    move files.
    """
    result_last = sorted(paths, key=lambda name: name == RESULT)

    # Join
    if not kept.joined:
        size = sum(path.stat().st_size for path in kept.paths())
        advice = "free some space and run the same command again: every frame is kept"
        files.check_free_space(kept.folder, size, advice)
        for name in result_last:
            with files.write_atomic(kept.folder / name) as file:
                tracks[name].write(file, kept.packets(name))
    kept.remove_from(0)

    # Move
    for name in result_last:
        if (kept.folder / name).exists():
            try:
                files.put_in_place(kept.folder / name, paths[name])
            except OSError as error:
                raise files.cannot_be_written(paths[name], error) from error


def how_to_continue(args: argparse.Namespace, frames: int) -> str:
    """Return what to do after an interruption that left so many frames of a clip."""
    several = len(args.inputs) > 1 or args.inputs[0].is_dir()
    if several and not args.overwrite:  # finished clips are not to be made again
        return "run the same command with --skip-existing to continue"
    return "run the same command again to continue" if frames or several else "nothing is written"


def enlarge_clip(
    path: Path,
    out: Path,
    codec: str | None,
    engine: inference.Engine,
    chosen: weights.Weights,
    args: argparse.Namespace,
) -> None:
    """Enlarge a clip, or the part of it that an earlier run did not finish.

    Args:
        path, out: the clip's path and the result's.
        codec: of the result; None for an animation.
        engine: the generator.
        chosen: its files.
        args: the options.
    """
    # Clip and outputs
    reader = animation if animation.is_picture(path) else clips
    clip = reader.read_clip(path, args.start, args.end)
    wanted = OutputSize(args.outscale, args.size)
    size = wanted.of(path, clip.width, clip.height, engine.upscale)
    paths = result_files(out, args.compare)
    tracks = open_tracks(paths, clip, codec, args.crf, size)
    deep = encoding.keeps_depth(codec, clip)
    read_frames = partial(clips.pictures, deep=True) if deep else reader.pictures
    precision = inference.precision_for(engine, args.precision, deep)
    upscale_frame = partial(
        inference.upscale_picture, engine, tile=args.tile, precision=precision, size=size
    )

    # What the frames depend on: an unfinished run continues only with the same
    packages = [engine.package, "pillow"]
    if codec is not None:
        packages.append("av")
    settings = {
        "clip": files.sha256(path),
        "generator": [files.sha256(file) for file in (chosen.path, chosen.texture_path) if file],
        "texture": chosen.texture,
        "precision": precision,
        "device": engine.place,
        "codec": codec,
        "crf": args.crf,
        "size": list(size),
        "bits": 16 if deep else 8,
        "start": str(args.start),
        "end": str(args.end),
        "compare": args.compare,
        "versions": [version(name) for name in packages],
    }

    # Enlarge and write
    files.make_folder(out.parent)
    with segments.kept_segments(out, settings, args.overwrite) as kept:
        try:
            difference = enlarge(upscale_frame, read_frames, clip, tracks, kept)
            write_results(paths, tracks, kept)
        except SystemExit:  # Ctrl-C or SIGTERM
            total = len(clip.times)
            frames = kept.frames(total)
            advice = how_to_continue(args, frames)
            kept_frames = f"{frames} of {cli.counted(total, 'frame')} kept"
            print(f"stopped: {kept_frames}; {advice}", file=sys.stderr)
            raise

    # Report
    print(*paths.values(), sep="\n")
    means = difference.means()
    if means is not None:
        sr, bicubic = means
        print(
            f"mean difference between consecutive frames: {sr:.2f} levels of 255 "
            f"(bicubic: {bicubic:.2f})"
        )


def main(args: argparse.Namespace) -> int:
    """Enlarge every clip; report those that fail and continue; return 2 if there were any."""
    # Generator
    chosen = weights.chosen_weights(args)
    engine = inference.open_engine(chosen, args.device, args.backend)
    engine.precision_of(args.precision)  # refuse one that cannot work before any clip is read

    # Plan
    suffix = OutputSize(args.outscale, args.size).suffix(engine.upscale)
    plan = plan_outputs(args.inputs, args.out, suffix, args.recursive, args.compare)

    # Existing results
    files_of = partial(written_files, compare=args.compare)
    if args.skip_existing:
        plan = outputs.unfinished(CLIPS, plan, files_of)
    elif not args.overwrite:
        # An interrupted run may have moved some of a clip's files into place
        new = [out for out in plan.values() if not segments.is_joined(out)]
        outputs.refuse_existing(new, files_of)

    # Options
    if plan:
        check_times(args)
    only_animations = all(out.suffix.lower() in animation.SUFFIXES for out in plan.values())
    codecs = {path: codec_of(args, out, only_animations) for path, out in plan.items()}

    # Enlarge
    numbers = {path: number for number, path in enumerate(plan, 1)}

    def enlarge_one(path: Path, out: Path) -> None:
        if len(plan) > 1:
            print(f"{numbers[path]} of {len(plan)}: {path}", file=sys.stderr)
        enlarge_clip(path, out, codecs[path], engine, chosen, args)

    return outputs.enlarge_each(CLIPS, plan, enlarge_one)


if __name__ == "__main__":
    cli.run_script(main, get_args_parser())
