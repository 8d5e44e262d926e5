import copy

import pytest
import torch

import model
from esrgan import UNetDiscriminator
from model import Discriminator, Generator, MultiScaleDiscriminator, TailConv, fold_batch_norm


def count(network) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_parameter_counts():
    assert count(Generator(upscale=4, blocks=8)) == 956_558
    assert count(Discriminator()) == 5_215_425
    assert count(Discriminator(batch_norm=False)) == 5_215_425 - 2 * (
        64 + 128 + 128 + 256 + 256 + 512 + 512
    )


@pytest.mark.parametrize("upscale", [1, 2, 3, 4, 8])
def test_generator_enlarges_by_its_scale_into_the_open_range(upscale):
    sr = Generator(upscale, blocks=2).eval()(torch.rand(2, 3, 5, 7) * 2 - 1)
    assert sr.shape == (2, 3, 5 * upscale, 7 * upscale)
    assert sr.abs().max() < 1


def test_generator_layers_are_the_specified_ones():
    generator = Generator(4, 8)
    shapes = []
    for module in generator.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(
                lambda m, _i, out: shapes.append((m.kernel_size[0], tuple(out.shape[1:])))
            )
    generator.eval()(torch.zeros(1, 3, 8, 8))
    trunk = [(3, (64, 8, 8))] * 17
    assert shapes == [
        (9, (64, 8, 8)),
        *trunk,
        (3, (256, 8, 8)),
        (3, (256, 16, 16)),
        (9, (3, 32, 32)),
    ]
    prelus = [module for module in generator.modules() if isinstance(module, torch.nn.PReLU)]
    assert len(prelus) == 1 + 8 + 2  # none is shared


def test_discriminator_layers_are_the_specified_ones():
    convolutions = [
        module for module in Discriminator().modules() if isinstance(module, torch.nn.Conv2d)
    ]
    assert [c.out_channels for c in convolutions] == [64, 64, 128, 128, 256, 256, 512, 512, 1024, 1]
    assert [c.stride[0] for c in convolutions] == [1, 2, 1, 2, 1, 2, 1, 2, 1, 1]


@pytest.mark.parametrize("size", [(32, 32), (45, 88), (96, 33)])
def test_discriminator_takes_any_size_and_gives_the_probability_of_its_logits(size):
    discriminator = Discriminator().eval()
    x = torch.rand(2, 3, *size) * 2 - 1
    probability = discriminator(x)
    assert probability.shape == (2,)
    assert torch.equal(probability, torch.sigmoid(discriminator.logits(x)))


@pytest.mark.parametrize("network", [Discriminator, MultiScaleDiscriminator, UNetDiscriminator])
def test_discriminators_train_on_a_batch_of_one_smallest_crop(network):
    crop = network.minimum_crop
    network().train().logits(torch.rand(1, 3, crop, crop)).sum().backward()


@pytest.mark.parametrize("crop", [64, 67])
def test_the_multiscale_discriminator_cannot_train_on_less_than_its_smallest_crop(crop):
    assert MultiScaleDiscriminator.minimum_crop == 68
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        MultiScaleDiscriminator().train().logits(torch.rand(1, 3, crop, crop))


@pytest.mark.parametrize("arguments", [(5, 8), (4, 0)])
def test_generator_refuses_invalid_arguments(arguments):
    with pytest.raises(ValueError, match=str(arguments[0] if arguments[0] == 5 else 0)):
        Generator(*arguments)


@pytest.mark.parametrize(
    ("upscale", "blocks", "halo"),
    [(4, 8, 24), (4, 5, 18), (1, 8, 25), (2, 8, 24), (3, 8, 24), (8, 4, 16)],
)
def test_halo_is_the_receptive_field(upscale, blocks, halo):
    generator = Generator(upscale, blocks).eval()
    assert generator.halo == halo
    for parameter in generator.parameters():  # no path is cut by a zero
        torch.nn.init.uniform_(parameter, 0.5, 1)
    lr = torch.zeros(1, 3, 2 * halo + 3, 2 * halo + 3, requires_grad=True)
    features = generator.upsample(
        generator.head(lr) + generator.fusion(generator.trunk(generator.head(lr)))
    )
    centre = upscale * (halo + 1)
    generator.tail(features)[
        ..., centre : centre + upscale, centre : centre + upscale
    ].sum().backward()
    reached = lr.grad.abs().sum((0, 1, 2)).nonzero().flatten()
    assert reached.min() == 1 and reached.max() == 2 * halo + 1


@pytest.mark.parametrize("upscale", [1, 2, 3, 4])
def test_an_untrained_generator_enlarges_bilinearly(upscale):
    lr = torch.rand(1, 3, 12, 14) * 2 - 1
    bilinear = lr
    for factor in Generator(upscale).factors:
        bilinear = torch.nn.functional.interpolate(
            bilinear, scale_factor=factor, mode="bilinear", align_corners=False
        )
    sr = Generator(upscale).train()(lr)
    inner = (..., slice(8, -8), slice(8, -8))
    assert torch.allclose(torch.atanh(sr)[inner], bilinear[inner], atol=1e-4)


