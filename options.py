"""train.py's command line, what a run is (plan and record), and what may change between starts.

The command line needs no PyTorch, which this module therefore imports only where it is used.
"""

from __future__ import annotations

import argparse
import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import choices
from utils import cli, machine

if TYPE_CHECKING:
    from dataloader import EpochSampler, TrainDatasetFromFolder, ValDatasetFromFolder
    from networks import GeneratorNetwork
    from utils import pretrained

DEFAULT_PERCEPTUAL = {
    "vgg16": {"perceptual_weight": 6e-3, "perceptual_shift": 0, "perceptual_zoom": 1.0},
    "vgg19": {"perceptual_weight": 1.0, "perceptual_shift": 0, "perceptual_zoom": 1.0},
    "squeezenet": {"perceptual_weight": 0.1, "perceptual_shift": 7, "perceptual_zoom": 2.0},
}
ARGUMENT_HELP = {  # of the generators' constructors
    "blocks": "residual blocks",
    "features": "channels between the blocks",
    "growth": "channels that each convolution of a dense block adds",
}

# Options that may change when a run is resumed
FREE_OPTIONS = {
    # They do not affect the result
    "out",
    "cache",
    "no_cache",
    "val_triplets",
    "dry_run",
    "tensorboard",
    "skip_bad_images",
    "lpips",
    "save_every",
    # The images themselves are compared
    "data",
    "train_dir",
    "val_dir",
    "train_lr_dir",
    "val_lr_dir",
    # See `check_restart`
    "epochs",
    # They affect only the last bits of the result
    "device",
    "precision",
    "workers",
    "compile",
}

# --- the command line ---------------------------------------------------------------------------


def get_args_parser(description: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of train.py's command line."""
    parser = cli.ArgumentParser(prog="train.py", description=description)
    parser.add_argument(
        "--upscale",
        type=int,
        default=4,
        choices=choices.UPSCALES,
        help="scale: SR is this many times as wide and as high as LR; 1: only remove noise, blur "
        "and compression (see --degradation)",
    )
    parser.add_argument(
        "--crop",
        type=cli.positive_int,
        default=88,
        help="side of the HR training crops in pixels",
    )
    _add_data_options(parser.add_argument_group("data"))
    _add_model_options(parser.add_argument_group("model"))
    _add_loss_options(parser.add_argument_group("loss"))
    _add_optimisation_options(parser.add_argument_group("optimisation"))
    speed = parser.add_argument_group("speed")
    machine.add_options(speed)
    speed.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="compile the networks with torch.compile, which takes about a minute at the start "
        "(default: on CUDA, if Triton is there)",
    )
    _add_output_options(parser.add_argument_group("output"))
    return parser


def _add_data_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--data",
        type=Path,
        default=Path("data"),
        help="folder that holds DIV2K_train_HR/ and DIV2K_valid_HR/",
    )
    group.add_argument("--train-dir", type=Path, help="training images, if not those in --data")
    group.add_argument("--val-dir", type=Path, help="validation images, if not those in --data")
    group.add_argument(
        "--train-lr-dir",
        type=Path,
        help="LR files of the training images, paired by name (default: LR is made from HR)",
    )
    group.add_argument(
        "--val-lr-dir",
        type=Path,
        help="LR files of the validation images, paired by name (default: LR is made from HR)",
    )
    group.add_argument(
        "--crops-per-image",
        type=cli.positive_int,
        default=1,
        help="random crops from each image per epoch",
    )
    group.add_argument(
        "--val-images",
        type=cli.positive_int,
        metavar="N",
        help="validate on the first N images (default: all)",
    )
    group.add_argument(
        "--val-every",
        type=cli.positive_int,
        default=1,
        metavar="N",
        help="validate every N epochs, and at the end of each phase",
    )
    group.add_argument(
        "--val-triplets",
        type=cli.non_negative_int,
        default=5,
        help="pictures (bicubic | HR | SR) to save per validation",
    )
    group.add_argument(
        "--workers",
        type=cli.non_negative_int,
        help="data loader processes; they pay off only with --no-cache or --degradation photo or "
        "photo-2 (default: with one of these, one per core, at most 8, on CUDA; on a CPU, 1 with "
        "photo or photo-2; otherwise 0)",
    )
    group.add_argument(
        "--cache",
        type=Path,
        help="folder for decoded pixels (default: .srgan-cache in the image folder)",
    )
    group.add_argument(
        "--no-cache",
        action="store_true",
        help="decode an image for every crop: slow, but needs no disk space",
    )
    group.add_argument(
        "--skip-bad-images",
        action="store_true",
        help="leave out images that cannot be read",
    )


