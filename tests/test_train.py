"""The steps of train.py, compared with the same updates in plain code."""

import argparse
import copy
import math
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from conftest import quick_in
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import model
import train
from generator_loss_functions import consistency_loss, grid_loss
from networks import DISCRIMINATORS
from utils import checkpoint, cli
from utils.checkpoint import Progress
from utils.device import compile_for

RATE = 1e-4


def models_of(*options: str) -> train.Models:
    words = [
        "--perceptual",
        "squeezenet",
        "--perceptual-weights",
        "random",
        "--device",
        "cpu",
        "--precision",
        "fp32",
        "--seed",
        "3",
        "--blocks",
        "2",
    ]
    args = train.get_args_parser().parse_args([*words, *options])
    train.options.resolve(args)
    models = train.Models(args)
    models.loss = train.new_loss(args, train.load_perceptual(args))
    for optimizer in (models.optimizer_g, models.optimizer_d):
        optimizer.param_groups[0]["lr"] = RATE
    with torch.no_grad():  # zeros would hide errors
        for parameter in models.generator.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        # An untrained D scores both alike, and the halves of its gradient would nearly cancel
        last = (
            models.discriminator.last
            if hasattr(models.discriminator, "last")
            else models.discriminator.classifier
        )
        last[-1].bias.fill_(2.0)
    return models


@mock.patch.object(model, "is_trained_on_cpu", lambda layer, x: False)
def plain_step(models: train.Models, lr: torch.Tensor, hr: torch.Tensor) -> dict:
    """Losses and gradients of the step: a forward pass for every use, a plain last convolution."""
    generator, discriminator = copy.deepcopy(models.generator), copy.deepcopy(models.discriminator)
    tail = nn.Conv2d(64, 3, 9, padding=4)
    tail.load_state_dict(generator.tail.state_dict())
    generator.tail = tail
    vgg, gradients = copy.deepcopy(models.loss.network), {}
    for network in (generator, discriminator, vgg):
        network.to(memory_format=torch.contiguous_format)
    real, fake = discriminator(hr), discriminator(generator(lr).detach())
    loss_d = F.binary_cross_entropy(real, torch.ones_like(real)) + F.binary_cross_entropy(
        fake, torch.zeros_like(fake)
    )
    loss_d.backward()
    gradients["D"] = torch.cat(
        [parameter.grad.flatten() for parameter in discriminator.parameters()]
    )
    torch.optim.Adam(discriminator.parameters(), lr=RATE).step()
    signed = generator(lr)
    sr, target = (signed + 1) / 2, (hr + 1) / 2
    rows, columns = (sr[:, :, 1:] - sr[:, :, :-1]), (sr[..., 1:] - sr[..., :-1])
    tv = (
        2
        * (rows.square().sum() / rows[0].numel() + columns.square().sum() / columns[0].numel())
        / len(sr)
    )
    score = discriminator(signed)
    terms = [
        F.mse_loss(sr, target),
        F.binary_cross_entropy(score, torch.ones_like(score)),
        F.mse_loss(vgg(sr), vgg(target)),
        tv,
    ]
    loss_g = terms[0] + 1e-3 * terms[1] + 6e-3 * terms[2] + 2e-8 * terms[3]
    loss_g.backward()
    gradients["G"] = torch.cat([parameter.grad.flatten() for parameter in generator.parameters()])
    names = ["Loss_Pixel", "Loss_Adversarial", "Loss_Perceptual", "Loss_TV"]
    values = {
        "Loss_D": loss_d,
        "Loss_G": loss_g,
        "Score_D": real.mean(),
        "Score_G": fake.mean(),
        **dict(zip(names, terms)),
    }
    return {"values": {name: value.item() for name, value in values.items()}, **gradients}


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def test_the_step_is_the_plain_step():
    """The median of five batches: in some, a value rounds across a ReLU's kink (up to 0.5%)."""
    errors = []
    for seed in range(1, 6):
        models = models_of("--perceptual", "vgg16")
        torch.manual_seed(seed)
        lr, hr = torch.rand(4, 3, 8, 8) * 2 - 1, torch.rand(4, 3, 32, 32) * 2 - 1
        plain = plain_step(models, lr, hr)
        values = train.adversarial_step(
            models, *(image.contiguous(memory_format=torch.channels_last) for image in (lr, hr))
        )
        assert values.keys() == plain["values"].keys()
        found = [abs(values[name].item() / value - 1) for name, value in plain["values"].items()]
        for network, name in ((models.discriminator, "D"), (models.generator, "G")):
            ours = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
            found.append(distance(ours, plain[name]))
        errors.append(max(found))
    assert sorted(errors)[2] < 1e-4 and max(errors) < 1e-2