@pytest.mark.parametrize("factor", [2, 3])
def test_even_phases_give_constant_features_one_value(factor):
    torch.manual_seed(0)
    block = model.UpsampleBlock(8, factor)
    before = block.conv.weight.detach().clone()
    features = torch.randn(1, 8, 1, 1).expand(1, 8, 7, 7)

    def pattern() -> torch.Tensor:
        """One cell away from the border, less its mean."""
        cell = block(features)[0, :, 3 * factor : 4 * factor, 3 * factor : 4 * factor].detach()
        return cell - cell.mean((1, 2), keepdim=True)

    assert pattern().abs().max() > 0.1
    block.even_out_phases(0)
    assert torch.equal(block.conv.weight, before)
    block.even_out_phases()
    assert pattern().abs().max() < 1e-6
    # These are the nearest such weights: what they lost is the same in all nine positions
    lost = (before - block.conv.weight.detach()).flatten(2)
    assert torch.allclose(lost, lost[..., :1].expand_as(lost), atol=1e-7)
    by_phase = before.unflatten(0, (8, -1)).sum((3, 4)).mean(1)
    after = block.conv.weight.detach().unflatten(0, (8, -1)).sum((3, 4)).mean(1)
    assert torch.allclose(after, by_phase, atol=1e-6)


def test_phases_are_evened_out_in_part():
    torch.manual_seed(0)
    block = model.UpsampleBlock(8)
    whole = copy.deepcopy(block)
    whole.even_out_phases()
    middle = block.conv.weight.detach().lerp(whole.conv.weight.detach(), 0.25)
    block.even_out_phases(0.25)
    assert torch.allclose(block.conv.weight, middle, atol=1e-7)


def test_every_weight_learns_from_the_second_step_on():
    generator = Generator(4, 2)
    optimizer = torch.optim.Adam(generator.parameters(), 1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        (generator(torch.rand(2, 3, 8, 8)) - torch.rand(2, 3, 32, 32)).square().mean().backward()
        optimizer.step()
    idle = {
        name
        for name, parameter in generator.named_parameters()
        if not parameter.grad.abs().max() > 0
    }
    assert not idle


def test_multiscale_losses_are_averaged_not_outputs():
    discriminator = MultiScaleDiscriminator().eval()
    x = torch.rand(2, 3, 64, 72) * 2 - 1
    halves = [x, torch.nn.functional.interpolate(x, scale_factor=0.5, mode="area")]
    halves.append(torch.nn.functional.interpolate(halves[1], scale_factor=0.5, mode="area"))
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    with torch.no_grad():
        logits = discriminator.logits(x)
        each = [network.logits(image) for network, image in zip(discriminator.scales, halves)]
        expected = sum(bce(scores, torch.ones(2)) for scores in each) / 3
    assert torch.allclose(bce(logits, torch.ones(6)), expected, atol=1e-6)
    assert torch.allclose(
        discriminator(x), sum(torch.sigmoid(scores) for scores in each) / 3, atol=1e-6
    )
    assert count(discriminator) == 3 * 5_215_425


def test_folding_batch_norm_changes_the_weights_and_not_the_result():
    torch.manual_seed(0)
    generator = Generator(2, 2).eval()
    for name, tensor in generator.state_dict().items():
        if "bn" in name or "fusion.1" in name:
            tensor.copy_(torch.rand(tensor.shape) + 0.5) if tensor.is_floating_point() else None
    lr = torch.rand(1, 3, 12, 9) * 2 - 1
    expected = generator(lr)
    folded = fold_batch_norm(generator)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    assert torch.allclose(folded(lr), expected, atol=1e-5)


@pytest.mark.parametrize("upscale", [2, 3, 4])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_training_on_the_cpu_computes_what_plain_layers_do(upscale, memory_format, monkeypatch):
    generator = Generator(upscale, 2).double().train().to(memory_format=memory_format)
    for parameter in generator.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    torch.nn.init.zeros_(generator.head[1].weight)
    lr = torch.rand(2, 3, 6, 7, dtype=torch.float64).to(memory_format=memory_format)
    variables = [lr.requires_grad_(), *generator.parameters()]

    def forward_and_backward():
        sr = generator(lr)
        names = {type(node).__name__ for node in nodes_of(sr.grad_fn)}
        return [sr, *torch.autograd.grad(sr.square().sum(), variables)], names

    ours, our_names = forward_and_backward()
    monkeypatch.setattr(model, "is_trained_on_cpu", lambda layer, x: False)
    plain, plain_names = forward_and_backward()
    assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-10) for a, b in zip(ours, plain))
    slow = {"PreluKernelBackward0", "PixelShuffleBackward0"}
    assert not slow & our_names and slow <= plain_names


def nodes_of(node) -> set:
    """All nodes of a graph of gradients."""
    found, waiting = set(), [node]
    while waiting:
        if (node := waiting.pop()) is not None and node not in found:
            found.add(node)
            waiting += [following for following, _ in node.next_functions]
    return found


def test_training_in_bf16_on_the_cpu_is_close_to_plain_layers(monkeypatch):
    generator = Generator(4, 2).train().to(memory_format=torch.channels_last)
    lr = torch.rand(2, 3, 8, 8).to(memory_format=torch.channels_last)

    def gradient():
        with torch.autocast("cpu", torch.bfloat16):
            sr = generator(lr)
        return torch.cat(
            [g.flatten() for g in torch.autograd.grad(sr.float().sum(), generator.parameters())]
        )

    ours = gradient()
    monkeypatch.setattr(model, "is_trained_on_cpu", lambda layer, x: False)
    plain = gradient()
    assert (ours - plain).norm() < 0.02 * plain.norm()


@pytest.mark.parametrize("shape", [(2, 8, 6, 7), (1, 8, 1, 3)])
def test_the_tail_is_a_plain_convolution(shape):
    tail, x = (
        TailConv(8, 3, 9, padding=4).double(),
        torch.rand(shape, dtype=torch.float64, requires_grad=True),
    )
    expected = torch.nn.functional.conv2d(x, tail.weight, tail.bias, padding=4)
    result = tail(x)
    assert torch.allclose(result, expected, atol=1e-12)
    weights = torch.rand_like(expected)
    ours, plain = (
        torch.autograd.grad((image * weights).sum(), [x, tail.weight, tail.bias])
        for image in (result, expected)
    )
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(ours, plain))
