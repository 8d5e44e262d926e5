"""Train SRGAN (Ledig et al., 2017) by updating a discriminator and a generator in turn.

python train.py --upscale 4 --crop 88
"""

import argparse
import contextlib
import math
import time
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from dataloader import ValDatasetFromFolder, new_loader, open_datasets, workers_of
from generator_loss_functions import PERCEPTUAL_NETWORKS, PIXEL_LOSSES, GeneratorLoss
from model import Logits, move_towards
from networks import DISCRIMINATORS, GENERATORS
from options import check_restart, get_args_parser, resolve
from utils import checkpoint, cli, distributed, files, generator_file, images, pretrained, run_log
from utils.checkpoint import Progress
from utils.device import autocast, compile_for, move_to, set_switches
from validation import open_networks, validate, validate_epoch

# --- one update ---------------------------------------------------------------------------------


class Models:
    """A run's networks, optimisers and generator loss; `state` is what a checkpoint stores of them."""

    def __init__(self, args: argparse.Namespace, init: Path | None = None):
        torch.manual_seed(args.seed)
        self.device, self.precision = torch.device(args.device), args.precision
        self.generator = GENERATORS[args.generator](args.upscale, args.blocks)
        self.discriminator = DISCRIMINATORS[args.discriminator]()
        if init:
            generator_file.start_from(self.generator, init)
        for network in (self.generator, self.discriminator):
            network.to(device=self.device, memory_format=torch.channels_last).train()
        self.ema, self.ema_decay = AveragedModel(self.generator) if args.ema else None, args.ema
        self.optimizer_g, self.optimizer_d = (
            new_adam(network) for network in (self.generator, self.discriminator)
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.accumulate, self.grad_clip, self.pixel_loss = (
            args.accumulate,
            args.grad_clip,
            PIXEL_LOSSES[args.pixel_loss],
        )
        self.loss: GeneratorLoss | None = None  # created when the adversarial epochs begin
        size = (
            -(-args.batch_size // distributed.world_size() // args.accumulate)
            if args.compile
            else None
        )
        self.generate = compile_for(distributed.wrap(self.generator), size)
        self.discriminate = compile_for(distributed.wrap(Logits(self.discriminator)), size)
        self.discriminate_frozen = compile_for(
            self.discriminator.logits, size
        )  # not wrapped: D has no gradients here

    @property
    def state(self) -> dict[str, Any]:
        """The objects that a checkpoint stores, by name; each has `state_dict` and `load_state_dict`."""
        names = ("generator", "discriminator", "optimizer_g", "optimizer_d", "ema", "scaler")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    @property
    def validated(self) -> nn.Module:
        """The generator that is validated and saved: the averaged one with `--ema`."""
        return self.ema.module if self.ema else self.generator

    def parts_of(self, lr: Tensor, hr: Tensor) -> list[tuple[Tensor, Tensor, float]]:
        """Split a batch into `--accumulate` parts, each with its fraction of the batch."""
        pairs = zip(lr.chunk(self.accumulate), hr.chunk(self.accumulate), strict=True)
        return [(lr_part, hr_part, len(lr_part) / len(lr)) for lr_part, hr_part in pairs]

    def update(self, optimizer: torch.optim.Optimizer) -> None:
        """Apply a network's gradients, clipped to `--grad-clip`."""
        if self.grad_clip:
            self.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], self.grad_clip)
        self.scaler.step(optimizer)

    def update_average(self) -> None:
        """Move the averaged weights and batch statistics towards the generator's."""
        weight = (
            1 - self.ema_decay if self.ema.n_averaged else 1.0
        )  # the first update copies; the counter is on the CPU
        move_towards(self.ema.module, self.generator, weight)
        self.ema.n_averaged += 1


def new_adam(network: nn.Module) -> torch.optim.Adam:
    """Return Adam with betas (0.9, 0.999); the learning rate is set before every update."""
    return torch.optim.Adam(network.parameters(), betas=(0.9, 0.999))


