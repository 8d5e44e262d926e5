"""Train SRGAN (Ledig et al., 2017) by updating a discriminator and a generator in turn.

python train.py --upscale 4 --crop 88
"""

import argparse
import contextlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import options
from utils import cli

if __name__ == "__main__":
    # Answer --help or point out a mistyped option at once: importing PyTorch takes seconds
    cli.parse(options.get_args_parser(__doc__))

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from tqdm import tqdm

import metrics
from dataloader import (
    EpochSampler,
    Stream,
    TrainDatasetFromFolder,
    ValDatasetFromFolder,
    describe_left_out,
    new_loader,
    random_stream,
    workers_of,
)
from degradations import DEGRADATIONS
from generator_loss_functions import PERCEPTUAL_NETWORKS, PIXEL_LOSSES, GeneratorLoss
from model import Logits, UpsampleBlock, move_towards
from networks import DISCRIMINATORS, GENERATORS, GeneratorNetwork
from utils import (
    checkpoint,
    discriminator_file,
    distributed,
    files,
    generator_file,
    images,
    pretrained,
    run_log,
)
from utils.checkpoint import Progress
from utils.device import autocast, compile_for, move_to, set_switches
from utils.pixel_cache import cache_folder_for
from validation import validate

get_args_parser = options.get_args_parser

UPDATES_TO_EVEN_OUT = 1000  # after so many, --even-phases is in full effect

# --- one update ---------------------------------------------------------------------------------


def adversarial_step(models: "Models", lr: Tensor, hr: Tensor) -> dict[str, Tensor]:
    """Update D and then G on a batch in [-1, 1]; return losses and scores by CSV column.

    LR is (N, 3, H, W), by default (64, 3, 22, 22), and HR (N, 3, upscale·H, upscale·W). The
    values stay on the device. A batch is one part by default, so G's step uses the `fake` of D's
    step.
    """
    assert models.loss is not None
    adversarial = models.loss.adversarial
    # With several parts, only the graph of one is held at a time
    regenerate = len(lr.chunk(models.accumulate)) > 1
    values: dict[str, Tensor] = {}

    # (1) Update D: minimise BCE(D(x), 1) + BCE(D(G(z)), 0)
    models.optimizer_d.zero_grad(set_to_none=True)
    for part_lr, part_hr, share in models.parts_of(lr, hr):
        with autocast(models.device, models.precision):
            with torch.set_grad_enabled(not regenerate):
                fake = models.generate(part_lr)
            real_logits, fake_logits = models.judge(models.discriminate, part_hr, fake.detach())
        loss_d, scores = adversarial.discriminator_loss(real_logits, fake_logits)
        models.scaler.scale(share * loss_d).backward()
        add_values(values, {"Loss_D": loss_d, **scores}, share)
    models.update(models.optimizer_d)

    # (2) Update G: minimise pixel + 0.001 BCE(D(G(z)), 1) + 0.006 perceptual + 2e-8 TV
    #     (default weights; a term whose weight is 0 is not computed)
    models.optimizer_g.zero_grad(set_to_none=True)
    models.discriminator.requires_grad_(False)
    for part_lr, part_hr, share in models.parts_of(lr, hr):
        with autocast(models.device, models.precision):
            if regenerate:
                fake = models.generate(part_lr)
            hr_logits = None
            sr_logits = None
            if models.loss.weights["Loss_Adversarial"]:
                discriminate = models.discriminate_unwrapped
                if adversarial.needs_real or models.joint_batch:
                    hr_logits, sr_logits = models.judge(discriminate, part_hr, fake)
                else:
                    sr_logits = discriminate(fake)
            sr = images.signed_to_unit(fake.float())
            target = images.signed_to_unit(part_hr)
            loss_g, terms = models.loss(sr, target, sr_logits, hr_logits)
        models.scaler.scale(share * loss_g).backward()
        add_values(values, {"Loss_G": loss_g, **terms}, share)
    models.discriminator.requires_grad_(True)
    models.update(models.optimizer_g)
    models.scaler.update()
    return values


