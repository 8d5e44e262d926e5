"""Train SRGAN (Ledig et al., 2017): the alternating updates of a discriminator and a generator.

python train.py --upscale 4 --crop 88
"""

import argparse
import contextlib
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

import metrics
from dataloader import TrainDatasetFromFolder, ValDatasetFromFolder, describe_left_out, new_loader, workers_of
from generator_loss_functions import PIXEL_LOSSES, GeneratorLoss, VGG16Features
from model import Logits
from utils import checkpoint, cli, distributed, files, images, run_log
from utils.checkpoint import GENERATORS
from utils.device import autocast
from utils.options import DISCRIMINATORS, FREE_OPTIONS, get_args_parser, needs_vgg, plain_options, resolve
from utils.pixel_cache import cache_folder_for
from utils.pretrained import vgg16_state_dict
from utils.run_log import PIXEL_TERMS, TERMS, Progress
from validation import validate

# --- one update ---------------------------------------------------------------------------------------------------


class Models:
    """The networks of a run, their optimisers and the generator's loss; what `state` names is what a checkpoint holds."""

    def __init__(self, args: argparse.Namespace, init: Path | None = None):
        torch.manual_seed(args.seed)
        self.device, self.precision = torch.device(args.device), args.precision
        self.generator, self.discriminator = (
            GENERATORS[args.generator](args.upscale, args.blocks),
            DISCRIMINATORS[args.discriminator](),
        )
        if init:
            self.generator = checkpoint.load_generator(init, expected=self.generator.architecture)
        for network in (self.generator, self.discriminator):
            network.to(device=self.device, memory_format=torch.channels_last).train()
        self.ema = (
            AveragedModel(self.generator, multi_avg_fn=get_ema_multi_avg_fn(args.ema), use_buffers=True) if args.ema else None
        )
        self.optimizer_g, self.optimizer_d = (new_adam(network) for network in (self.generator, self.discriminator))
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.pixel_loss = PIXEL_LOSSES[args.pixel_loss]
        self.loss: GeneratorLoss | None = None  # made when the adversarial epochs are due
        compiled = torch.compile if args.compile else lambda function: function
        self.generate = compiled(distributed.wrap(self.generator))
        self.discriminate = compiled(distributed.wrap(Logits(self.discriminator)))
        self.discriminate_frozen = compiled(self.discriminator.logits)  # makes no gradients to average

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint holds, by name; each has `state_dict` and `load_state_dict`."""
        names = ("generator", "discriminator", "optimizer_g", "optimizer_d", "ema", "scaler")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    @property
    def validated(self) -> nn.Module:
        """The generator that is validated and saved: the averaged one, where there is one."""
        return self.ema.module if self.ema else self.generator


def new_adam(network: nn.Module) -> torch.optim.Adam:
    """Return Adam with the seed's betas; the rate is set at every step."""
    return torch.optim.Adam(network.parameters(), betas=(0.9, 0.999))


def adversarial_step(models: Models, lr: Tensor, hr: Tensor) -> Tensor:
    """Update D and then G on a batch in [-1, 1]; return the values of `TERMS`, on the device."""
    scaler = models.scaler
    with autocast(models.device, models.precision):
        fake = models.generate(lr)

    # (1) Update D: minimise BCE(D(x), 1) + BCE(D(G(z)), 0)
    models.optimizer_d.zero_grad(set_to_none=True)
    with autocast(models.device, models.precision):
        real_logits, fake_logits = models.discriminate(hr), models.discriminate(fake.detach())
    real_logits, fake_logits = real_logits.float(), fake_logits.float()
    loss_d = F.binary_cross_entropy_with_logits(real_logits, torch.ones_like(real_logits))
    loss_d = loss_d + F.binary_cross_entropy_with_logits(fake_logits, torch.zeros_like(fake_logits))
    scaler.scale(loss_d).backward()
    scaler.step(models.optimizer_d)

    # (2) Update G: minimise pixel + 0.001 BCE(D(G(z)), 1) + 0.006 VGG + 2e-8 TV
    models.optimizer_g.zero_grad(set_to_none=True)
    models.discriminator.requires_grad_(False)
    with autocast(models.device, models.precision):
        sr, target = images.signed_to_unit(fake.float()), images.signed_to_unit(hr)
        loss_g, terms = models.loss(models.discriminate_frozen(fake), sr, target)
    scaler.scale(loss_g).backward()
    models.discriminator.requires_grad_(True)
    scaler.step(models.optimizer_g)
    scaler.update()

    scores = [torch.sigmoid(logits.detach()).mean() for logits in (real_logits, fake_logits)]
    return torch.stack([loss_d.detach(), loss_g.detach(), *scores, *(term.detach() for term in terms.values())])