def adversarial_step(models: Models, lr: Tensor, hr: Tensor) -> dict[str, Tensor]:
    """Update D and then G on a batch in [-1, 1]; return losses and scores by CSV column, on the device."""
    scaler, parts, values = models.scaler, models.parts_of(lr, hr), {}

    # (1) Update D: minimise BCE(D(x), 1) + BCE(D(G(z)), 0)
    models.optimizer_d.zero_grad(set_to_none=True)
    for part_lr, part_hr, share in parts:
        with autocast(models.device, models.precision):
            with torch.set_grad_enabled(
                len(parts) == 1
            ):  # otherwise G's step computes each part again
                fake = models.generate(part_lr)
            real_logits, fake_logits = (
                models.discriminate(part_hr),
                models.discriminate(fake.detach()),
            )
        loss_d, scores = models.loss.adversarial.discriminator_loss(real_logits, fake_logits)
        scaler.scale(share * loss_d).backward()
        add_values(values, {"Loss_D": loss_d, **scores}, share)
    models.update(models.optimizer_d)

    # (2) Update G: minimise pixel + 0.001 BCE(D(G(z)), 1) + 0.006 perceptual + 2e-8 TV (the weights are options)
    models.optimizer_g.zero_grad(set_to_none=True)
    models.discriminator.requires_grad_(False)
    for part_lr, part_hr, share in parts:
        with autocast(models.device, models.precision):
            if len(parts) > 1:  # computed again, to hold only one part's graph at a time
                fake = models.generate(part_lr)
            real_logits = (
                models.discriminate_frozen(part_hr) if models.loss.adversarial.needs_real else None
            )
            sr, target = images.signed_to_unit(fake.float()), images.signed_to_unit(part_hr)
            loss_g, terms = models.loss(sr, target, models.discriminate_frozen(fake), real_logits)
        scaler.scale(share * loss_g).backward()
        add_values(values, {"Loss_G": loss_g, **terms}, share)
    models.discriminator.requires_grad_(True)
    models.update(models.optimizer_g)
    scaler.update()
    return values


def pixel_step(models: Models, lr: Tensor, hr: Tensor) -> dict[str, Tensor]:
    """Update G on the pixel loss alone (the paper's SRResNet); return the loss by CSV column, on the device."""
    values: dict[str, Tensor] = {}
    models.optimizer_g.zero_grad(set_to_none=True)
    for part_lr, part_hr, share in models.parts_of(lr, hr):
        with autocast(models.device, models.precision):
            fake = models.generate(part_lr)
        loss = models.pixel_loss(
            images.signed_to_unit(fake.float()), images.signed_to_unit(part_hr)
        )
        models.scaler.scale(share * loss).backward()
        add_values(values, {"Loss_G": loss, "Loss_Pixel": loss}, share)
    models.update(models.optimizer_g)
    models.scaler.update()
    return values


def add_values(values: dict[str, Tensor], more: dict[str, Tensor], share: float) -> None:
    """Add the losses and scores of one part of a batch, weighted by its share."""
    for name, value in more.items():
        values[name] = values.get(name, 0) + share * value.detach()


# --- an epoch -----------------------------------------------------------------------------------


def step_of(
    args: argparse.Namespace, epoch: int
) -> Callable[[Models, Tensor, Tensor], dict[str, Tensor]]:
    """Return the training step for an epoch (counted from 1); the pixel-only epochs come first."""
    return pixel_step if epoch <= args.pretrain_epochs else adversarial_step