def pixel_step(models: "Models", lr: Tensor, hr: Tensor) -> dict[str, Tensor]:
    """Update G on the pixel loss alone (the paper's SRResNet); shapes as `adversarial_step`."""
    values: dict[str, Tensor] = {}
    models.optimizer_g.zero_grad(set_to_none=True)
    for part_lr, part_hr, share in models.parts_of(lr, hr):
        with autocast(models.device, models.precision):
            fake = models.generate(part_lr)
        sr = images.signed_to_unit(fake.float())
        loss = models.pixel_loss(sr, images.signed_to_unit(part_hr))
        models.scaler.scale(share * loss).backward()
        add_values(values, {"Loss_G": loss, "Loss_Pixel": loss}, share)
    models.update(models.optimizer_g)
    models.scaler.update()
    return values


def add_values(values: dict[str, Tensor], more: dict[str, Tensor], share: float) -> None:
    """Add the losses and scores of one part of a batch, weighted by its share."""
    for name, value in more.items():
        values[name] = values.get(name, 0) + share * value.detach()


class Models:
    """A run's networks and optimisers, and the generator's loss.

    Args:
        args: the resolved options.
        initial: the generator to start from, of `--init`.
        initial_d: the discriminator's weights to start from, of `--init-discriminator`.

    Raises:
        UserError: `initial` does not fit the options.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        initial: GeneratorNetwork | None = None,
        initial_d: dict[str, Tensor] | None = None,
    ):
        torch.manual_seed(args.seed)
        self.device = torch.device(args.device)
        self.precision: str = args.precision  # fp32, bf16 or fp16
        self.accumulate: int = args.accumulate
        self.grad_clip: float = args.grad_clip
        self.joint_batch: bool = args.joint_batch

        # Networks (by default model.Generator and model.Discriminator)
        generator = GENERATORS[args.generator](
            upscale=args.upscale, **options.architecture_options(args)
        )
        discriminator = DISCRIMINATORS[args.discriminator]()
        if initial is not None:
            generator_file.copy_weights(initial, generator, args.init)
        if initial_d is not None:
            discriminator.load_state_dict(initial_d)
        generator = generator.to(self.device, memory_format=torch.channels_last).train()
        discriminator = discriminator.to(self.device, memory_format=torch.channels_last).train()
        assert isinstance(generator, nn.Module) and isinstance(discriminator, nn.Module)
        self.generator = generator
        self.discriminator = discriminator
        self.ema = AveragedModel(self.generator) if args.ema else None
        self.ema_decay: float = args.ema
        self.shuffles: list[UpsampleBlock] = []
        if args.even_phases:
            for network in (self.generator, self.ema):
                modules = network.modules() if network else []
                self.shuffles += [m for m in modules if isinstance(m, UpsampleBlock)]
            if not self.shuffles:
                raise cli.UserError(
                    "--even-phases: this generator has no pixel shuffle; leave the option out"
                )
        self.frozen: list[nn.BatchNorm2d] = []  # in adversarial epochs
        if args.freeze_batch_norm:
            self.frozen = [m for m in generator.modules() if isinstance(m, nn.BatchNorm2d)]
            if not self.frozen:
                raise cli.UserError(
                    "--freeze-batch-norm: this generator has no batch normalisation; leave the "
                    "option out"
                )

        # Losses and optimisers
        self.pixel_loss = PIXEL_LOSSES[args.pixel_loss]
        self.loss: GeneratorLoss | None = None  # created when the adversarial epochs begin
        self.optimizer_g = new_adam(self.generator)
        self.optimizer_d = new_adam(self.discriminator)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

        # The forward passes: wrapped to average gradients over processes, and compiled
        size = None
        if args.compile:
            share_of_batch = math.ceil(args.batch_size / distributed.world_size())
            size = math.ceil(share_of_batch / args.accumulate)
        size_d = 2 * size if size and self.joint_batch else size
        self.wrapped_g = distributed.wrap(self.generator)
        self.wrapped_d = distributed.wrap(Logits(self.discriminator))
        self.generate = compile_for(self.wrapped_g, size)
        self.discriminate = compile_for(self.wrapped_d, size_d)
        # In G's step, D has no gradients to average
        self.discriminate_unwrapped = compile_for(self.discriminator.logits, size_d)

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint stores, by name; each has `state_dict` and `load_state_dict`."""
        state = {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "optimizer_g": self.optimizer_g,
            "optimizer_d": self.optimizer_d,
            "scaler": self.scaler,
        }
        if self.ema:
            state["ema"] = self.ema
        return state

    @property
    def output_generator(self) -> Any:
        """The generator that is validated and saved: the averaged one with `--ema`."""
        return self.ema.module if self.ema else self.generator

    def parts_of(self, lr: Tensor, hr: Tensor) -> Iterator[tuple[Tensor, Tensor, float]]:
        """Yield a batch in `--accumulate` parts, each with its share of the batch.

        Processes average their gradients once, in the last part's backward pass.
        """
        parts = list(zip(lr.chunk(self.accumulate), hr.chunk(self.accumulate), strict=True))
        for number, (lr_part, hr_part) in enumerate(parts, 1):
            with distributed.averaging(number == len(parts), self.wrapped_g, self.wrapped_d):
                yield lr_part, hr_part, len(lr_part) / len(lr)

    def judge(
        self, discriminate: Callable[[Tensor], Tensor], hr: Tensor, sr: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return D's logits for HR and SR (N, 3, H, W): of two batches, or of a joint one."""
        if not self.joint_batch:
            return discriminate(hr), discriminate(sr)
        logits = discriminate(torch.cat([hr, sr]))
        half = len(logits) // 2
        return logits[:half], logits[half:]

    def update(self, optimizer: torch.optim.Optimizer) -> None:
        """Apply a network's gradients, clipped to `--grad-clip`."""
        if self.grad_clip:
            self.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], self.grad_clip)
        self.scaler.step(optimizer)

    def even_out_phases(self, updates: int) -> None:
        """With `--even-phases`, even out the pixel shuffles, a little more by each update.

        Done at once, it would ruin a generator of `--init` that was trained without it.
        """
        # This share of what is left makes the differences shrink linearly to 0
        share = 1 / (1 + max(0, UPDATES_TO_EVEN_OUT - updates))
        for block in self.shuffles:
            block.even_out_phases(share)

    def update_average(self) -> None:
        """Move the averaged weights and batch statistics, if any, towards the generator's."""
        if self.ema is None:
            return
        # The first update copies; the counter is on the CPU
        weight = 1 - self.ema_decay if self.ema.n_averaged else 1.0
        move_towards(self.ema.module, self.generator, weight)
        self.ema.n_averaged += 1