def test_the_generator_step_of_esrgan_uses_the_updated_discriminator_on_both_sides():
    """ESRGAN's losses, grid and consistency, recomputed after the step from D as it is then."""
    options = ["--adversarial-loss", "relativistic", "--discriminator", "unet"]
    models = models_of(
        *options,
        "--grid-weight",
        "1000",
        "--consistency-weight",
        "300",
        "--adversarial-weight",
        "0.5",
    )
    generator = copy.deepcopy(models.generator)
    torch.manual_seed(1)
    lr, hr = torch.rand(2, 3, 8, 8) * 2 - 1, torch.rand(2, 3, 32, 32) * 2 - 1
    values = {name: value.item() for name, value in train.adversarial_step(models, lr, hr).items()}
    with torch.no_grad():
        fake = generator(lr)
        discriminator = (
            models.discriminator.eval()
        )  # its spectral norms stay where the step left them
        real, seen = discriminator.logits(hr), discriminator.logits(fake)
        adversarial = F.softplus(real - seen.mean()).mean() + F.softplus(real.mean() - seen).mean()
        terms = {
            "Loss_Pixel": F.mse_loss(fake, hr) / 4,
            "Loss_Adversarial": adversarial,
            "Loss_Perceptual": models.loss.network.distance(
                *((x[..., :25, :25] + 1) / 2 for x in (fake, hr))
            ).mean(),
            "Loss_TV": models.loss.tv_loss((fake + 1) / 2),
            "Loss_Grid": grid_loss((fake + 1) / 2, (hr + 1) / 2, 4),
            "Loss_Consistency": consistency_loss((fake + 1) / 2, (hr + 1) / 2, 4),
        }
    assert {name: values[name] for name in terms} == pytest.approx(
        {n: t.item() for n, t in terms.items()}, rel=2e-3
    )
    total = (
        values["Loss_Pixel"] + 0.5 * values["Loss_Adversarial"] + 0.1 * values["Loss_Perceptual"]
    )
    total += (
        2e-8 * values["Loss_TV"] + 1000 * values["Loss_Grid"] + 300 * values["Loss_Consistency"]
    )
    assert values["Loss_G"] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("gan", ["standard", "relativistic"])
def test_without_adversarial_weight_only_the_step_of_d_uses_d(gan):
    models = models_of("--adversarial-weight", "0", "--adversarial-loss", gan)
    models.discriminate_unwrapped = None  # calling it would raise an error
    before = models.discriminator.classifier[-1].weight.clone()
    values = train.adversarial_step(models, torch.rand(2, 3, 8, 8), torch.rand(2, 3, 32, 32))
    assert "Loss_D" in values and "Loss_Adversarial" not in values
    assert not torch.equal(models.discriminator.classifier[-1].weight, before)


@pytest.mark.parametrize("step", [train.pixel_step, train.adversarial_step])
def test_a_batch_in_parts_has_the_mean_of_the_parts_gradients(step):
    """Batch statistics are each part's own: two batches whose gradients are averaged."""
    torch.manual_seed(1)
    lr, hr = torch.rand(4, 3, 8, 8) * 2 - 1, torch.rand(4, 3, 32, 32) * 2 - 1
    whole, *halves = (models_of() for _ in range(3))
    whole.accumulate = 2
    for models in (whole, *halves):  # a D that does not move, so that G meets the same one in each
        models.optimizer_d.param_groups[0]["lr"] = 0.0
    values = step(whole, lr, hr)
    parts = [step(half, lr[k : k + 2], hr[k : k + 2]) for half, k in zip(halves, (0, 2))]
    for name, value in values.items():
        assert value.item() == pytest.approx(
            (parts[0][name] + parts[1][name]).item() / 2, rel=1e-5
        ), name
    for network in ("generator", "discriminator")[: 1 + (step is train.adversarial_step)]:
        ours, *theirs = (
            torch.cat([p.grad.flatten() for p in getattr(models, network).parameters()])
            for models in (whole, *halves)
        )
        assert distance(ours, (theirs[0] + theirs[1]) / 2) < 1e-4, network


