"""The command line of train.py: its options, the defaults that depend on the machine, and what may change between starts."""

import argparse
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from model import UPSCALES
from networks import DISCRIMINATORS, GENERATORS
from utils import checkpoint, cli, device, generator_file, pretrained

DEFAULT_PERCEPTUAL = {
    "vgg16": {"perceptual_weight": 6e-3, "perceptual_shift": 0, "perceptual_zoom": 1.0},
    "squeezenet": {"perceptual_weight": 0.1, "perceptual_shift": 7, "perceptual_zoom": 2.0},
}
DEFAULT_BLOCKS = {
    name: signature(network).parameters["blocks"].default for name, network in GENERATORS.items()
}
# Options that may change at a restart: they do not affect the result, or (last line) only its last bits.
FREE_OPTIONS = {
    *(
        "out",
        "cache",
        "no_cache",
        "val_triplets",
        "dry_run",
        "tensorboard",
        "skip_bad_images",
        "lpips",
        "save_every",
    ),
    *(
        "data",
        "train_dir",
        "val_dir",
        "train_lr_dir",
        "val_lr_dir",
    ),  # the images themselves are compared
    "epochs",  # see check_restart
    *("device", "precision", "workers", "compile"),
}


def get_args_parser(description: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of train.py's command line."""
    parser = cli.ArgumentParser(prog="train.py", description=description)
    parser.add_argument(
        "--upscale",
        type=int,
        default=4,
        choices=UPSCALES,
        help="how many times larger the result is",
    )
    parser.add_argument(
        "--crop", type=cli.positive_int, default=88, help="side of the HR training crops in pixels"
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        type=Path,
        default=Path("data"),
        help="folder that holds DIV2K_train_HR/ and DIV2K_valid_HR/",
    )
    data.add_argument("--train-dir", type=Path, help="any folder of training images instead")
    data.add_argument("--val-dir", type=Path, help="any folder of validation images instead")
    data.add_argument(
        "--train-lr-dir",
        type=Path,
        help="LR files of the training images, paired by name (default: bicubic)",
    )
    data.add_argument(
        "--val-lr-dir",
        type=Path,
        help="LR files of the validation images, paired by name (default: bicubic)",
    )
    data.add_argument(
        "--crops-per-image",
        type=cli.positive_int,
        default=1,
        help="crops from each image in every epoch",
    )
    data.add_argument(
        "--val-images", type=cli.positive_int, help="validate on the first N images (default: all)"
    )
    data.add_argument(
        "--val-every",
        type=cli.positive_int,
        default=1,
        help="validate every N epochs, and at the end of each phase",
    )
    data.add_argument(
        "--val-triplets",
        type=cli.non_negative_int,
        default=5,
        help="pictures (bicubic | HR | SR) to save at each validation",
    )
    data.add_argument(
        "--workers", type=cli.non_negative_int,
        help="data loader processes; they pay off only with --no-cache or --degradation photo (default: 0; with one of them, "
        "up to 8 on a GPU; with photo, 1 on a CPU)",
    )  # fmt: skip
    data.add_argument(
        "--cache",
        type=Path,
        help="folder for decoded pixels (default: .srgan-cache in the image folder)",
    )
    data.add_argument(
        "--no-cache",
        action="store_true",
        help="decode an image for every crop: slow, but needs no disk space",
    )
    data.add_argument(
        "--skip-bad-images", action="store_true", help="leave out images that cannot be read"
    )
    model = parser.add_argument_group("model")
    defaults = ", ".join(f"{blocks} for {name}" for name, blocks in DEFAULT_BLOCKS.items())
    model.add_argument(
        "--generator",
        choices=GENERATORS,
        default="srresnet",
        help="SRGAN's, or ESRGAN's RRDB (x4 only)",
    )
    model.add_argument(
        "--discriminator",
        choices=DISCRIMINATORS,
        default="vgg",
        help="SRGAN's; three of them: at full, half and quarter size; or Real-ESRGAN's U-Net, which judges every pixel",
    )
    model.add_argument(
        "--degradation",
        choices=("bicubic", "photo"),
        default="bicubic",
        help="how LR is made of HR; photo adds the blur, noise and JPEG blocks that ordinary pictures have",
    )
    model.add_argument(
        "--blocks",
        type=cli.positive_int,
        help=f"residual blocks (default: as --init, else {defaults})",
    )
    loss = parser.add_argument_group("loss")
    loss.add_argument(
        "--pixel-loss",
        choices=("mse", "l1"),
        default="mse",
        help="l1 is ESRGAN's; its values are some ten times larger",
    )
    loss.add_argument(
        "--pixel-weight",
        type=cli.non_negative_float,
        default=1.0,
        help="weight of the pixel loss in adversarial epochs",
    )
    loss.add_argument(
        "--adversarial-weight",
        type=cli.non_negative_float,
        default=1e-3,
        help="weight of -log D(G(z))",
    )
    loss.add_argument(
        "--adversarial-loss",
        choices=("standard", "relativistic"),
        default="standard",
        help="relativistic is ESRGAN's: D tells whether HR is more real than SR",
    )
    loss.add_argument(
        "--perceptual",
        choices=("vgg16", "squeezenet"),
        default="vgg16",
        help="network whose features are compared; squeezenet costs a hundredth and is a download of 5 MB, not 528",
    )
    loss.add_argument(
        "--perceptual-weights", "--vgg-weights",
        default="imagenet", metavar="imagenet|random|FILE", help="where the perceptual network's weights come from",
    )  # fmt: skip
    loss.add_argument(
        "--perceptual-weight",
        type=cli.non_negative_float,
        help="weight of the perceptual loss (default: 6e-3 for vgg16, 0.1 for squeezenet)",
    )
    loss.add_argument(
        "--perceptual-shift",
        type=cli.non_negative_int,
        help="largest random shift in pixels before that network, whose strides print squares (default: 7 for squeezenet)",
    )
    loss.add_argument(
        "--perceptual-zoom", type=cli.number_between(1, 4, step=0.25),
        help="largest random enlargement before that network, which misses the finest patterns; in steps of a quarter "
        "(default: 2 for squeezenet)",
    )  # fmt: skip
    loss.add_argument(
        "--tv-weight",
        type=cli.non_negative_float,
        default=2e-8,
        help="weight of the total variation",
    )
    loss.add_argument(
        "--grid-weight", type=cli.non_negative_float, default=0.0,
        help="weight of the penalty on a grid; start with 50000 times the perceptual weight",
    )  # fmt: skip
    loss.add_argument(
        "--consistency-weight", type=cli.non_negative_float, default=0.0,
        help="weight of the difference between SR and HR once both are reduced to LR's size; start with 300 times the "
        "perceptual weight",
    )  # fmt: skip
    optim = parser.add_argument_group("optimisation")
    optim.add_argument(
        "--epochs", type=cli.non_negative_int, default=100, help="adversarial epochs"
    )
    optim.add_argument(
        "--pretrain-epochs",
        type=cli.non_negative_int,
        default=0,
        help="pixel-only epochs before the adversarial ones",
    )
    optim.add_argument("--batch-size", type=cli.positive_int, default=64, help="crops per update")
    optim.add_argument(
        "--accumulate",
        type=cli.positive_int,
        default=1,
        help="compute each batch in N parts, to save memory",
    )
    optim.add_argument(
        "--learning-rate",
        type=cli.non_negative_float,
        default=1e-4,
        help="Adam's learning rate in adversarial epochs",
    )
    optim.add_argument(
        "--learning-rate-d",
        type=cli.non_negative_float,
        help="the discriminator's rate (default: --learning-rate)",
    )
    optim.add_argument(
        "--pretrain-learning-rate",
        type=cli.non_negative_float,
        help="learning rate in pixel-only epochs (default: --learning-rate)",
    )
    optim.add_argument(
        "--lr-schedule",
        choices=("constant", "cosine"),
        default="constant",
        help="course of the learning rate in each phase; cosine falls to 0",
    )
    optim.add_argument(
        "--warmup-steps",
        type=cli.non_negative_int,
        default=0,
        help="updates with a rising learning rate at the start of each phase",
    )
    optim.add_argument(
        "--grad-clip",
        type=cli.non_negative_float,
        default=0.0,
        help="largest norm of each network's gradient (0: no limit)",
    )
    optim.add_argument(
        "--ema",
        type=cli.non_negative_float,
        default=0.0,
        help="decay of the averaged weights, such as 0.999 (0: no averaging)",
    )
    optim.add_argument(
        "--seed",
        type=cli.non_negative_int,
        default=0,
        help="seed of the initial weights, the order of the images and the crops",
    )
    optim.add_argument(
        "--init", type=Path, help="start the generator from this file, which may have fewer blocks"
    )
    speed = parser.add_argument_group("speed")
    device.add_options(speed)
    speed.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="compile the networks with torch.compile",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out", type=Path, help="folder of the run (default: results/srgan_x<upscale>)"
    )
    output.add_argument(
        "--save-every",
        type=cli.positive_int,
        help="also keep checkpoints/generator_epoch_NNN.pth every N epochs",
    )
    output.add_argument(
        "--lpips",
        action="store_true",
        help="also measure LPIPS in validation (pip install lpips; downloads AlexNet's weights once)",
    )
    output.add_argument(
        "--tensorboard",
        action="store_true",
        help="also log scalars and pictures to <out>/tensorboard",
    )
    output.add_argument(
        "--dry-run",
        action="store_true",
        help="build everything, run one step and one validation image, write nothing",
    )
    return parser