def pixel_step(models: Models, lr: Tensor, hr: Tensor) -> Tensor:
    """Update G on the pixel loss alone (the paper's SRResNet); return the values of `PIXEL_TERMS`, on the device."""
    models.optimizer_g.zero_grad(set_to_none=True)
    with autocast(models.device, models.precision):
        fake = models.generate(lr)
    loss = models.pixel_loss(images.signed_to_unit(fake.float()), images.signed_to_unit(hr))
    models.scaler.scale(loss).backward()
    models.scaler.step(models.optimizer_g)
    models.scaler.update()
    return loss.detach().repeat(len(PIXEL_TERMS))


def learning_rate_at(step: int, total_steps: int, peak: float, schedule: str, warmup_steps: int) -> float:
    """Return the rate of update `step` (from 0) of a phase: a linear rise, then constant or half a cosine towards 0."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, total_steps - warmup_steps)))


# --- an epoch -----------------------------------------------------------------------------------------------------


def terms_of(args: argparse.Namespace, epoch: int) -> list[str]:
    """Return the names of the losses and scores that an epoch has."""
    return PIXEL_TERMS if epoch <= args.pretrain_epochs else TERMS


def train_epoch(args, models: Models, loader: DataLoader, progress: Progress, stop: cli.StopRequest) -> int | None:
    """Make the updates of an epoch that are not made yet; return the signal that stops the run, None where there is none.

    Raises:
        RunError: a loss is not finite.
    """
    pixel_only = progress.epoch <= args.pretrain_epochs
    step, terms = pixel_step if pixel_only else adversarial_step, terms_of(args, progress.epoch)
    first, epochs = (1, args.pretrain_epochs) if pixel_only else (args.pretrain_epochs + 1, args.epochs)
    peak = args.pretrain_learning_rate if pixel_only else args.learning_rate
    batches = len(loader)
    if progress.sums is None:
        progress.sums = torch.zeros(len(terms))
    progress.sums = progress.sums.to(models.device)
    loader.batch_sampler.epoch, loader.batch_sampler.first_batch = progress.epoch, progress.batch
    stop_every = 8 if distributed.world_size() > 1 and args.device == "cuda" else 1  # to agree, a GPU's process has to wait
    began, shown, before = time.monotonic(), time.monotonic(), progress.seconds
    title = f"epoch {progress.epoch}/{args.pretrain_epochs + args.epochs}{' pixel-only' if pixel_only else ''}"
    with cli.progress_bar(total=batches, initial=progress.batch, desc=title, unit="step") as bar:
        for lr, hr in loader:
            rate = learning_rate_at(
                (progress.epoch - first) * batches + progress.batch, epochs * batches, peak, args.lr_schedule, args.warmup_steps
            )
            for optimizer in (models.optimizer_g, models.optimizer_d):
                optimizer.param_groups[0]["lr"] = rate
            lr, hr = (images.uint8_to_signed(batch.to(models.device, non_blocking=True)) for batch in (lr, hr))
            samples = len(lr) * distributed.world_size()
            progress.sums += step(models, lr, hr) * samples
            if models.ema:
                models.ema.update_parameters(models.generator)
            progress.batch += 1
            progress.samples += samples
            progress.seconds = before + time.monotonic() - began
            if time.monotonic() - shown > 0.5 or progress.batch == batches:
                shown = time.monotonic()
                means = progress.means(terms)  # waits for the device
                speed = progress.samples / progress.seconds
                bar.set_postfix_str(f"{run_log.describe_terms(means)}  {speed:.1f} images/s", refresh=False)
            bar.update()
            if progress.batch % stop_every == 0 or progress.batch == batches:
                stopped = distributed.agree(stop)
                if stopped:
                    return stopped
    return None


# --- a run --------------------------------------------------------------------------------------------------------


def run(args: argparse.Namespace, out: Path) -> int:
    """Train from where `out` stands to the last epoch; return the exit status."""
    folder, total_epochs, options = out / "checkpoints", args.pretrain_epochs + args.epochs, plain_options(args)
    leader = distributed.rank() == 0  # the one process that writes
    if leader:
        files.remove_leftovers(out, folder, *(out / "validation").glob("epoch_*"))
    saved, problem = checkpoint.load_checkpoint(folder)
    place = saved and (saved["progress"]["epoch"], saved["progress"]["batch"])
    if set(distributed.gather(place)) != {place}:
        raise cli.UserError(f"--out {out}: is not the same folder for all processes; put it where all machines see it")
    if problem and leader:
        print(f"warning: {problem}; going on from previous.pth", file=sys.stderr)
    if saved:
        begun_with = plain_options(get_args_parser().parse_args([])) | saved["options"]  # it may be from before an option was
        checkpoint.check_same_options(begun_with, options, FREE_OPTIONS)
        if saved["progress"]["epoch"] > total_epochs:
            print(f"{out}: finished after {len(saved['rows'])} epochs; nothing to do (a larger --epochs goes on)")
            return 0
    with distributed.one_after_another():  # the first builds the caches and downloads
        train_set, val_set = open_datasets(args)
        if needs_vgg(args):
            vgg16_state_dict(args.vgg_weights)
    seen = {"training": train_set.store.fingerprint(), "validation": val_set.store.fingerprint()}
    for what in seen if saved else ():
        checkpoint.check_same_images(what, saved["images"][what], seen[what])
    models, progress, rows = Models(args, None if saved else args.init), Progress(), []
    machine = {name: getattr(args, name) for name in ("device", "precision", "compile")}
    machine |= {"threads": torch.get_num_threads(), "processes": distributed.world_size()}
    if saved:
        for name, part in models.state.items():
            if saved["models"].get(name):  # the scaler of a run that was not fp16 is empty
                part.load_state_dict(saved["models"][name])
        progress, rows = Progress(**saved["progress"]), saved["rows"]
        if progress.sums is not None:  # one row for every process
            same = len(progress.sums) == distributed.world_size()
            progress.sums = progress.sums[distributed.rank()] if same else progress.sums.mean(0)
        print(f"{out}: going on with epoch {progress.epoch}, step {progress.batch + 1}")
        if saved["machine"] != machine:
            print(f"bit-exactness with the earlier part ends here: {saved['machine']} became {machine}")
    share = {"rank": distributed.rank(), "world_size": distributed.world_size()}
    loader = new_loader(train_set, args.batch_size, args.seed, args.workers, pin=args.device == "cuda", **share)
    counts = [len(train_set.usable), len(val_set)]
    print(run_log.describe_plan(args, [models.generator, models.discriminator], counts, loader), flush=True)
    board = None
    if leader:
        for name in ("checkpoints", "validation"):
            files.make_folder(out / name)
        if problem:
            (folder / checkpoint.LAST).unlink()  # a damaged file must not take the place of previous.pth at the next save
        board = run_log.TensorBoard(out / "tensorboard", len(rows)) if args.tensorboard else None
        run_log.write_config(out / "config.json", options, models.device)
        run_log.write_statistics(out / "statistics.csv", rows)

    def save() -> None:
        sums = None if progress.sums is None else torch.stack(distributed.gather(progress.sums.cpu()))
        if leader:
            state = {"options": options, "machine": machine, "images": seen, "rows": rows}
            state["models"] = {name: part.state_dict() for name, part in models.state.items()}
            state["progress"] = {**vars(progress), "sums": sums}
            checkpoint.save_checkpoint(folder, state)
        distributed.barrier()

    try:
        lpips = metrics.LPIPS(download=False).to(models.device)
    except ValueError as error:
        lpips = None
        print(error)
    bicubic_scores: dict[int, tuple[float, float]] = {}
    with cli.StopRequest() as stop, workers_of(loader):
        stopped = distributed.agree(stop)
        while progress.epoch <= total_epochs and not stopped:
            epoch = progress.epoch
            if progress.batch == 0 and epoch in (1, args.pretrain_epochs + 1):  # a phase begins
                models.optimizer_g, progress.best_psnr = new_adam(models.generator), -math.inf
            if epoch > args.pretrain_epochs and models.loss is None:
                models.loss = new_loss(args, models.device)
            if progress.batch < len(loader):
                stopped = train_epoch(args, models, loader, progress, stop)
                progress.check_weights({"generator": models.validated, "discriminator": models.discriminator})
            due = epoch % args.val_every == 0 or epoch in (args.pretrain_epochs, total_epochs)
            scores, began = {}, time.monotonic()
            triplets = out / "validation" / f"epoch_{epoch:03d}"
            if due and not stopped:
                distributed.share_buffers(models.validated)
                scores = validate(
                    models.validated, val_set, args.precision, bicubic_scores, triplets, args.val_triplets, stop, lpips
                )
                stopped = distributed.agree(stop)
            if stopped and not scores:  # the epoch is not whole
                break
            progress.sums = distributed.mean(progress.sums)
            missing = ("Loss_Perceptual",) if args.perceptual_weight == 0 else ()
            rate = models.optimizer_g.param_groups[0]["lr"]
            rows.append(run_log.new_row(progress, terms_of(args, epoch), missing, rate, time.monotonic() - began, scores))
            print(run_log.describe_epoch(rows, total_epochs), flush=True)
            best = scores.get("PSNR", -math.inf) > progress.best_psnr
            kept = {"last": True, "best": best, "pretrained": epoch == args.pretrain_epochs}
            for name in [name for name, due in kept.items() if due and leader]:
                facts = {"epoch": epoch, "validation_psnr_db": scores.get("PSNR")}
                checkpoint.save_generator(folder / f"generator_{name}.pth", models.validated, **facts)
            progress = Progress(epoch=epoch + 1, best_psnr=scores["PSNR"] if best else progress.best_psnr)
            if leader:
                run_log.write_statistics(out / "statistics.csv", rows)
            save()
            if board:
                board.write(rows[-1], triplets)
        if progress.batch:
            save()
    if board:
        board.close()
    if stopped:
        if leader:
            done = f"stopped in epoch {progress.epoch} after step {progress.batch}"
            print(f"{done}; run the same command to go on", file=sys.stderr)
        return 128 + stopped
    print(f"finished: {run_log.describe_result(rows)}; all of it is in {out}")
    return 0


# --- what a run is made of ----------------------------------------------------------------------------------------


def open_datasets(args: argparse.Namespace) -> tuple[TrainDatasetFromFolder, ValDatasetFromFolder]:
    """Open both folders, through their caches unless told not to; name the images that are left out."""
    for folder, option in ((args.train_dir, "--train-dir"), (args.val_dir, "--val-dir")):
        if not folder.is_dir():
            raise cli.UserError(
                f"{folder}: no such folder; get DIV2K by `python prepare_data.py div2k`, or name yours by {option}"
            )

    def shared(folder: Path, lr_folder: Path | None) -> dict[str, Any]:
        cache = None if args.no_cache or args.dry_run else cache_folder_for(folder, args.cache, args.out)
        return {"upscale": args.upscale, "lr_folder": lr_folder, "cache_folder": cache, "skip_bad": args.skip_bad_images}

    options = {"crops_per_image": args.crops_per_image, "seed": args.seed, **shared(args.train_dir, args.train_lr_dir)}
    train_set = TrainDatasetFromFolder(args.train_dir, args.crop, **options)
    val_set = ValDatasetFromFolder(args.val_dir, count=args.val_images, **shared(args.val_dir, args.val_lr_dir))
    for dataset in (train_set, val_set):
        print(describe_left_out(dataset), end="")
    batches = (args.batch_size, len(train_set) % args.batch_size)
    if args.discriminator == "multiscale" and args.crop < 68 and 1 in (size // distributed.world_size() for size in batches):
        raise cli.UserError(
            f"--discriminator multiscale with --crop {args.crop} cannot take a batch of one; use --crop 68 or more"
        )
    return train_set, val_set


def new_loss(args: argparse.Namespace, device: torch.device) -> GeneratorLoss:
    """Return the generator's loss, with VGG16 loaded where its weight is not 0."""
    vgg = VGG16Features(vgg16_state_dict(args.vgg_weights)) if args.perceptual_weight > 0 else None
    weights = (args.pixel_weight, args.adversarial_weight, args.perceptual_weight, args.tv_weight)
    loss = GeneratorLoss(vgg, *weights, args.pixel_loss)
    return loss.to(device=device, memory_format=torch.channels_last)