def _add_model_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--generator",
        choices=choices.GENERATORS,
        default="srresnet",
        help="srresnet: SRGAN's; rrdb: ESRGAN's (x4 only)",
    )
    for argument, defaults in constructor_arguments().items():
        what = ARGUMENT_HELP.get(argument, "argument of the generator's constructor")
        listed = ", ".join(f"{value} for {name}" for name, value in defaults.items())
        group.add_argument(
            f"--{argument.replace('_', '-')}",
            type=cli.positive_int,
            help=f"{what} (default: as in the --init file, else {listed})",
        )
    group.add_argument(
        "--even-phases",
        action="store_true",
        help="constrain the generator's pixel shuffles so that they cannot print a regular pattern "
        "on smooth areas",
    )
    group.add_argument(
        "--freeze-batch-norm",
        action="store_true",
        help="in adversarial epochs, normalise the generator's features as in enlarging, with its "
        "running statistics, so that the losses judge the pictures that users get; needs "
        "--pretrain-epochs or --init",
    )
    group.add_argument(
        "--discriminator",
        choices=choices.DISCRIMINATORS,
        default="vgg",
        help="vgg: SRGAN's; multiscale: three such networks, at full, half and quarter size; "
        "unet: Real-ESRGAN's, which judges every pixel; unet-small: the same with half its "
        "channels, as fast as vgg",
    )
    group.add_argument(
        "--joint-batch",
        action="store_true",
        help="show the discriminator HR and SR in one batch: in two, its batch normalisation hides "
        "how they differ on average",
    )
    group.add_argument(
        "--degradation",
        choices=choices.DEGRADATIONS,
        default="bicubic",
        help="how LR is made from HR; photo-2 adds the blur, noise and compression of everyday "
        "photographs, and photo is its older version",
    )


def constructor_arguments() -> dict[str, dict[str, int]]:
    """Return the arguments of all generators' constructors, with each generator's default."""
    found: dict[str, dict[str, int]] = {}
    for name, defaults in choices.GENERATORS.items():
        for argument, default in defaults.items():
            found.setdefault(argument, {})[name] = default
    return found


def _add_loss_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--pixel-loss",
        choices=choices.PIXEL_LOSSES,
        default="mse",
        help="mse: SRGAN's; l1: ESRGAN's, whose values are about ten times as large",
    )
    group.add_argument(
        "--pixel-weight",
        type=cli.non_negative_float,
        default=1.0,
        help="weight of the pixel loss in adversarial epochs",
    )
    group.add_argument(
        "--adversarial-loss",
        choices=choices.ADVERSARIAL_LOSSES,
        default="standard",
        help="standard: SRGAN's; relativistic: ESRGAN's, where D judges whether HR is more real "
        "than SR",
    )
    group.add_argument(
        "--adversarial-weight",
        type=cli.non_negative_float,
        default=1e-3,
        help="weight of -log D(G(z))",
    )
    group.add_argument(
        "--perceptual",
        choices=choices.PERCEPTUAL_NETWORKS,
        default="vgg16",
        help="network whose features of SR and HR are compared; vgg19: as in Real-ESRGAN; "
        "squeezenet: needs about a thirtieth of vgg16's operations and a download of 5 MB instead "
        "of over 500 MB",
    )
    group.add_argument(
        "--perceptual-weights",
        "--vgg-weights",
        default="imagenet",
        metavar="imagenet|random|FILE",
        help="that network's weights: trained on ImageNet, untrained, or from a file",
    )
    group.add_argument(
        "--perceptual-weight",
        type=cli.non_negative_float,
        help="weight of the perceptual loss (default: 6e-3 for vgg16, 1 for vgg19, 0.1 for "
        "squeezenet)",
    )
    group.add_argument(
        "--perceptual-shift",
        type=cli.non_negative_int,
        help="shift SR and HR randomly by up to this many pixels before they enter the perceptual "
        "network, which prevents a visible pattern of 8-pixel squares in SR (default: 7 for "
        "squeezenet, else 0)",
    )
    group.add_argument(
        "--perceptual-zoom",
        type=cli.number_between(1, 4, step=0.25),
        help="enlarge SR and HR randomly by up to this factor, a multiple of 0.25, before they "
        "enter the perceptual network, which otherwise misses the finest patterns (default: 2 for "
        "squeezenet, else 1)",
    )
    group.add_argument(
        "--tv-weight",
        type=cli.non_negative_float,
        default=2e-8,
        help="weight of the total variation",
    )
    group.add_argument(
        "--grid-weight",
        type=cli.non_negative_float,
        default=0.0,
        help="weight of the penalty on a regular grid in SR, such as 50000 with --perceptual "
        "squeezenet --perceptual-weight 1",
    )
    group.add_argument(
        "--consistency-weight",
        type=cli.non_negative_float,
        default=0.0,
        help="weight of the difference between SR and HR after both are reduced to LR's size; "
        "such as 300 with --perceptual squeezenet --perceptual-weight 1",
    )
    group.add_argument(
        "--sharpen",
        type=cli.non_negative_float,
        default=0.0,
        metavar="AMOUNT",
        help="sharpen HR for the pixel and perceptual losses of adversarial epochs, which makes SR "
        "crisper at some cost in PSNR; such as 0.6",
    )