def resolve(args: argparse.Namespace) -> None:
    """Fill in the defaults that depend on the machine or on other options, and check all options.

    Raises:
        UserError: an option cannot work; the message names it.
    """
    if args.crop % args.upscale:
        rounded = args.crop - args.crop % args.upscale
        print(f"--crop {args.crop} is not a multiple of {args.upscale}: using {rounded}")
        args.crop = rounded
    chosen = device.resolve_device(args.device)
    args.precision = device.resolve_precision(args.precision, chosen)
    args.device = chosen.type
    args.train_dir = args.train_dir or args.data / "DIV2K_train_HR"
    args.val_dir = args.val_dir or args.data / "DIV2K_valid_HR"
    args.out = args.out or Path("results", f"srgan_x{args.upscale}")
    if args.pretrain_learning_rate is None:
        args.pretrain_learning_rate = args.learning_rate
    if args.learning_rate_d is None:
        args.learning_rate_d = args.learning_rate
    for name, value in DEFAULT_PERCEPTUAL[args.perceptual].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.blocks is None:
        started = (
            generator_file.load(args.init).architecture if args.init and args.init.exists() else {}
        )
        args.blocks = started.get("blocks", DEFAULT_BLOCKS[args.generator])
    if args.workers is None:
        work = (
            args.no_cache or args.degradation != "bicubic"
        )  # cutting crops from the cache takes less than passing them on
        most = {"cuda": 8, "cpu": int(args.degradation != "bicubic")}.get(chosen.type, 0)
        args.workers = min(most, torch.get_num_threads()) if work else 0
    _check(args)
    if not (args.dry_run and needs_perceptual(args)):
        return
    if missing := pretrained.missing_download(args.perceptual, args.perceptual_weights):
        print(f"a real run would download {missing}; this dry run uses untrained features instead")
        args.perceptual_weights = "random"


