"""Enlarge a video clip or an animated picture with a generator file, frame by frame.

python test_video.py clip.mp4                             writes clip_x4.mp4 beside it
python test_video.py clip.mp4 --out clip.mkv --codec hevc --crf 22
python test_video.py clip.mp4 --start 1:05 --end 1:08.5 --compare
python test_video.py animation.gif                        writes animation_x4.gif

Sound, subtitles and the frames' times are kept; the result is upright. Run the same command again to continue an interrupted
run. Video needs PyAV: pip install av. Every frame is enlarged by itself, so fine texture may flicker: see docs/video.md.
"""

import argparse
import re
import sys
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import inference
import metrics
from utils import cli, files, images, weights
from utils.device import add_options, resolve_device, resolve_precision
from video import animation, clips, encoding, segments

BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} frames [{elapsed}<{remaining}, {rate_noinv_fmt}]"


def get_args_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = cli.ArgumentParser(prog="test_video.py", description=__doc__)
    parser.add_argument(
        "clip",
        type=Path,
        metavar="CLIP",
        help="video (what FFmpeg reads), or animated GIF, WebP, PNG or AVIF",
    )
    weights.add_weights_option(parser)
    parser.add_argument(
        "--out", type=Path,
        help=f"file for the result: {' '.join((*encoding.SUFFIXES, *animation.SUFFIXES))} (default: beside the clip, "
        "with its suffix if that is one of these, else .mp4, or .webp for an animation)",
    )  # fmt: skip
    parser.add_argument(
        "--codec", help=f"{', '.join(encoding.CODECS)} (default: vp9 in .webm, else h264)"
    )
    parser.add_argument(
        "--crf",
        type=cli.non_negative_int,
        metavar="N",
        help=f"quality, 0 is best (default: {default_crfs()})",
    )
    parser.add_argument(
        "--start", type=seconds, metavar="S", help="begin here: seconds, or minutes:seconds"
    )
    parser.add_argument("--end", type=seconds, metavar="S", help="end before this time")
    parser.add_argument(
        "--compare", action="store_true", help="also write bicubic | SR as <result>_compare"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing result")
    parser.add_argument(
        "--tile",
        type=cli.tile_side,
        default="auto",
        metavar="auto|N|0",
        help="side of a tile in LR pixels; 0: no tiles",
    )
    add_options(parser)
    return parser


def default_crfs() -> str:
    """Return the codecs' default CRFs as text."""
    return ", ".join(
        f"{name} {codec.crf}" for name, codec in encoding.CODECS.items() if codec.crf is not None
    )


def seconds(text: str) -> Fraction:
    """Parse a time: seconds, minutes:seconds or hours:minutes:seconds."""
    if not re.fullmatch(r"(\d+:){0,2}\d+(\.\d+)?", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 7.5 or 1:05")
    total = Fraction(0)
    for part in text.split(":"):
        total = 60 * total + Fraction(part)
    return total


# --- what is written, and where -----------------------------------------------------------------------------------


def plan_outputs(args: argparse.Namespace, upscale: int) -> dict[str, Path]:
    """Return the paths of the result (`sr`) and, with --compare, of the comparison (`compare`).

    Raises:
        UserError: one of them exists or is the clip itself, or the clip does not exist.
    """
    if not args.clip.is_file():
        raise cli.UserError(
            f"{args.clip}: no such clip" if not args.clip.exists() else f"{args.clip}: not a file"
        )
    suffix = args.clip.suffix.lower()
    if suffix not in (*encoding.SUFFIXES, *animation.SUFFIXES):
        suffix = ".webp" if animation.is_picture(args.clip) else ".mp4"
    ending = f"_x{upscale}"
    stem = images.fitting_name(args.clip.stem, f".{ending}_compare{suffix}.unfinished")
    out = args.out or args.clip.with_name(f"{stem}{ending}{suffix}")
    if out.is_dir():
        out = out / f"{stem}{ending}{suffix}"
    plan = {"sr": out} | (
        {"compare": out.with_name(f"{out.stem}_compare{out.suffix}")} if args.compare else {}
    )
    for path in plan.values():
        if path.exists() and path.samefile(args.clip):
            raise cli.UserError(
                f"{path} is the clip itself and would be overwritten; choose another --out"
            )
        if path.exists() and not args.overwrite and not segments.is_joined(out):
            raise cli.UserError(
                f"{path}: already exists; pass --overwrite, or choose another --out"
            )
    return plan


def check_options(args: argparse.Namespace, out: Path) -> str | None:
    """Return the codec (None for an animation); raise UserError if the options do not fit the output path or each other."""
    if args.start is not None and args.end is not None and args.start >= args.end:
        raise cli.UserError(f"--end {float(args.end):g} is not after --start {float(args.start):g}")
    if out.suffix.lower() not in animation.SUFFIXES:
        return encoding.check_codec(out, args.codec, args.crf)
    if args.codec or args.crf is not None:
        raise cli.UserError(f"{out}: --codec and --crf are for videos; {out.suffix} has neither")
    return None


def open_tracks(
    plan: dict[str, Path], clip: clips.Clip, codec: str | None, crf: int | None, upscale: int
) -> dict[str, Any]:
    """Return what encodes and writes each output; print what cannot be kept."""
    height, width = clip.height * upscale, clip.width * upscale
    sizes = {"sr": (width, height), "compare": images.side_by_side_size(width, height, 2)}
    tracks = {}
    for name, path in plan.items():
        if codec is None:
            tracks[name] = animation.AnimationTrack(path, clip, *sizes[name])
        else:
            tracks[name] = encoding.VideoTrack(path, clip, codec, crf, *sizes[name])
    for note in [*(f"{clip.path}: {note}" for note in clip.notes), *tracks["sr"].notes]:
        print(note, file=sys.stderr)
    return tracks


# --- enlarging ----------------------------------------------------------------------------------------------------


def enlarge(
    upscale_frame: Callable[[images.Picture], images.Picture], reader, clip: clips.Clip, tracks: dict[str, Any],
    kept: segments.Segments,
) -> metrics.FrameDifference:  # fmt: skip
    """Enlarge every frame that is not in a kept segment, and keep its segment; return what was measured on all of them."""
    total, measured = len(clip.times), kept.check()
    first = total if kept.joined else min(len(measured) * segments.FRAMES, total)
    if first:
        print(f"{first} of {total} frames are kept from an unfinished run", file=sys.stderr)
    with cli.progress_bar(
        total=total, initial=first, desc="enlarging", unit=" frames", bar_format=BAR
    ) as bar:
        for number, picture in enumerate(
            reader.pictures(clip, first) if first < total else (), first
        ):
            if number % segments.FRAMES == 0:
                difference = metrics.FrameDifference()
                for track in tracks.values():
                    track.start(number)
            add_frame(picture, upscale_frame(picture), tracks, difference)
            if (number + 1) % segments.FRAMES == 0 or number + 1 == total:
                encoded = {name: track.finish() for name, track in tracks.items()}
                kept.save(len(measured), encoded, difference.sums)
                measured.append(difference.sums)
            bar.update()
    return metrics.FrameDifference(map(sum, zip((0, 0, 0), *measured, strict=True)))


def add_frame(
    lr: images.Picture,
    sr: images.Picture,
    tracks: dict[str, Any],
    difference: metrics.FrameDifference,
) -> None:
    """Encode a frame and its comparison, and measure it."""
    tracks["sr"].add(sr)
    shown = images.on_white(sr)
    bicubic = images.upscale_bicubic(images.on_white(lr), shown.shape[0] // lr.rgb.shape[0])
    if "compare" in tracks:
        tracks["compare"].add(
            images.Picture(images.side_by_side([("bicubic", bicubic), ("SR", shown)]))
        )
    difference.add(images.to_tensor(shown), images.to_tensor(bicubic))


def write_results(plan: dict[str, Path], tracks: dict[str, Any], kept: segments.Segments) -> None:
    """Join the kept segments to files, without encoding again; remove the segments; move the files to where they belong.

    `segments.RESULT` is the last in each, so that an interrupted run can go on.
    """
    if not kept.joined:
        size = sum(path.stat().st_size for path in kept.paths())
        files.check_free_space(
            kept.folder, size, "run the same command again when there is space: every frame is kept"
        )
        for name in reversed(plan):
            with files.write_atomic(kept.folder / name) as file:
                tracks[name].write(file, kept.packets(name))
    kept.remove_from(0)
    for name, path in reversed(plan.items()):
        if (kept.folder / name).exists():
            try:
                files.put_in_place(kept.folder / name, path)
            except OSError as error:
                raise files.cannot_be_written(path, error) from error


def main(args: argparse.Namespace) -> int | None:
    """Check everything, enlarge what is not yet enlarged, write the result, and say how much it flickers."""
    device, chosen = resolve_device(args.device), weights.chosen_weights(args)
    generator = inference.open_generator(device=device, **vars(chosen))
    precision = resolve_precision(args.precision, device, generator)
    plan = plan_outputs(args, generator.upscale)
    codec = check_options(args, plan["sr"])
    reader = animation if animation.is_picture(args.clip) else clips
    clip = reader.read_clip(args.clip, args.start, args.end)
    tracks = open_tracks(plan, clip, codec, args.crf, generator.upscale)
    generators = [files.sha256(path) for path in (chosen.path, chosen.texture_path) if path]
    settings = {
        "clip": files.sha256(args.clip), "generator": generators,
        "texture": chosen.texture, "precision": precision, "device": device.type, "codec": codec, "crf": args.crf,
        "start": str(args.start), "end": str(args.end), "compare": args.compare,
        "versions": [version(name) for name in ("torch", "pillow", "av") if codec or name != "av"],
    }  # fmt: skip
    upscale_frame = partial(
        inference.upscale_picture, generator, tile=args.tile, precision=precision
    )
    files.make_folder(plan["sr"].parent)
    with segments.kept_segments(plan["sr"], settings, args.overwrite) as kept:
        try:
            difference = enlarge(upscale_frame, reader, clip, tracks, kept)
            write_results(plan, tracks, kept)
        except SystemExit:  # Ctrl-C or SIGTERM
            total = len(clip.times)
            frames = total if kept.joined else min(len(kept.paths()) * segments.FRAMES, total)
            advice = "run the same command again to continue" if frames else "nothing is written"
            print(f"stopped: {frames} of {total} frames are kept; {advice}", file=sys.stderr)
            raise
    print(*plan.values(), sep="\n")
    if means := difference.means():
        print(
            "mean difference between consecutive frames: {:.2f} levels of 255, with bicubic {:.2f}".format(
                *means
            )
        )


if __name__ == "__main__":
    cli.run_script(main, get_args_parser())