def new_adam(network: nn.Module) -> torch.optim.Adam:
    """Return Adam with betas (0.9, 0.999); the learning rate is set before every update."""
    device = next(network.parameters()).device.type
    # The fused kernel updates all tensors at once. On CUDA, it also skips an fp16 update that
    # overflowed, which otherwise makes the CPU wait for the GPU; on MPS, it may ignore the scaler.
    fused = True if device in ("cpu", "cuda") else None
    adam = torch.optim.Adam(network.parameters(), betas=(0.9, 0.999), fused=fused)

    def keep_fused(_adam: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        groups = [{**group, "fused": fused} for group in state["param_groups"]]
        return {**state, "param_groups": groups}

    # A checkpoint also holds the choice of the device and version that wrote it. A CPU goes on with
    # that one, since its results are exact to the last bit.
    if device != "cpu":
        adam.register_load_state_dict_pre_hook(keep_fused)
    return adam


# --- an epoch -----------------------------------------------------------------------------------


def train_epoch(
    args: argparse.Namespace,
    models: Models,
    loader: DataLoader,
    progress: Progress,
    stop: cli.StopRequest,
) -> int | None:
    """Run the remaining updates of an epoch; return the signal that stops the run, or None."""
    set_switches(same_sizes=True)
    step = step_of(args, progress.epoch)
    batches = len(loader)
    sampler = sampler_of(loader)
    sampler.epoch = progress.epoch
    sampler.first_batch = progress.batch
    began = time.monotonic() - progress.seconds  # as if there had been no interruption
    shown = progress.seconds
    title = f"epoch {progress.epoch}/{args.pretrain_epochs + args.epochs}"
    if step is pixel_step:
        title += " pixel-only"
    # In fast steps on a GPU, asking the other processes takes time
    ask_every = 8 if distributed.world_size() > 1 and args.device == "cuda" else 1
    means: dict[str, float] = {}
    bar: tqdm[None] = cli.progress_bar(
        total=batches, initial=progress.batch, desc=title, unit="step"
    )
    with bar:
        for lr, hr in loader:
            # Update
            begin_update(args, models, progress, batches)
            lr = images.uint8_to_signed(move_to(models.device, lr))
            hr = images.uint8_to_signed(move_to(models.device, hr))
            values = step(models, lr, hr)
            models.even_out_phases((progress.epoch - 1) * batches + progress.batch + 1)
            models.update_average()
            progress.add(values, len(lr) * distributed.world_size())
            is_last = progress.batch == batches

            # Log
            progress.seconds = time.monotonic() - began
            if progress.seconds - shown > 0.5 or is_last:
                means = progress.means()  # waits for the device
                progress.seconds = time.monotonic() - began
                shown = progress.seconds
                speed = progress.samples / progress.seconds
                text = f"{run_log.terms_text(means)}  {speed:.1f} images/s"
                bar.set_postfix_str(text, refresh=False)
            bar.update()

            # Stop, if a process has a loss that is not finite or was asked to
            if is_last or progress.batch % ask_every == 0:
                progress.check_finite(means)
                stopped = distributed.agree(stop)
                if stopped:
                    return stopped
    progress.check_weights(generator=models.output_generator, discriminator=models.discriminator)
    return None


def step_of(
    args: argparse.Namespace, epoch: int
) -> Callable[[Models, Tensor, Tensor], dict[str, Tensor]]:
    """Return the training step of an epoch (counted from 1); pixel-only epochs come first."""
    return pixel_step if epoch <= args.pretrain_epochs else adversarial_step


def sampler_of(loader: DataLoader) -> EpochSampler:
    """Return the batches of an epoch behind a loader of `new_loader`."""
    assert isinstance(loader.batch_sampler, EpochSampler)
    return loader.batch_sampler


def begin_update(
    args: argparse.Namespace, models: Models, progress: Progress, batches: int
) -> None:
    """Set the learning rates, and draw what is random in the generator's loss."""
    # Warm-up and cosine start again in each phase
    if progress.epoch <= args.pretrain_epochs:
        peak_g = peak_d = args.pretrain_learning_rate
        first_epoch = 1
        epochs = args.pretrain_epochs
    else:
        peak_g = args.learning_rate
        peak_d = args.learning_rate_d
        first_epoch = args.pretrain_epochs + 1
        epochs = args.epochs
    step = (progress.epoch - first_epoch) * batches + progress.batch
    for optimizer, peak in ((models.optimizer_g, peak_g), (models.optimizer_d, peak_d)):
        optimizer.param_groups[0]["lr"] = learning_rate_at(
            step, epochs * batches, peak, args.lr_schedule, args.warmup_steps
        )

    # The draw depends on the update alone, so resuming is exact
    if models.loss:
        rng = random_stream(Stream.VIEW, args.seed, progress.epoch, progress.batch)
        models.loss.draw_view(rng)


def learning_rate_at(
    step: int, total_steps: int, peak: float, schedule: str, warmup_steps: int
) -> float:
    """Return the learning rate for update `step` (from 0) of a phase.

    After a linear warm-up, it is constant or follows half a cosine towards 0.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    fraction = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * fraction))


# --- a run --------------------------------------------------------------------------------------


def run(args: argparse.Namespace, initial: GeneratorNetwork | None) -> int:
    """Train to the last epoch, resuming if `--out` holds a run; return the exit status."""
    last_epoch = args.pretrain_epochs + args.epochs

    # Resume or start
    initial_d = None
    saved = None if args.dry_run else checkpoint.open_run(args.out)
    if saved:
        options.check_restart(args, saved)
        if saved["progress"]["epoch"] > last_epoch:
            epochs = cli.counted(len(saved["rows"]), "epoch")
            print(
                f"{args.out}: finished after {epochs}; nothing to do "
                "(pass a larger --epochs to continue)"
            )
            return 0
        initial = None
    else:
        options.check_start(args)
        if args.init_discriminator:
            initial_d = discriminator_file.load(args.init_discriminator, args.discriminator)
    options.check_folders(args)

    # Images and the perceptual network; the first process builds the caches and downloads
    with distributed.one_after_another():
        train_set, val_set = open_datasets(args)
        perceptual = load_perceptual(args)
        distances = None if args.dry_run else distance_networks(args, perceptual)
    distributed.barrier()  # building the networks has a shorter time limit than the data
    loader = new_loader(
        train_set,
        args.batch_size,
        args.workers,
        pin=args.device == "cuda",
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )

    # Networks
    models = Models(args, initial, initial_d)
    record = options.run_record(args, train_set, val_set, perceptual)
    if saved:
        progress, rows = checkpoint.restore(saved, models.state, record, models.device)
    else:
        progress = Progress()
        rows = []
    plan = options.plan_text(
        args,
        count_parameters(models.generator),
        count_parameters(models.discriminator),
        train_set,
        val_set,
        sampler_of(loader),
    )
    print(plan, flush=True)
    if args.dry_run:
        return dry_run(args, models, perceptual, loader, val_set)

    # Epochs: train, validate, save
    with (
        cli.StopRequest() as stop,
        workers_of(loader),
        run_log.RunLog(args.out, record, rows) as log,
    ):
        stopped = distributed.agree(stop)
        while progress.epoch <= last_epoch and not stopped:
            begin_phase(args, models, perceptual, progress)
            if progress.batch < len(loader):
                with log.timed("training"):
                    stopped = train_epoch(args, models, loader, progress, stop)
            scores = None
            if not stopped:
                with log.timed("validation"):
                    scores = validate_if_due(args, models, val_set, distances, progress, stop)
            stopped = distributed.agree(stop)
            with log.timed("checkpoints"):
                if scores is not None:
                    progress = finish_epoch(args, models, progress, scores, log, record)
                checkpoint.save_run(args.out, models.state, progress, log.rows, record)
            if scores is not None:
                print(run_log.epoch_text(log.rows, last_epoch), flush=True)
    if progress.epoch > last_epoch:
        stopped = None  # the signal came after the last epoch
    return log.report_end(progress, stopped)


def count_parameters(network: nn.Module) -> int:
    """Return how many parameters a network has."""
    return sum(tensor.numel() for tensor in network.parameters())


def open_datasets(
    args: argparse.Namespace,
) -> tuple[TrainDatasetFromFolder, ValDatasetFromFolder]:
    """Open the training and validation images; print which of them are left out."""

    def cache(folder: Path) -> Path | None:
        unused = args.no_cache or args.dry_run
        return None if unused else cache_folder_for(folder, args.cache, args.out)

    train_set = TrainDatasetFromFolder(
        args.train_dir,
        args.crop,
        args.upscale,
        lr_folder=args.train_lr_dir,
        degradation=DEGRADATIONS[args.degradation],
        crops_per_image=args.crops_per_image,
        seed=args.seed,
        cache_folder=cache(args.train_dir),
        skip_bad=args.skip_bad_images,
        headers_only=args.dry_run,
    )
    val_set = ValDatasetFromFolder(
        args.val_dir,
        args.upscale,
        lr_folder=args.val_lr_dir,
        degradation=DEGRADATIONS[args.degradation],
        count=args.val_images,
        cache_folder=cache(args.val_dir),
        skip_bad=args.skip_bad_images,
        headers_only=args.dry_run,
    )
    print(describe_left_out(train_set) + describe_left_out(val_set), end="")
    return train_set, val_set


def load_perceptual(args: argparse.Namespace) -> pretrained.Pretrained | None:
    """Load the weights of the perceptual network if the run needs it.

    Raises:
        UserError: they cannot be read or downloaded; it is better to know before the first epoch.
    """
    if not options.needs_perceptual(args):
        return None
    return pretrained.load(args.perceptual, args.perceptual_weights)


def distance_networks(
    args: argparse.Namespace, perceptual: pretrained.Pretrained | None
) -> nn.ModuleDict:
    """Return the networks with which validation measures distances, by CSV column.

    Distance needs SqueezeNet: the run's own, or else one that was downloaded earlier.
    """
    own = None
    if args.perceptual == "squeezenet" and args.perceptual_weights != "random":
        own = perceptual
        if own is None and args.perceptual_weights != "imagenet":  # named for a pixel-only run
            own = pretrained.load("squeezenet", args.perceptual_weights)
    return metrics.distance_networks(args.lpips, [own] if own else [])


def begin_phase(
    args: argparse.Namespace,
    models: Models,
    perceptual: pretrained.Pretrained | None,
    progress: Progress,
) -> None:
    """Reset G's optimiser and the best PSNR as a phase starts; prepare adversarial epochs."""
    if progress.batch == 0 and progress.epoch in (1, args.pretrain_epochs + 1):
        models.optimizer_g = new_adam(models.generator)
        progress.best_psnr = -math.inf
    if progress.epoch <= args.pretrain_epochs:
        return
    if models.loss is None:
        models.loss = new_loss(args, perceptual).to(models.device)
    for layer in models.frozen:
        layer.eval()  # its running statistics are used and kept


def new_loss(args: argparse.Namespace, perceptual: pretrained.Pretrained | None) -> GeneratorLoss:
    """Return the generator's loss."""
    network = None
    if perceptual:
        network = PERCEPTUAL_NETWORKS[perceptual.network](perceptual.state_dict)
        # PyTorch's stub lacks this overload
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return GeneratorLoss(
        pixel_weight=args.pixel_weight,
        adversarial_weight=args.adversarial_weight,
        perceptual_weight=args.perceptual_weight,
        tv_weight=args.tv_weight,
        grid_weight=args.grid_weight,
        consistency_weight=args.consistency_weight,
        network=network,
        perceptual_shift=args.perceptual_shift,
        perceptual_zoom=args.perceptual_zoom,
        sharpen=args.sharpen,
        pixel_loss=args.pixel_loss,
        adversarial_loss=args.adversarial_loss,
        upscale=args.upscale,
    )


def validate_if_due(
    args: argparse.Namespace,
    models: Models,
    val_set: ValDatasetFromFolder,
    distances: nn.ModuleDict | None,
    progress: Progress,
    stop: cli.StopRequest,
) -> dict[str, float] | None:
    """Validate every `--val-every` epochs and at the end of each phase.

    Returns:
        The scores by CSV column: {} if no validation is due, None if stopped.
    """
    ends_of_phases = (args.pretrain_epochs, args.pretrain_epochs + args.epochs)
    if progress.epoch % args.val_every and progress.epoch not in ends_of_phases:
        return {}
    began = time.monotonic()
    set_switches()
    distributed.share_buffers(models.output_generator)
    folder = args.out / "validation" / f"epoch_{progress.epoch:03d}"
    scores = validate(
        models.output_generator, val_set, args.precision, folder, args.val_triplets, stop, distances
    )
    progress.validation_seconds = time.monotonic() - began
    return scores


def finish_epoch(
    args: argparse.Namespace,
    models: Models,
    progress: Progress,
    scores: dict[str, float],
    log: run_log.RunLog,
    record: dict[str, Any],
) -> Progress:
    """Log a finished epoch and write its network files; return the next epoch's progress."""
    epoch = progress.epoch
    log.add(progress, models.optimizer_g.param_groups[0]["lr"], scores)

    # Which files are due
    names = ["last"]
    best_psnr = progress.best_psnr
    if scores.get("PSNR", -math.inf) > best_psnr:
        best_psnr = scores["PSNR"]
        names.append("best")
    if epoch == args.pretrain_epochs:
        names.append("pretrained")
    if args.save_every and epoch % args.save_every == 0:
        names.append(f"epoch_{epoch:03d}")

    if distributed.rank() == 0:
        for name in names:
            generator_file.save(
                args.out / "checkpoints" / f"generator_{name}.pth",
                models.output_generator,
                epoch=epoch,
                validation_psnr_db=scores.get("PSNR"),
                degradation=record["degradation"]["version"],
            )
        if epoch > args.pretrain_epochs:
            discriminator_file.save(
                args.out / "checkpoints" / "discriminator_last.pth",
                args.discriminator,
                models.discriminator,
                epoch=epoch,
            )
    return Progress(epoch=epoch + 1, best_psnr=best_psnr)


def dry_run(
    args: argparse.Namespace,
    models: Models,
    perceptual: pretrained.Pretrained | None,
    loader: DataLoader,
    val_set: ValDatasetFromFolder,
) -> int:
    """Run one step of each phase and validate one image; print shapes and values, write nothing."""
    lr, hr = next(iter(loader))
    lr = images.uint8_to_signed(move_to(models.device, lr))
    hr = images.uint8_to_signed(move_to(models.device, hr))
    with torch.no_grad(), autocast(models.device, models.precision):
        sr = models.generator(lr[:1])
    sr_shape = (len(lr), *sr.shape[1:])
    print(f"batch: LR {tuple(lr.shape)}, HR {tuple(hr.shape)}, SR {sr_shape}")
    first_epochs = {1, args.pretrain_epochs + 1} if args.epochs else {1}
    for epoch in sorted(first_epochs):
        begin_phase(args, models, perceptual, Progress(epoch))
        begin_update(args, models, Progress(epoch), len(loader))
        values = step_of(args, epoch)(models, lr, hr)
        print(f"step of epoch {epoch}:", {name: value.item() for name, value in values.items()})
    val_set.usable = val_set.usable[:1]
    scores = validate(models.output_generator, val_set, args.precision, None, 0, cli.StopRequest())
    print(f"validation image: {scores}")
    print("dry run: nothing was written")
    return 0


def load_initial(args: argparse.Namespace) -> GeneratorNetwork | None:
    """Load the generator of `--init`; a run that resumes no longer needs the file."""
    if args.init is None or not args.init.exists():
        return None
    try:
        return generator_file.load(args.init)
    except cli.UserError:
        if (options.out_folder(args) / "checkpoints").exists():
            return None
        raise


def main(args: argparse.Namespace) -> int:
    """Start the run in `--out`, or resume it."""
    initial = load_initial(args)
    options.resolve(args, initial)
    with distributed.processes(torch.device(args.device)), contextlib.ExitStack() as held:
        if distributed.rank() == 0 and not args.dry_run:
            held.enter_context(files.locked_folder(args.out))
        return run(args, initial)


if __name__ == "__main__":
    advice = (
        "use --accumulate 2, or reduce --batch-size, --crop or --blocks, each with another --out "
        "(pixel-only epochs are kept by --init OUT/checkpoints/generator_pretrained.pth), or try "
        "--precision bf16"
    )
    cli.run_script(main, get_args_parser(__doc__), memory_advice=advice)