def _add_optimisation_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--epochs", type=cli.non_negative_int, default=100, help="adversarial epochs"
    )
    group.add_argument(
        "--pretrain-epochs",
        type=cli.non_negative_int,
        default=0,
        help="pixel-only epochs before the adversarial ones",
    )
    group.add_argument("--batch-size", type=cli.positive_int, default=64, help="crops per update")
    group.add_argument(
        "--accumulate",
        type=cli.positive_int,
        default=1,
        metavar="N",
        help="compute each batch in N parts, to save memory",
    )
    group.add_argument(
        "--learning-rate",
        type=cli.non_negative_float,
        default=1e-4,
        help="Adam's learning rate in adversarial epochs",
    )
    group.add_argument(
        "--learning-rate-d",
        type=cli.non_negative_float,
        help="the discriminator's learning rate (default: --learning-rate)",
    )
    group.add_argument(
        "--pretrain-learning-rate",
        type=cli.non_negative_float,
        help="learning rate in pixel-only epochs (default: --learning-rate)",
    )
    group.add_argument(
        "--lr-schedule",
        choices=("constant", "cosine"),
        default="constant",
        help="cosine: lower the rate to 0 over each phase",
    )
    group.add_argument(
        "--warmup-steps",
        type=cli.non_negative_int,
        default=0,
        help="updates with a rising learning rate at the start of each phase",
    )
    group.add_argument(
        "--grad-clip",
        type=cli.non_negative_float,
        default=0.0,
        help="largest norm of each network's gradient (0: no limit)",
    )
    group.add_argument(
        "--ema",
        type=cli.non_negative_float,
        default=0.0,
        help="decay of the averaged weights, such as 0.999 (0: no averaging)",
    )
    group.add_argument(
        "--seed",
        type=cli.non_negative_int,
        default=0,
        help="seed of the initial weights, the order of the images and the crops",
    )
    group.add_argument(
        "--init",
        type=Path,
        help="generator file to start from; an srresnet file may have fewer blocks than --blocks, "
        "and the added ones start as the identity",
    )
    group.add_argument(
        "--init-discriminator",
        type=Path,
        help="discriminator to start from: the discriminator_last.pth or last.pth of another run",
    )


def _add_output_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--out", type=Path, help="folder of the run (default: results/srgan_x<upscale>)"
    )
    group.add_argument(
        "--save-every",
        type=cli.positive_int,
        metavar="N",
        help="also keep checkpoints/generator_epoch_NNN.pth every N epochs",
    )
    group.add_argument(
        "--lpips",
        action="store_true",
        help="also measure LPIPS in validation (pip install lpips; downloads AlexNet's weights "
        "once)",
    )
    group.add_argument(
        "--tensorboard",
        action="store_true",
        help="also log scalars and pictures to <out>/tensorboard",
    )
    group.add_argument(
        "--dry-run",
        action="store_true",
        help="build everything, run one step, validate one image, write nothing",
    )


# --- defaults and checks ------------------------------------------------------------------------