def test_scaled_losses_give_the_plain_step_and_are_clipped_unscaled():
    """fp16's gradient scaler around an fp32 step on the CPU: two optimisers, one scaler."""
    torch.manual_seed(1)
    lr, hr = torch.rand(2, 3, 8, 8) * 2 - 1, torch.rand(2, 3, 32, 32) * 2 - 1
    plain, scaled = models_of(), models_of()
    scaled.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for models in (plain, scaled):
        models.grad_clip = 1e-3
        train.adversarial_step(models, lr, hr)
    assert scaled.scaler.get_scale() == 1024
    for network in ("generator", "discriminator"):
        a, b = (
            torch.cat([p.flatten() for p in getattr(models, network).parameters()])
            for models in (plain, scaled)
        )
        assert torch.allclose(a, b, atol=1e-6), network
    with torch.no_grad():
        scaled.generator.tail.bias.fill_(float("nan"))
    before = scaled.discriminator.classifier[-1].weight.clone()
    train.adversarial_step(scaled, lr, hr)  # overflowed: skipped, and the scale halved
    assert scaled.scaler.get_scale() == 512 and torch.equal(
        scaled.discriminator.classifier[-1].weight, before
    )


def test_gradients_are_clipped_to_their_norm():
    models = models_of()
    models.grad_clip = 1e-3
    torch.manual_seed(1)
    train.adversarial_step(models, torch.rand(2, 3, 8, 8) * 2 - 1, torch.rand(2, 3, 32, 32) * 2 - 1)
    for network in (models.generator, models.discriminator):
        norm = (
            torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
            .norm()
            .item()
        )
        assert norm == pytest.approx(1e-3, rel=1e-3)


def test_averaged_weights_are_those_of_pytorch():
    models = models_of()
    models.ema, models.ema_decay = AveragedModel(models.generator), 0.9
    theirs = AveragedModel(
        models.generator, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True
    )
    for _ in range(3):
        with torch.no_grad():
            for parameter in models.generator.parameters():
                parameter.add_(torch.randn_like(parameter))
        models.update_average()
        theirs.update_parameters(models.generator)
    ours = models.ema.state_dict()
    assert ours.keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        assert torch.allclose(ours[name].double(), tensor.double(), atol=1e-6), name


