"""Images per second in train.py's full D and G step, compared with the classic loop and with the machine's limit.

The classic loop and ours use VGG16; another row shows our step with SqueezeNet instead.

python benchmarks/train_step.py
"""

import classic
import common
import torch

import train
from utils import cli
from utils.device import resolve_device


def main(args) -> int:
    """Measure and report."""
    device = resolve_device(args.device)
    options, models = models_with("vgg16", args, device)
    _, with_squeezenet = models_with("squeezenet", args, device)
    reference = classic.Training(
        train.new_loss(options, device).to(memory_format=torch.contiguous_format), device
    )
    batch = args.batch_size or (64 if device.type == "cuda" else 16)
    hr = torch.rand(batch, 3, args.crop, args.crop, device=device) * 2 - 1
    lr = torch.rand(batch, 3, args.crop // 4, args.crop // 4, device=device) * 2 - 1
    ours_lr, ours_hr = (
        image.contiguous(memory_format=torch.channels_last) for image in (lr, hr)
    )  # as the loader gives them

    product, product_flops = common.matrix_product(device, options.precision)
    products = 32  # about as long as a step, so that both see the machine's fast and slow moments
    works = {
        "classic": lambda: reference.step(lr, hr),
        "ours": lambda: train.adversarial_step(models, ours_lr, ours_hr),
        "ours, SqueezeNet": lambda: train.adversarial_step(with_squeezenet, ours_lr, ours_hr),
        "limit": lambda: [product() for _ in range(products)],
    }
    repeats = 20 if device.type == "cuda" else 1
    times = common.in_turns(works, device, args.rounds, repeats)
    counted = {
        name: common.flops_of(works[name]) / batch for name in ("ours", "ours, SqueezeNet")
    }  # per image
    flops = counted["ours"]
    sustained = products * product_flops / times.pop("limit")
    peak = max(common.matrix_product_flops(device, options.precision) for _ in range(3))
    rows = [
        {"step": name, "precision": "fp32" if name == "classic" else options.precision, "images/s": batch / time,
         "seconds": time, "TFLOP/s": batch * counted[name] / time / 1e12 if name in counted else None}
        for name, time in times.items()
    ]  # fmt: skip
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
        "squeezenet_gigaflop_per_image": counted["ours, SqueezeNet"] / 1e9,
        "batch_size": batch,
        "crop": args.crop,
    }
    common.report("Full training step (D and G)", device, rows, result, args.json)
    return 0


def models_with(perceptual, args, device):
    """Return train.py's options, and networks ready for its step, with a perceptual network (untrained: as fast)."""
    words = [
        "--perceptual",
        perceptual,
        "--perceptual-weights",
        "random",
        "--crop",
        str(args.crop),
        "--device",
        device.type,
    ]
    options = train.get_args_parser().parse_args(words)
    options.precision, options.compile = args.precision, args.compile
    train.resolve(options)
    models = train.Models(options)
    models.loss = train.new_loss(options, device)
    for optimizer in (models.optimizer_g, models.optimizer_d):
        optimizer.param_groups[0]["lr"] = 1e-4
    return options, models


def get_args_parser():
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
        "--compile", action="store_true", help="compile our networks with torch.compile"
    )
    return parser


if __name__ == "__main__":
    cli.run_script(main, get_args_parser())