def resolve(args: argparse.Namespace, initial: GeneratorNetwork | None = None) -> None:
    """Fill in the defaults that depend on the machine or on other options, and check the options.

    Args:
        args: of `get_args_parser`; changed in place.
        initial: the generator of `--init`.

    Raises:
        UserError: an option cannot work; the message names it.
    """
    from utils import device, pretrained

    if args.crop % args.upscale and args.crop > args.upscale:
        rounded = args.crop - args.crop % args.upscale
        print(f"--crop {args.crop} is not a multiple of {args.upscale}: using {rounded}")
        args.crop = rounded

    # Paths
    if args.train_dir is None:
        args.train_dir = args.data / "DIV2K_train_HR"
    if args.val_dir is None:
        args.val_dir = args.data / "DIV2K_valid_HR"
    args.out = out_folder(args)

    # Networks and losses
    _resolve_architecture(args, initial)
    for name, value in DEFAULT_PERCEPTUAL[args.perceptual].items():
        if getattr(args, name) is None:
            setattr(args, name, value)

    # Learning rates
    if args.pretrain_learning_rate is None:
        args.pretrain_learning_rate = args.learning_rate
    if args.learning_rate_d is None:
        args.learning_rate_d = args.learning_rate

    # The machine
    chosen = device.resolve_device(args.device)
    args.device = chosen.type
    args.precision = device.resolve_precision(args.precision, chosen)
    if args.compile is None:
        args.compile = device.compiles_by_default(chosen)
    if args.workers is None:
        args.workers = _default_workers(args)

    _check(args)
    if args.dry_run and needs_perceptual(args):
        missing = pretrained.missing_download(args.perceptual, args.perceptual_weights)
        if missing:
            print(
                f"a real run would download {missing}; this dry run uses untrained features instead"
            )
            args.perceptual_weights = "random"


def _resolve_architecture(args: argparse.Namespace, initial: GeneratorNetwork | None) -> None:
    """Fill in the constructor's arguments: given ones, else those of `--init`, else defaults."""
    import networks

    defaults = choices.GENERATORS[args.generator]
    held = _arguments_of_start(args, initial)
    for argument in constructor_arguments():
        value = getattr(args, argument)
        if argument not in defaults:
            if value is not None:
                raise cli.UserError(
                    f"--{argument.replace('_', '-')} {value}: --generator {args.generator} has no "
                    "such argument"
                )
        elif value is None:
            setattr(args, argument, held.get(argument, defaults[argument]))
    try:
        networks.empty_generator(args.generator, upscale=args.upscale, **architecture_options(args))
    except ValueError as error:
        raise cli.UserError(f"--generator {args.generator}: {error}") from error


def _arguments_of_start(
    args: argparse.Namespace, initial: GeneratorNetwork | None
) -> dict[str, Any]:
    """Return the constructor's arguments of `--init`; without the file, those of the run."""
    if args.init is None:
        return {}
    if initial is not None:
        held = initial.architecture
    else:
        try:
            held = json.loads((args.out / "config.json").read_text("utf-8"))["options"]
        except (OSError, ValueError, LookupError, TypeError):  # no run yet, or damaged
            return {}
    return held if held.get("generator") == args.generator else {}


def architecture_options(args: argparse.Namespace) -> dict[str, int]:
    """Return the arguments of the chosen generator's constructor other than the scale."""
    return {name: getattr(args, name) for name in choices.GENERATORS[args.generator]}


def _default_workers(args: argparse.Namespace) -> int:
    """Return how many loader processes pay off.

    Passing on a crop that was cut from the cache takes longer than cutting it.
    """
    from degradations import DEGRADATIONS

    random = DEGRADATIONS[args.degradation].random_per_crop
    if not (random or args.no_cache):
        return 0
    most = {"cuda": 8, "cpu": 1 if random else 0}
    return min(most.get(args.device, 0), machine.cores_per_process())