def learning_rate_at(
    step: int, total_steps: int, peak: float, schedule: str, warmup_steps: int
) -> float:
    """Return the rate for update `step` (from 0) of a phase: linear warm-up, then constant or half a cosine towards 0."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    return (
        peak
        * 0.5
        * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, total_steps - warmup_steps)))
    )


def begin_update(
    args: argparse.Namespace, models: Models, progress: Progress, batches: int
) -> None:
    """Set the learning rates, whose warm-up and cosine start again in each phase, and draw what is random in the loss."""
    pixel_only = progress.epoch <= args.pretrain_epochs
    first, epochs = (
        (1, args.pretrain_epochs) if pixel_only else (args.pretrain_epochs + 1, args.epochs)
    )
    step, total = (progress.epoch - first) * batches + progress.batch, epochs * batches
    peak_g, peak_d = (
        (args.pretrain_learning_rate,) * 2
        if pixel_only
        else (args.learning_rate, args.learning_rate_d)
    )
    for optimizer, peak in ((models.optimizer_g, peak_g), (models.optimizer_d, peak_d)):
        optimizer.param_groups[0]["lr"] = learning_rate_at(
            step, total, peak, args.lr_schedule, args.warmup_steps
        )
    if models.loss:
        models.loss.draw_view(
            np.random.default_rng([args.seed, progress.epoch, progress.batch, 2])
        )  # so resume is exact


def train_epoch(
    args, models: Models, loader: DataLoader, progress: Progress, stop: cli.StopRequest
) -> int | None:
    """Run the remaining updates of an epoch; return the signal that stops the run, or None."""
    set_switches(same_sizes=True)
    step, batches = step_of(args, progress.epoch), len(loader)
    loader.batch_sampler.epoch, loader.batch_sampler.first_batch = progress.epoch, progress.batch
    stop_every = (
        8 if distributed.world_size() > 1 and args.device == "cuda" else 1
    )  # agreeing costs a fast step's time
    began, shown, before = time.monotonic(), time.monotonic(), progress.seconds
    title = f"epoch {progress.epoch}/{args.pretrain_epochs + args.epochs}{' pixel-only' if step is pixel_step else ''}"
    with cli.progress_bar(total=batches, initial=progress.batch, desc=title, unit="step") as bar:
        for lr, hr in loader:
            begin_update(args, models, progress, batches)
            lr, hr = (images.uint8_to_signed(move_to(models.device, batch)) for batch in (lr, hr))
            progress.add(step(models, lr, hr), len(lr) * distributed.world_size())
            if models.ema:
                models.update_average()
            if time.monotonic() - shown > 0.5 or progress.batch == batches:
                shown, means = time.monotonic(), progress.means()  # waits for the device
                speed = progress.samples / (before + time.monotonic() - began)
                bar.set_postfix_str(
                    f"{run_log.describe_terms(means)}  {speed:.1f} images/s", refresh=False
                )
            progress.seconds = before + time.monotonic() - began
            bar.update()
            if (progress.batch % stop_every == 0 or progress.batch == batches) and (
                stopped := distributed.agree(stop)
            ):
                return stopped
    progress.check_weights({"generator": models.validated, "discriminator": models.discriminator})
    return None


# --- a run --------------------------------------------------------------------------------------


def run(args: argparse.Namespace, out: Path) -> int:
    """Train to the last epoch, resuming if `out` holds a run; return the exit status."""
    # Start or resume the run
    saved, last_epoch = (
        None if args.dry_run else checkpoint.open_run(out),
        args.pretrain_epochs + args.epochs,
    )
    if saved:
        check_restart(args, saved)
        if saved["progress"]["epoch"] > last_epoch:
            print(
                f"{out}: finished after {len(saved['rows'])} epochs; nothing to do (pass a larger --epochs to continue)"
            )
            return 0

    # Images
    with distributed.one_after_another():  # the first process builds the caches and downloads
        train_set, val_set = open_datasets(args)
        facts = run_log.describe_run(args, train_set, val_set)
        networks = None if args.dry_run else open_networks(args)
    loader = new_loader(
        train_set,
        args.batch_size,
        args.seed,
        args.workers,
        args.device == "cuda",
        *distributed.place(),
    )

    # Networks
    models = Models(args, None if saved else args.init)
    progress, rows = (
        checkpoint.restore(saved, models.state, facts, models.device) if saved else (Progress(), [])
    )
    print(
        run_log.describe_plan(
            args, models.generator, models.discriminator, train_set, val_set, loader
        ),
        flush=True,
    )
    if args.dry_run:
        return dry_run(args, models, loader, val_set)

    # Epochs
    with cli.StopRequest() as stop, workers_of(loader), run_log.RunLog(out, facts, rows) as log:
        stopped = distributed.agree(stop)
        while progress.epoch <= last_epoch and not stopped:
            begin_phase(args, models, progress)
            if progress.batch < len(loader):
                stopped = train_epoch(args, models, loader, progress, stop)
            scores = (
                None
                if stopped
                else validate_epoch(args, models.validated, val_set, progress, stop, networks)
            )
            stopped = distributed.agree(stop)
            if scores is not None:
                progress = finish_epoch(args, models, progress, scores, log)
            checkpoint.save_run(out, models.state, progress, rows, facts)
            if scores is not None:
                print(run_log.describe_epoch(rows, last_epoch), flush=True)
    return log.close(progress, stopped if progress.epoch <= last_epoch else None)


def begin_phase(args: argparse.Namespace, models: Models, progress: Progress) -> None:
    """At the start of a phase, reset G's optimiser and the best PSNR; create the generator's loss when first needed."""
    if progress.batch == 0 and progress.epoch in (1, args.pretrain_epochs + 1):
        models.optimizer_g, progress.best_psnr = new_adam(models.generator), -math.inf
    if progress.epoch > args.pretrain_epochs and models.loss is None:
        models.loss = new_loss(args, models.device)


def finish_epoch(
    args, models: Models, progress: Progress, scores: dict[str, float], log
) -> Progress:
    """Log a finished epoch and write its generator files; return the initial progress of the next epoch."""
    log.add(progress, models.optimizer_g.param_groups[0]["lr"], scores)
    best = scores.get("PSNR", -math.inf) > progress.best_psnr
    kept = {"last": True, "best": best, "pretrained": progress.epoch == args.pretrain_epochs}
    kept[f"epoch_{progress.epoch:03d}"] = (
        bool(args.save_every) and progress.epoch % args.save_every == 0
    )
    about = {
        "epoch": progress.epoch,
        "validation_psnr_db": scores.get("PSNR"),
        "degradation": log.recipe,
    }
    for name in [name for name, due in kept.items() if due and distributed.rank() == 0]:
        generator_file.save(
            args.out / "checkpoints" / f"generator_{name}.pth", models.validated, **about
        )
    return Progress(
        epoch=progress.epoch + 1, best_psnr=scores["PSNR"] if best else progress.best_psnr
    )


def dry_run(
    args: argparse.Namespace, models: Models, loader: DataLoader, val_set: ValDatasetFromFolder
) -> int:
    """Run one step of each phase and validate one image; print shapes and values, and write nothing."""
    lr, hr = (images.uint8_to_signed(batch.to(models.device)) for batch in next(iter(loader)))
    print(
        f"batch: LR {tuple(lr.shape)}, HR {tuple(hr.shape)}, SR {tuple(models.generate(lr).shape)}"
    )
    for epoch in sorted({1, args.pretrain_epochs + 1} if args.epochs else {1}):
        begin_phase(args, models, Progress(epoch))
        begin_update(args, models, Progress(epoch), len(loader))
        values = step_of(args, epoch)(models, lr, hr)
        print(f"step of epoch {epoch}:", {name: value.item() for name, value in values.items()})
    val_set.usable = val_set.usable[:1]
    scores = validate(models.validated, val_set, args.precision, None, 0, cli.StopRequest())
    print(f"validation image: {scores}\ndry run: nothing was written")
    return 0


def new_loss(args: argparse.Namespace, device: torch.device) -> GeneratorLoss:
    """Return the generator's loss; load the perceptual network if its weight is not 0."""
    network = None
    if args.perceptual_weight > 0:
        network = PERCEPTUAL_NETWORKS[args.perceptual](
            pretrained.state_dict(args.perceptual, args.perceptual_weights)
        )
    options = {
        name: value
        for name, value in vars(args).items()
        if name in signature(GeneratorLoss).parameters
    }
    return GeneratorLoss(network=network, **options).to(
        device=device, memory_format=torch.channels_last
    )


def main(args: argparse.Namespace) -> int:
    """Start the run in `--out`, or resume it."""
    resolve(args)
    with distributed.processes(torch.device(args.device)), contextlib.ExitStack() as held:
        if distributed.rank() == 0 and not args.dry_run:
            held.enter_context(files.lock(files.make_folder(args.out) / ".lock"))
        return run(args, args.out)


if __name__ == "__main__":
    advice = "reduce --batch-size, --crop or --blocks (with another --out), or try --precision bf16"
    cli.run_script(main, get_args_parser(__doc__), memory_advice=advice)