def test_even_phases_are_reached_bit_by_bit_and_kept():
    """By the averaged generator too, which is the one that is saved."""
    models = models_of("--even-phases", "--ema", "0.999")
    last = train.UPDATES_TO_EVEN_OUT

    def unevenness(generator) -> float:
        sums = generator.upsample[1].conv.weight.detach().sum((2, 3)).unflatten(0, (-1, 4))
        return (sums - sums.mean(1, keepdim=True)).abs().max().item()

    start = unevenness(models.generator)
    for update in range(1, last + 1):
        models.even_out_phases(update)
        models.update_average()
        if update in (last // 4, last // 2):
            assert unevenness(models.generator) == pytest.approx(
                start * (1 - update / last), rel=1e-3
            )
    for generator in (models.generator, models.ema.module):
        assert unevenness(generator) < 1e-5
        generator.upsample[1].conv.weight.data += 0.1 * torch.randn(256, 64, 3, 3)
    models.even_out_phases(10 * last)
    assert unevenness(models.generator) < 1e-5
    models = models_of()
    before = copy.deepcopy(models.generator.state_dict())
    models.even_out_phases(train.UPDATES_TO_EVEN_OUT)
    assert all(torch.equal(before[name], t) for name, t in models.generator.state_dict().items())


@pytest.mark.parametrize(
    "network",
    [
        ("--generator", "rrdb", "--features", "8", "--growth", "4"),
        ("--upscale", "1", "--degradation", "photo"),
    ],
)
def test_even_phases_need_a_pixel_shuffle(network):
    with pytest.raises(cli.UserError, match="no pixel shuffle"):
        models_of("--even-phases", *network)


def test_only_a_trained_batch_norm_can_be_frozen():
    with pytest.raises(cli.UserError, match="an untrained generator has no statistics to keep"):
        models_of("--freeze-batch-norm")
    rrdb = ("--generator", "rrdb", "--features", "8", "--growth", "4")
    with pytest.raises(cli.UserError, match="this generator has no batch normalisation"):
        models_of("--freeze-batch-norm", "--pretrain-epochs", "1", *rrdb)


def test_frozen_batch_norm_judges_the_pictures_that_users_get():
    """In adversarial epochs, the generator gives the same in training as in enlarging."""
    models = models_of("--freeze-batch-norm", "--pretrain-epochs", "1")
    torch.manual_seed(1)
    lr, hr = torch.rand(3, 3, 8, 8) * 2 - 1, torch.rand(3, 3, 32, 32) * 2 - 1
    args = argparse.Namespace(pretrain_epochs=1)

    def difference_from_enlarging() -> float:
        enlarging = copy.deepcopy(models.generator).eval()
        training = copy.deepcopy(models.generator)
        with torch.no_grad():
            return (training(lr) - enlarging(lr)).abs().max().item()

    train.begin_phase(args, models, None, Progress(epoch=1))
    train.pixel_step(models, lr, hr)
    assert difference_from_enlarging() > 1e-3
    before = copy.deepcopy(models.generator.state_dict())
    train.begin_phase(args, models, None, Progress(epoch=2))
    train.adversarial_step(models, lr, hr)
    assert difference_from_enlarging() < 1e-5
    for name, tensor in models.generator.state_dict().items():
        kept = torch.equal(tensor, before[name])
        assert kept == any(word in name for word in ("running_", "num_batches")), name


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_a_joint_batch_gives_each_image_its_own_scores(name):
    torch.manual_seed(1)
    discriminator = DISCRIMINATORS[name]().eval()  # nothing depends on the rest of the batch
    side = discriminator.minimum_crop
    hr, sr = torch.rand(2, 3, side, side) * 2 - 1, torch.rand(2, 3, side, side) * 2 - 1
    with torch.no_grad():
        scores = models_of("--joint-batch").judge(discriminator.logits, hr, sr)
        for ours, batch in zip(scores, (hr, sr), strict=True):
            assert torch.allclose(ours, discriminator.logits(batch), atol=1e-5)
    assert not torch.allclose(*scores, atol=1e-5)


def test_a_joint_batch_has_joint_batch_statistics_in_both_steps():
    models = models_of("--joint-batch", "--adversarial-weight", "0.5")
    for optimizer in (models.optimizer_g, models.optimizer_d):
        optimizer.param_groups[0]["lr"] = 0.0
    torch.manual_seed(1)
    lr, hr = torch.rand(2, 3, 8, 8) * 2 - 1, torch.rand(2, 3, 32, 32) * 2 - 1
    values = train.adversarial_step(models, lr, hr)
    ours = models.generator.tail.bias.grad
    models.generator.zero_grad()
    sr = models.generator(lr)
    logits = models.discriminator.logits(torch.cat([hr, sr]))
    fooled = torch.nn.functional.softplus(-logits[2:]).mean()  # -log D(G(z))
    loss_d = torch.nn.functional.softplus(-logits[:2]).mean()
    loss_d = loss_d + torch.nn.functional.softplus(logits[2:]).mean()
    assert values["Loss_D"].item() == pytest.approx(loss_d.item(), rel=1e-4)
    assert values["Loss_Adversarial"].item() == pytest.approx(fooled.item(), rel=1e-4)
    unit, target = (sr + 1) / 2, (hr + 1) / 2
    others, _ = models.loss(unit, target, torch.zeros(2))  # its adversarial part has no gradient
    (others + 0.5 * fooled).backward()
    assert torch.allclose(ours, models.generator.tail.bias.grad, rtol=1e-3, atol=1e-7)


def test_a_resumed_optimiser_is_fused_where_this_device_needs_it():
    """A checkpoint of another device, or of an older version, also holds that one's choice."""
    network = nn.Linear(2, 2)
    network(torch.ones(1, 2)).sum().backward()
    for fused in (True, None):
        saved = torch.optim.Adam(network.parameters(), fused=fused)
        saved.step()
        kept = {}
        for device in ("cpu", "meta"):
            adam = train.new_adam(nn.Linear(2, 2, device=device))
            adam.load_state_dict(saved.state_dict())
            kept[device] = adam.param_groups[0]["fused"]
            assert adam.state_dict()["state"][0]["step"].device.type == "cpu"
        assert kept == {"cpu": fused, "meta": None}


def test_only_whole_batches_are_compiled(monkeypatch):
    """A compiler that met an epoch's smaller last batch would compile everything again."""
    compiled = []

    def stand_in(function, dynamic):
        assert not dynamic
        return lambda x: compiled.append(len(x)) or function(x)

    monkeypatch.setattr(torch, "compile", stand_in)
    function = compile_for(lambda x: 2 * x, 3)
    assert [function(torch.ones(size)).sum().item() for size in (3, 2, 3)] == [
        6,
        4,
        6,
    ] and compiled == [3, 3]
    assert compile_for(len, None) is len


def test_training_goes_on_if_compiling_fails(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    function = compile_for(lambda x: torch.relu(2 * x), 3)
    for _ in range(2):
        assert function(torch.ones(3)).tolist() == [2, 2, 2]
    message = capsys.readouterr().err
    assert message.count("going on without torch.compile, which failed") == 1
    assert "No working C++ compiler found" in message


def test_benchmarks_count_operators_without_preventing_compilation(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    from common import flops_of, operators_of

    graphs = []
    function = torch.compile(
        lambda x, y: torch.relu(x @ y), backend=lambda graph, _inputs: graphs.append(graph) or graph
    )
    x = torch.ones(2, 2)
    assert operators_of(lambda: function(x, x)) == 2
    assert flops_of(lambda: function(x, x)) == 16
    assert not graphs
    function(x, x)
    assert len(graphs) == 1


@pytest.mark.parametrize(
    ("device", "triton", "options", "compiles"),
    [
        ("cuda", True, [], True),
        ("cuda", True, ["--no-compile"], False),
        ("cuda", False, [], False),
        ("cuda", False, ["--compile"], True),
        ("cpu", True, [], False),
        ("cpu", True, ["--compile"], True),
    ],
)
def test_compiled_by_default_on_cuda_with_triton(monkeypatch, device, triton, options, compiles):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: triton)
    args = train.get_args_parser().parse_args(
        ["--device", device, "--precision", "fp32", "--perceptual-weights", "random", *options]
    )
    train.options.resolve(args)
    assert args.compile is compiles


def test_the_pixel_step_is_a_step_of_adam_on_the_mse():
    models = models_of()
    lr, hr = torch.rand(2, 3, 8, 8) * 2 - 1, torch.rand(2, 3, 32, 32) * 2 - 1
    twin = copy.deepcopy(models.generator)
    loss = F.mse_loss(twin(lr), hr) / 4  # on [0, 1]
    loss.backward()
    before = copy.deepcopy(models.generator)
    values = train.pixel_step(models, lr, hr)
    assert {name: value.item() for name, value in values.items()} == pytest.approx(
        {"Loss_G": loss.item(), "Loss_Pixel": loss.item()}, rel=1e-6
    )
    for name in ("grad", "data"):
        ours, plain = (
            torch.cat([getattr(parameter, name).flatten() for parameter in network.parameters()])
            for network in (models.generator, twin if name == "grad" else before)
        )
        if name == "grad":
            assert distance(ours, plain) < 1e-5
            moved = -RATE * ours / (ours.abs() + 1e-8)  # the first step of Adam
    assert torch.allclose(ours - plain, moved, atol=1e-7)


def test_the_pixel_step_reduces_the_chosen_loss():
    lr, hr = torch.rand(2, 3, 8, 8) * 2 - 1, torch.rand(2, 3, 32, 32) * 2 - 1
    for name, loss in {"mse": F.mse_loss, "l1": F.l1_loss}.items():
        args = train.get_args_parser().parse_args(
            ["--pixel-loss", name, "--device", "cpu", "--precision", "fp32"]
        )
        args.blocks = 1
        models = train.Models(args)
        expected = loss((models.generator(lr) + 1) / 2, (hr + 1) / 2).item()
        assert train.pixel_step(models, lr, hr)["Loss_Pixel"].item() == pytest.approx(
            expected, rel=1e-4
        )


# --- fp16, with its gradient scaler, on the CPU --------------------------------------------------


def fp16_models() -> tuple[argparse.Namespace, train.Models]:
    """The options and the models of an fp16 run with a cosine, EMA and clipped gradients."""
    words = ["--perceptual-weight", "0", "--blocks", "1", "--ema", "0.9", "--grad-clip", "1"]
    words += ["--lr-schedule", "cosine", "--epochs", "1", "--device", "cpu", "--precision", "fp32"]
    args = train.get_args_parser().parse_args(words)
    train.options.resolve(args)
    args.precision = "fp16"
    models = train.Models(args)
    models.loss = train.new_loss(args, None)
    return args, models


def fp16_updates(
    args: argparse.Namespace, models: train.Models, progress: Progress, last: int
) -> None:
    """Do the updates up to `last` of 4; the second one overflows, as its scale is too large."""
    while progress.batch < last:
        if progress.batch == 1:
            models.scaler.update(2.0**40)
        data = torch.Generator().manual_seed(progress.batch)
        lr = torch.rand(2, 3, 8, 8, generator=data) * 2 - 1
        hr = torch.rand(2, 3, 32, 32, generator=data) * 2 - 1
        train.begin_update(args, models, progress, 4)
        with quick_in(args.precision):
            values = train.adversarial_step(models, lr, hr)
        models.update_average()
        progress.add(values, len(lr))
        if progress.batch == 2:
            assert models.scaler.get_scale() == 2.0**39
            models.scaler.update(1024.0)


def changes(before: dict[str, dict], after: dict[str, dict]) -> set[str]:
    """The names of the parts of two states that differ."""

    def same(a, b) -> bool:
        return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b

    leaves = torch.utils._pytree.tree_leaves
    return {
        name for name in before if not all(map(same, leaves(before[name]), leaves(after[name])))
    }


def state_of(models: train.Models) -> dict[str, dict]:
    """Copies of what a checkpoint stores, and of the parameters of both networks."""
    state = {name: part.state_dict() for name, part in models.state.items()}
    for name in ("generator", "discriminator"):
        state[f"parameters of the {name}"] = dict(getattr(models, name).named_parameters())
    return copy.deepcopy(state)


def test_an_fp16_update_that_overflows_is_skipped_and_nothing_else_gets_out_of_step():
    args, models = fp16_models()
    progress = Progress()
    fp16_updates(args, models, progress, 1)
    before = state_of(models)
    assert models.generator.tail.weight.dtype == torch.float32
    fp16_updates(args, models, progress, 2)
    after = state_of(models)
    for name in ("optimizer_g", "optimizer_d"):
        before[name] = before[name]["state"]  # without the learning rate, which goes on
        after[name] = after[name]["state"]
    # Batch statistics move on too: the forward pass did not overflow
    assert changes(before, after) == {"generator", "discriminator", "ema", "scaler"}
    assert models.ema.n_averaged == progress.batch == 2
    fp16_updates(args, models, progress, 3)
    assert models.optimizer_g.param_groups[0]["lr"] == pytest.approx(
        1e-4 * (1 + math.cos(math.pi * 2 / 4)) / 2
    )
    moved = changes(after, state_of(models))
    assert {"parameters of the generator", "parameters of the discriminator"} <= moved


def test_an_fp16_run_that_was_stopped_after_an_overflow_ends_the_same(tmp_path):
    record = {
        "images": {},
        "perceptual": None,
        "degradation": {"version": "bicubic-1"},
        "machine": {"processes": 1},
    }
    args, whole = fp16_models()
    fp16_updates(args, whole, Progress(), 4)

    _, stopped = fp16_models()
    progress = Progress()
    fp16_updates(args, stopped, progress, 2)
    (tmp_path / "checkpoints").mkdir()
    checkpoint.save_run(tmp_path, stopped.state, progress, [], record)

    _, resumed = fp16_models()
    with torch.no_grad():
        for parameter in (*resumed.generator.parameters(), *resumed.discriminator.parameters()):
            parameter.add_(1)  # nothing of a fresh start may be left
    saved = checkpoint.load_checkpoint(tmp_path / "checkpoints")[0]
    progress, _ = checkpoint.restore(saved, resumed.state, record, torch.device("cpu"))
    fp16_updates(args, resumed, progress, 4)
    assert resumed.scaler.get_scale() == 1024
    assert not changes(state_of(whole), state_of(resumed))