def _check(args: argparse.Namespace) -> None:
    from networks import DISCRIMINATORS
    from utils import pretrained

    # Crops
    least = DISCRIMINATORS[args.discriminator].minimum_crop
    if args.crop < least:
        raise cli.UserError(f"--crop {args.crop} is too small: the networks need at least {least}")
    least = args.perceptual_shift + pretrained.LEAST_SIDES[args.perceptual]
    if needs_perceptual(args) and args.crop < least:
        raise cli.UserError(
            f"--crop {args.crop} is too small: with --perceptual-shift {args.perceptual_shift}, "
            f"--perceptual {args.perceptual} needs at least {least}"
        )

    # At x1, bicubic changes nothing
    if args.upscale == 1 and args.degradation == "bicubic" and not args.train_lr_dir:
        raise cli.UserError(
            "--upscale 1 with --degradation bicubic: LR would be HR itself; pass --degradation "
            "photo-2, or name LR files with --train-lr-dir"
        )
    if args.upscale == 1 and (args.grid_weight or args.consistency_weight):
        raise cli.UserError(
            "--grid-weight and --consistency-weight have no meaning with --upscale 1, where no "
            "pixel shuffle can leave a grid and LR is as large as HR; leave them out"
        )

    # Statistics to keep
    if args.freeze_batch_norm and not (args.init or args.pretrain_epochs):
        raise cli.UserError(
            "--freeze-batch-norm: an untrained generator has no statistics to keep; pass "
            "--pretrain-epochs or --init"
        )

    # Numbers
    if args.seed >= 2**63:
        raise cli.UserError(f"--seed {args.seed} is too large: it must be below 2^63")
    if args.ema >= 1:
        raise cli.UserError(f"--ema {args.ema} is not a decay: it must be below 1, such as 0.999")
    if args.accumulate > args.batch_size:
        raise cli.UserError(
            f"--accumulate {args.accumulate} asks for more parts than --batch-size "
            f"{args.batch_size} has crops"
        )
    if args.pretrain_epochs + args.epochs == 0:
        raise cli.UserError("--epochs 0 with --pretrain-epochs 0 leaves nothing to do")

    weights = [value for name, value in vars(args).items() if name.endswith("_weight")]
    if args.epochs and not any(weights):
        raise cli.UserError(
            "the weights of all losses are 0, so the adversarial epochs would not train the "
            "generator; give one a weight, such as --pixel-weight 1, or use --epochs 0"
        )

    # Packages
    for option, wanted in (("lpips", args.lpips), ("tensorboard", args.tensorboard)):
        if wanted and find_spec(option) is None:
            raise cli.UserError(f"--{option}: the package is missing; pip install {option}")

    # Folders
    out = args.out.resolve()
    train_dir = args.train_dir.resolve()
    val_dir = args.val_dir.resolve()
    for folder in (train_dir, val_dir):
        if out.is_relative_to(folder):
            raise cli.UserError(
                f"--out {args.out} is inside the image folder {folder}, so the run would use its "
                "own pictures as data; choose another --out"
            )
    if train_dir.is_relative_to(val_dir) or val_dir.is_relative_to(train_dir):
        print(
            f"warning: {args.train_dir} and {args.val_dir} share images, so validation scores will "
            "be too optimistic"
        )


def out_folder(args: argparse.Namespace) -> Path:
    """Return the folder of the run."""
    return args.out or Path("results", f"srgan_x{args.upscale}")


def check_start(args: argparse.Namespace) -> None:
    """Check what only a new run needs; a resumed one may have been started without it.

    Raises:
        UserError: LR files are named for training alone, or a file to start from does not exist.
    """
    if args.train_lr_dir and not args.val_lr_dir:
        raise cli.UserError(
            f"--train-lr-dir {args.train_lr_dir} without --val-lr-dir: validation would use "
            "different LR from training; name the LR files of the validation images with "
            "--val-lr-dir"
        )
    starts = (("--init", args.init), ("--init-discriminator", args.init_discriminator))
    for option, path in starts:
        if path and not path.exists():
            raise cli.UserError(f"{option} {path}: no such file")


def check_folders(args: argparse.Namespace) -> None:
    """Raise UserError if a folder of images does not exist."""
    for folder, option in ((args.train_dir, "--train-dir"), (args.val_dir, "--val-dir")):
        if not folder.is_dir():
            raise cli.UserError(
                f"{folder}: no such folder; get DIV2K with `python prepare_data.py div2k`, or name "
                f"your own with {option}"
            )


def needs_perceptual(args: argparse.Namespace) -> bool:
    """Tell whether the run needs a perceptual network; pixel-only runs do not."""
    return args.epochs > 0 and args.perceptual_weight > 0


# --- what a run is ------------------------------------------------------------------------------


