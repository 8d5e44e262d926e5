"""Images per second in train.py's full D and G step, and in the classic loop's.

The classic loop and ours use VGG16; another row shows our step with SqueezeNet instead. The limit
is what the machine could do if it computed only what it does fastest: on a CPU, 3x3 convolutions
from 64 to 64 channels; on a GPU, large matrix products. Operators are those that PyTorch dispatches
in one step; before a fast GPU, the CPU may not launch them quickly enough.

python benchmarks/train_step.py
"""

import argparse

import classic
import common
import torch

import train
from utils import cli
from utils.device import resolve_device


def main(args: argparse.Namespace) -> int:
    """Measure and report."""
    # Networks and a batch
    device = resolve_device(args.device)
    options = train_options("vgg16", args, device)
    models = common.new_models(options)
    with_squeezenet = common.new_models(train_options("squeezenet", args, device))
    for ours in (models, with_squeezenet):
        for optimizer in (ours.optimizer_g, ours.optimizer_d):
            optimizer.param_groups[0]["lr"] = 1e-4
    reference = classic.Training(common.new_loss(options), device)
    batch = args.batch_size or (64 if device.type == "cuda" else 16)
    hr = torch.rand(batch, 3, args.crop, args.crop, device=device) * 2 - 1
    lr = torch.rand(batch, 3, args.crop // 4, args.crop // 4, device=device) * 2 - 1
    ours_hr = hr.contiguous(memory_format=torch.channels_last)  # as the loader gives them
    ours_lr = lr.contiguous(memory_format=torch.channels_last)

    # Time and count; the limit is timed as long as a step, so both see the slow moments
    works = {
        "classic": lambda: reference.step(lr, hr),
        "ours": lambda: train.adversarial_step(models, ours_lr, ours_hr),
        "ours, SqueezeNet": lambda: train.adversarial_step(with_squeezenet, ours_lr, ours_hr),
    }
    image_flops = {
        name: common.flops_of(works[name]) / batch for name in ("ours", "ours, SqueezeNet")
    }
    operators = {name: common.operators_of(work) for name, work in works.items()}
    flops = image_flops["ours"]
    limit, limit_flops = common.limit(device, options.precision)
    limit_repeats = max(1, round(batch * flops / limit_flops))
    works["limit"] = lambda: [limit() for _ in range(limit_repeats)]
    repeats = 20 if device.type == "cuda" else 1
    times = common.in_turns(works, device, args.rounds, repeats)
    sustained = limit_repeats * limit_flops / times.pop("limit")
    peak = max(common.limit_flops(device, options.precision) for _ in range(3))

    # Compare
    rows = []
    for name, seconds in times.items():
        row = {
            "step": name,
            "precision": "fp32" if name == "classic" else options.precision,
            "images/s": batch / seconds,
            "seconds": seconds,
            "operators": operators[name],
            "TFLOP/s": None,
        }
        if name in image_flops:
            row["TFLOP/s"] = batch * image_flops[name] / seconds / 1e12
        rows.append(row)
    for name, speed in (("limit", sustained), ("limit at its fastest", peak)):
        rows.append(
            {
                "step": name,
                "precision": options.precision,
                "images/s": speed / flops,
                "TFLOP/s": speed / 1e12,
            }
        )
    result = {
        "ratio": times["classic"] / times["ours"],
        "limit_fraction": batch * flops / times["ours"] / sustained,
        "fraction_of_fastest": batch * flops / times["ours"] / peak,
        "gigaflop_per_image": flops / 1e9,
        "squeezenet_ratio": times["classic"] / times["ours, SqueezeNet"],
        "squeezenet_gigaflop_per_image": image_flops["ours, SqueezeNet"] / 1e9,
        "operators": operators["ours"],
        "batch_size": batch,
        "crop": args.crop,
    }
    common.report("Full training step (D and G)", device, rows, result, args.json)
    return 0


def train_options(
    perceptual: str, args: argparse.Namespace, device: torch.device
) -> argparse.Namespace:
    """Return train.py's options with a perceptual network (untrained: it is as fast)."""
    words = ["--perceptual", perceptual, "--perceptual-weights", "random"]
    words += ["--crop", str(args.crop), "--device", device.type, "--precision", args.precision]
    if args.compile is not None:
        words.append("--compile" if args.compile else "--no-compile")
    return train.get_args_parser().parse_args(words)


def get_args_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = common.get_args_parser("train_step", __doc__)
    parser.add_argument(
        "--crop", type=cli.positive_int, default=88, help="side of the HR crops in pixels"
    )
    parser.add_argument(
        "--batch-size",
        type=cli.positive_int,
        help="crops per step (default: 16 on the CPU, 64 on a GPU)",
    )
    parser.add_argument(
        "--rounds", type=cli.positive_int, default=5, help="timings of each; the median is reported"
    )
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="compile our networks with torch.compile (default: as in train.py)",
    )
    return parser


if __name__ == "__main__":
    cli.run_script(main, get_args_parser())