def dry_run(args: argparse.Namespace) -> int:
    """Build everything, run one step of each phase and one validation image, print shapes and the plan; write nothing."""
    train_set, val_set = open_datasets(args)
    models = Models(args, args.init)
    loader = new_loader(train_set, args.batch_size, args.seed, 0)
    counts = [len(train_set.usable), len(val_set)]
    print(run_log.describe_plan(args, [models.generator, models.discriminator], counts, loader), flush=True)
    lr, hr = (images.uint8_to_signed(batch.to(models.device)) for batch in next(iter(loader)))
    print(f"batch: LR {tuple(lr.shape)}, HR {tuple(hr.shape)}, SR {tuple(models.generate(lr).shape)}")
    if args.pretrain_epochs:
        print("pixel-only step:", dict(zip(PIXEL_TERMS, pixel_step(models, lr, hr).tolist())))
    if args.epochs:
        models.loss = new_loss(args, models.device)
        print("adversarial step:", dict(zip(TERMS, adversarial_step(models, lr, hr).tolist())))
    val_set.usable = val_set.usable[:1]
    print("validation image:", validate(models.generator, val_set, args.precision, {}, None, 0, cli.StopRequest()))
    print("dry run: nothing was written")
    return 0


def main(args: argparse.Namespace) -> int:
    """Train, or go on with the run in `--out`."""
    resolve(args)
    with distributed.processes(torch.device(args.device)), contextlib.ExitStack() as held:
        if args.dry_run:
            return dry_run(args)
        if distributed.rank() == 0:
            held.enter_context(files.lock(files.make_folder(args.out) / ".lock"))
        try:
            return run(args, args.out)
        except (RuntimeError, MemoryError) as error:
            if not cli.is_out_of_memory(error):
                raise
            advice = "a smaller --batch-size, --crop or --blocks needs less (in another --out), and so may --precision bf16"
            raise MemoryError(f"{cli.describe(error)}; {advice}") from error


if __name__ == "__main__":
    cli.run_script(main, get_args_parser())
