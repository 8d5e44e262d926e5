"""Steps of train.py in several processes on different data.

It fails if the parameters diverge, or if a step in parts averages more than once or wrongly.
"""

import hashlib
from unittest import mock

import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

import train
from utils import distributed


def digest(network) -> str:
    found = hashlib.sha256()
    for parameter in network.parameters():
        found.update(parameter.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


def step_in_parts(accumulate: int, wrap=distributed.wrap) -> tuple[torch.Tensor, int]:
    """The gradients of both networks after a step, and how many bytes of them were averaged.

    The learning rate is 0, so that G meets the same D in each such step.
    """
    args.accumulate = accumulate
    with mock.patch.object(distributed, "wrap", wrap):
        models = train.Models(args)
    models.loss = train.new_loss(args, None)
    averaged = [0]

    def average(_state, bucket):
        averaged[0] += bucket.buffer().nbytes
        return allreduce_hook(None, bucket)

    for optimizer in (models.optimizer_g, models.optimizer_d):
        optimizer.param_groups[0]["lr"] = 0.0
    for network in (models.generate, models.discriminate):
        if wrap is distributed.wrap:
            network.register_comm_hook(None, average)
    data = torch.Generator().manual_seed(distributed.rank())
    lr = torch.rand(4, 3, 8, 8, generator=data) * 2 - 1
    hr = torch.rand(4, 3, 32, 32, generator=data) * 2 - 1
    train.adversarial_step(models, lr, hr)
    parameters = [*models.generator.parameters(), *models.discriminator.parameters()]
    return torch.cat([parameter.grad.flatten() for parameter in parameters]), averaged[0]


args = train.get_args_parser().parse_args(["--perceptual-weight", "0", "--device", "cpu"])
args.blocks = 1
args.perceptual_shift = 0
args.precision = "fp32"
with distributed.processes(torch.device("cpu")):
    models = train.Models(args)
    models.loss = train.new_loss(args, None)
    for optimizer in (models.optimizer_g, models.optimizer_d):
        optimizer.param_groups[0]["lr"] = 1e-4
    data = torch.Generator().manual_seed(distributed.rank())
    seen = set()
    for step in (train.pixel_step, *[train.adversarial_step] * 3):
        lr = torch.rand(2, 3, 8, 8, generator=data) * 2 - 1
        hr = torch.rand(2, 3, 32, 32, generator=data) * 2 - 1
        values = step(models, lr, hr)
        digests = distributed.gather((digest(models.generator), digest(models.discriminator)))
        losses = distributed.gather(values["Loss_G"].item())
        assert len(set(digests)) == 1, "the parameters differ"
        assert len(set(losses)) == distributed.world_size(), "the data do not differ"
        seen.add(digests[0])
    assert len(seen) == 4
    statistics = distributed.gather(models.generator.trunk[0].bn1.running_mean.tolist())
    assert statistics[0] != statistics[1], "batch statistics are shared at every step"
    distributed.share_buffers(models.generator)
    assert models.generator.trunk[0].bn1.running_mean.tolist() == statistics[0]

    found, averaged = step_in_parts(2)
    own, _ = step_in_parts(2, wrap=lambda network: network)
    expected = torch.stack(distributed.gather(own)).mean(0)
    assert (found - expected).norm() < 1e-5 * expected.norm(), "the average is another one"
    assert (found - own).norm() > 1e-3 * own.norm(), "the data do not differ"
    _, averaged_whole = step_in_parts(1)
    assert averaged == averaged_whole == found.nbytes, "not averaged once"
    print("equal parameters in", distributed.world_size(), "processes")