def plain_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options as plain data for JSON and checkpoints."""
    options = vars(args).items()
    return {name: str(value) if isinstance(value, Path) else value for name, value in options}


def run_record(
    args: argparse.Namespace,
    train_set: TrainDatasetFromFolder,
    val_set: ValDatasetFromFolder,
    perceptual: pretrained.Pretrained | None,
) -> dict[str, Any]:
    """Return what checkpoints hold of a run for its next start to compare."""
    import torch

    from utils import distributed

    return {
        "options": plain_options(args),
        "images": {
            "training": train_set.store.fingerprint(),
            "validation": val_set.store.fingerprint(),
        },
        "degradation": train_set.degradation_record,
        "perceptual": perceptual.fingerprint if perceptual else None,
        "machine": {
            "device": args.device,
            "precision": args.precision,
            "compile": args.compile,
            "threads": torch.get_num_threads(),
            "processes": distributed.world_size(),
        },
    }


def plan_text(
    args: argparse.Namespace,
    parameters_g: int,
    parameters_d: int,
    train_set: TrainDatasetFromFolder,
    val_set: ValDatasetFromFolder,
    sampler: EpochSampler,
) -> str:
    """Return every option and the plan of the run, as lines.

    Args:
        args: the resolved options.
        parameters_g, parameters_d: how many parameters the generator and the discriminator have.
        train_set, val_set: the images.
        sampler: the batches of an epoch.
    """
    options = " ".join(
        f"{name}={value}" for name, value in plain_options(args).items() if value is not None
    )
    batches = len(sampler)
    total = batches * (args.pretrain_epochs + args.epochs)
    crops = min(args.batch_size, len(train_set.usable) * args.crops_per_image)
    lines = [
        f"options: {options}",
        f"networks: generator {parameters_g:,} parameters, discriminator {parameters_d:,}; "
        f"{args.device}, {args.precision}",
        f"images: {len(train_set.usable)} for training, {len(val_set)} for validation",
        f"plan: {args.pretrain_epochs} pixel-only and "
        f"{cli.counted(args.epochs, 'adversarial epoch')} of {cli.counted(batches, 'update')} with "
        f"{cli.counted(crops, 'crop')} of {args.crop}x{args.crop}: "
        f"{cli.counted(total, 'update')} in total",
    ]
    if crops < args.batch_size:
        lines.append(
            f"note: an epoch has only {cli.counted(crops, 'crop')}, fewer than --batch-size "
            f"{args.batch_size}; "
            f"pass --crops-per-image {-(-args.batch_size // len(train_set.usable))}"
        )
    if sampler.world_size > 1:
        lines.append(f"processes: {sampler.world_size}, each with its share of every batch")
    if sampler.left_out:
        lines.append(
            f"note: {cli.counted(sampler.left_out, 'sample')} left out of every epoch, whose last "
            "batch cannot be shared evenly"
        )
    if needs_perceptual(args) and args.perceptual_weights == "random":
        lines.append(
            "note: --perceptual-weights random: the perceptual loss compares features of an "
            "UNTRAINED network"
        )
    return "\n".join(lines)


def check_restart(args: argparse.Namespace, saved: dict[str, Any]) -> None:
    """Check that a run can resume with these options; say what more epochs mean for a cosine.

    Args:
        args: the resolved options.
        saved: the run's checkpoint, of this version or an older one that lacks newer options.

    Raises:
        UserError: an option differs that would change the result; the message names it.
    """
    begun_with = _options_of_first_start(saved["options"])
    check_same_options(begun_with, plain_options(args))

    # A cosine over a phase that has begun cannot be bent; a finished one can be followed by another
    before = begun_with["epochs"]
    epoch = saved["progress"]["epoch"]
    finished = epoch - 1 - args.pretrain_epochs  # adversarial epochs
    begun = finished > 0 or (finished == 0 and saved["progress"]["batch"] > 0)
    if args.lr_schedule == "constant" or args.epochs == before or not begun:
        return
    if finished < before:
        raise cli.UserError(
            f"--epochs was {before}, is {args.epochs}: this would change the cosine midway; finish "
            f"with --epochs {before} first"
        )
    if finished < args.epochs:
        print(
            f"the learning rate follows a cosine over {args.epochs} epochs instead of {before}: it "
            f"rises again at epoch {epoch} and falls from there"
        )


def check_same_options(saved: dict[str, Any], current: dict[str, Any]) -> None:
    """Check that the options that affect the result are those of the run's first start.

    Raises:
        UserError: it names every option that differs.
    """
    differing = []
    for name in sorted(saved.keys() | current.keys()):
        if name not in FREE_OPTIONS and saved.get(name) != current.get(name):
            option = name.replace("_", "-")
            differing.append(f"--{option} (was {saved.get(name)}, is {current.get(name)})")
    if differing:
        raise cli.UserError(
            f"this run was started with other options: {', '.join(differing)}; "
            "use those, or another --out"
        )


def _options_of_first_start(saved: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's options, and the defaults of those that are newer than it."""
    options = plain_options(get_args_parser().parse_args([]))
    options["learning_rate_d"] = saved["learning_rate"]
    options |= DEFAULT_PERCEPTUAL["vgg16"]
    options |= choices.GENERATORS[saved.get("generator", "srresnet")]
    options |= saved
    if "vgg_weights" in options:  # the option's name before there were other networks
        options["perceptual_weights"] = options.pop("vgg_weights")
    return options