def _check(args: argparse.Namespace) -> None:
    least = DISCRIMINATORS[args.discriminator].minimum_crop
    if args.crop < least:
        raise cli.UserError(f"--crop {args.crop} is too small: the networks need at least {least}")
    least = args.perceptual_shift + pretrained.LEAST_SIDES[args.perceptual]
    if needs_perceptual(args) and args.crop < least:
        raise cli.UserError(
            f"--crop {args.crop} is too small: with --perceptual-shift {args.perceptual_shift}, --perceptual {args.perceptual} "
            f"needs at least {least}"
        )
    if args.generator == "rrdb" and args.upscale != 4:
        raise cli.UserError(f"--upscale {args.upscale}: --generator rrdb supports only 4")
    if args.seed >= 2**63:
        raise cli.UserError(f"--seed {args.seed} is too large: it must be below 2^63")
    if args.ema >= 1:
        raise cli.UserError(f"--ema {args.ema} is not a decay: it must be below 1, such as 0.999")
    if args.accumulate > args.batch_size:
        raise cli.UserError(
            f"--accumulate {args.accumulate} asks for more parts than --batch-size {args.batch_size} has crops"
        )
    for option, wanted in (("lpips", args.lpips), ("tensorboard", args.tensorboard)):
        if wanted and find_spec(option) is None:
            raise cli.UserError(f"--{option}: the package is missing; pip install {option}")
    if args.pretrain_epochs + args.epochs == 0:
        raise cli.UserError("--epochs 0 with --pretrain-epochs 0 leaves nothing to do")
    out, train_dir, val_dir = (
        folder.resolve() for folder in (args.out, args.train_dir, args.val_dir)
    )
    for folder in (train_dir, val_dir):
        if out.is_relative_to(folder):
            raise cli.UserError(
                f"--out {args.out} is inside the image folder {folder}, so the run would use its own pictures as data; "
                "choose another --out"
            )
    if train_dir.is_relative_to(val_dir) or val_dir.is_relative_to(train_dir):
        print(
            f"warning: {args.train_dir} and {args.val_dir} share images, so validation scores will be too optimistic"
        )


def plain_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options as plain data for JSON and checkpoints."""
    return {
        name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()
    }


def needs_perceptual(args: argparse.Namespace) -> bool:
    """Tell whether the run needs a perceptual network; pixel-only runs do not."""
    return args.epochs > 0 and args.perceptual_weight > 0


def check_restart(args: argparse.Namespace, saved: dict[str, Any]) -> None:
    """Check that a run can resume with these options; print what more epochs mean for a cosine schedule.

    Args:
        saved: the run's checkpoint, of this version or an older one that lacks newer options.

    Raises:
        UserError: an option differs that would change the result; the message names it.
    """
    current = plain_options(args)
    begun_with = plain_options(get_args_parser().parse_args([]))
    begun_with |= {
        "learning_rate_d": saved["options"]["learning_rate"],
        **DEFAULT_PERCEPTUAL["vgg16"],
        **saved["options"],
    }
    if "vgg_weights" in begun_with:  # the option's name before there were other networks
        begun_with["perceptual_weights"] = begun_with.pop("vgg_weights")
    checkpoint.check_same_options(begun_with, current, FREE_OPTIONS)
    before, now, pixel_only = begun_with["epochs"], args.epochs, args.pretrain_epochs
    done = saved["progress"]["epoch"] - 1 - pixel_only  # adversarial epochs
    if (
        args.lr_schedule == "constant"
        or before == now
        or done < 0
        or (done == 0 and not saved["progress"]["batch"])
    ):
        return
    if done < before:
        raise cli.UserError(
            f"--epochs was {before}, is {now}: this would change the cosine midway; finish with --epochs {before} first"
        )
    if done < now:
        print(
            f"the learning rate follows a cosine over {now} epochs instead of {before}: it rises again at epoch "
            f"{saved['progress']['epoch']} and falls from there"
        )
