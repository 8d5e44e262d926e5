"""Steps of train.py in several processes on different data; fails if the parameters diverge."""

import hashlib

import torch

import train
from utils import distributed


def digest(network) -> str:
    found = hashlib.sha256()
    for parameter in network.parameters():
        found.update(parameter.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


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
    print("equal parameters in", distributed.world_size(), "processes")
