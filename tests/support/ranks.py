"""What two processes do together over gloo, for tests/integration; each case checks itself."""

import copy
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.futures import Future
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.profiler import ProfilerActivity, profile

from fxprune import GatedModule, attach, instrument
from fxprune.data import from_tensors
from fxprune.errors import GateError, OptionError
from fxprune.trainer.loop import TrainOptions, fit

RANKS = 2
Case = Callable[[int], None]
CASES: dict[str, Case] = {}
State = dict[str, Tensor]


def case(function: Case) -> Case:
    CASES[function.__name__] = function
    return function


def run_all(folder: Path) -> dict[str, str]:
    """Runs all cases in two new processes; returns what failed, by the case's name and the rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.set_forkserver_preload([__name__])  # what takes the longest is done once
    torch.multiprocessing.start_processes(
        _work, (port, folder), nprocs=RANKS, start_method="forkserver"
    )
    names = [path.name for path in folder.iterdir()]
    assert len(names) == RANKS * len(CASES)
    said = {path.name: path.read_text() for path in sorted(folder.iterdir())}
    return {name: text for name, text in said.items() if text}


def _work(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS
    )
    for name, function in CASES.items():
        said = ""
        try:
            function(rank)
        except Exception:
            said = traceback.format_exc()
        (folder / f"{name}.{rank}").write_text(said)
        distributed.barrier()
    distributed.destroy_process_group()


class Small(nn.Module):
    """A stem and a residual block; with batch norms or without."""

    def __init__(self, norms: bool = True) -> None:
        super().__init__()
        norm = nn.BatchNorm2d if norms else nn.Identity
        self.stem, self.bn = nn.Conv2d(1, 8, 3), norm(8)
        self.conv1, self.bn1 = nn.Conv2d(8, 12, 3, padding=1), norm(12)
        self.conv2, self.bn2 = nn.Conv2d(12, 8, 3, padding=1), norm(8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.bn(self.stem(x)))
        x = torch.tanh(x + self.bn2(self.conv2(torch.tanh(self.bn1(self.conv1(x))))))
        out: Tensor = self.fc(x.mean((2, 3)))
        return out


def build(seed: int, norms: bool = True, **settings: Any) -> GatedModule:
    torch.manual_seed(seed)
    model = Small(norms).double().train()
    return instrument(model, (torch.zeros(1, 1, 6, 6).double(),), **settings)


def batch(step: int, size: int = 8) -> tuple[Tensor, Tensor]:
    """The joint batch of a step; each rank takes its rows."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(size, 1, 6, 6, generator=generator, dtype=torch.float64)
    return images, torch.randint(4, (size,), generator=generator)


def wrapped(
    seed: int, policy: str, norms: bool = True, **options: Any
) -> tuple[GatedModule, DistributedDataParallel, torch.optim.Optimizer]:
    """A network in its wrapper, and the optimiser that it is attached to."""
    gated = build(seed, norms, policy=policy)
    network = DistributedDataParallel(gated, **options)
    optimizer = momentum(network.parameters())
    attach(gated, optimizer)
    return gated, network, optimizer


def reductions(network: DistributedDataParallel) -> list[int]:
    """Fills, from now on, with the sizes of the gradients that are reduced."""
    sizes: list[int] = []

    def hook(group: Any, bucket: distributed.GradBucket) -> Future[Tensor]:
        sizes.append(bucket.buffer().numel())
        return allreduce_hook(group, bucket)

    network.register_comm_hook(None, hook)
    return sizes


def train_step(network: nn.Module, optimizer: torch.optim.Optimizer, *data: Tensor) -> None:
    optimizer.zero_grad()
    F.cross_entropy(network(data[0]), data[1]).backward()
    optimizer.step()


def momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.05, momentum=0.9, weight_decay=1e-3)


def same_on_all(state: State) -> None:
    """Every tensor has the same bits on all ranks."""
    gathered: list[Any] = [None] * RANKS
    distributed.all_gather_object(gathered, state)
    assert gathered[0].keys() == gathered[1].keys()
    wrong = [key for key in state if not torch.equal(gathered[0][key], gathered[1][key])]
    assert wrong == []


def everything(gated: GatedModule, optimizer: torch.optim.Optimizer) -> State:
    state = dict(gated.training_state())
    for name, parameter in gated.named_parameters():
        for key, value in optimizer.state[parameter].items():
            state[f"optimizer/{name}/{key}"] = torch.as_tensor(value)
    return state


def agree(
    rank: int,
    policy: str,
    steps: int,
    validate: Callable[[int, DistributedDataParallel, GatedModule], None] = lambda *_: None,
    **wrapping: Any,
) -> set[tuple[int, ...]]:
    """Trains on different data, from different weights; in every step the ranks are equal."""
    gated, network, optimizer = wrapped(rank, policy, **wrapping)
    widths, seen = [], []
    for step in range(steps):
        images, labels = batch(step)
        train_step(network, optimizer, images[rank::RANKS], labels[rank::RANKS])
        widths.append(gated.widths)
        seen.append(tuple(gated.executing.tolist()))
        if step % 10 == 9:
            validate(rank, network, gated)
    same_on_all({str(step): torch.tensor(chosen) for step, chosen in enumerate(seen)})
    same_on_all({"widths": torch.tensor(widths)})
    same_on_all(everything(gated, optimizer))
    assert len(set(seen)) > 5
    return set(widths)


def on_all(rank: int, network: DistributedDataParallel, gated: GatedModule) -> None:
    """Every rank validates, through the wrapper."""
    del gated
    network.eval()
    with torch.no_grad():
        network(batch(rank)[0])
    network.train()


def alone(rank: int, network: DistributedDataParallel, gated: GatedModule) -> None:
    """The first rank validates, as in many loops, and looks at all there is to save."""
    del network
    if rank == 0:
        gated.eval()
        with torch.no_grad():
            gated(batch(rank)[0])
        gated.state_dict()
        gated.train()


UTILITY = "utility{decay=0.6,scale=l2,warmup=15,reallocate=7}"
OFTEN = "utility{decay=0.6,scale=l2,warmup=2,reallocate=2}"


@case
def cucb(rank: int) -> None:
    agree(rank, "cucb", steps=200, validate=on_all)


@case
def cucb_by_sample(rank: int) -> None:
    agree(rank, "cucb{saliency=sample}", steps=50, validate=alone)


@case
def random(rank: int) -> None:
    agree(rank, "random", steps=30, validate=on_all)


@case
def utility(rank: int) -> None:
    widths = agree(rank, UTILITY, steps=200, validate=alone)
    assert len(widths) > 2


@case
def utility_by_sample(rank: int) -> None:
    policy = "utility{decay=0.6,scale=l2,warmup=10,reallocate=4,saliency=sample}"
    widths = agree(rank, policy, steps=60, validate=on_all, gradient_as_bucket_view=True)
    assert len(widths) > 2


@case
def unused_parameters(rank: int) -> None:
    agree(rank, "cucb{c=1,discount=0.9}", steps=20, find_unused_parameters=True)


@case
def static_graph(rank: int) -> None:
    widths = agree(rank, UTILITY, steps=30, validate=alone, static_graph=True)
    assert len(widths) > 1


@case
def parameters_in_the_buckets_of_an_optimizer(rank: int) -> None:
    """Whose widths change: each rank steps its share, and sends the bucket that it is part of."""
    gated = build(rank, policy=OFTEN)
    network = DistributedDataParallel(gated)
    optimizer = ZeroRedundancyOptimizer(
        network.parameters(), torch.optim.SGD, parameters_as_bucket_view=True, lr=0.05
    )
    attach(gated, optimizer)
    kept, widths = gated.state_dict(), set()
    for step in range(12):
        if step == 8:
            gated.load_state_dict(kept)
        images, labels = batch(step)
        train_step(network, optimizer, images[rank::RANKS], labels[rank::RANKS])
        widths.add(gated.widths)
    assert len(widths) > 2
    same_on_all(dict(gated.training_state()))


@case
def the_joint_batch(rank: int) -> None:
    """Two halves on two ranks are one batch in one process; without norms this is well defined."""
    for policy in (
        "cucb{c=1}",
        "cucb{c=1,saliency=sample}",
        "utility{decay=0.6,scale=l2,warmup=3,reallocate=5}",
    ):
        gated, network, optimizer = wrapped(3, policy, norms=False)
        whole = build(3, norms=False, policy=policy)
        whole_optimizer = momentum(whole.parameters())
        attach(whole, whole_optimizer)
        for step in range(25):
            images, labels = batch(step)
            train_step(network, optimizer, images[rank::RANKS], labels[rank::RANKS])
            train_step(whole, whole_optimizer, images, labels)
            assert gated.widths == whole.widths
            assert torch.equal(gated.executing, whole.executing), (policy, step)
        one, two = everything(gated, optimizer), everything(whole, whole_optimizer)
        for key, value in two.items():
            torch.testing.assert_close(one[key], value, rtol=1e-7, atol=1e-10)


@contextmanager
def collectives() -> Iterator[dict[str, int]]:
    """Counts what goes over the wire, by its kind."""
    found: dict[str, int] = {}
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        yield found
    for event in seen.events():
        if event.name.startswith("gloo:"):
            found[event.name] = found.get(event.name, 0) + 1


@case
def what_goes_over_the_wire(rank: int) -> None:
    """The narrow gradients; with saliency by sample one vector more."""
    for policy, more in (("cucb{c=1}", 0), ("cucb{c=1,saliency=sample}", 1), ("random", 0)):
        gated, network, optimizer = wrapped(rank, policy, norms=False)
        reduced = reductions(network)
        for step in range(3):
            train_step(network, optimizer, *batch(step))
        reduced.clear()
        with collectives() as found:
            train_step(network, optimizer, *batch(3))
        assert sum(reduced) == sum(p.numel() for p in gated.parameters())
        assert sum(reduced) < sum(p.numel() for p in Small().parameters()) / 2
        assert found == {"gloo:all_reduce": len(reduced) + more}, (policy, found)


@case
def a_communication_hook_stays(rank: int) -> None:
    gated, network, optimizer = wrapped(rank, OFTEN)
    reduced = reductions(network)
    for step in range(8):
        expected = sum(p.numel() for p in gated.parameters())
        reduced.clear()
        train_step(network, optimizer, *batch(2 * step + rank))
        assert sum(reduced) == expected
    same_on_all(everything(gated, optimizer))


@case
def accumulation(rank: int) -> None:
    """no_sync, clipping, and widths that change meanwhile."""
    gated = build(rank, policy=OFTEN)
    optimizer = momentum(gated.parameters())
    attach(gated, optimizer)  # before it is wrapped, for once
    network = DistributedDataParallel(gated)
    for step in range(8):
        (a, b), (c, d) = (part.chunk(2) for part in batch(2 * step + rank))
        optimizer.zero_grad()
        with network.no_sync():
            F.cross_entropy(network(a), c).backward()
        F.cross_entropy(network(b), d).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 0.1)
        optimizer.step()
    same_on_all(everything(gated, optimizer))


@case
def a_state_dict_goes_through_the_wrapper(rank: int) -> None:
    """Also one of other widths, into wrappers made before; training goes on to the same bits."""
    twins = [wrapped(rank, "utility{decay=0.6,scale=l2,warmup=3,reallocate=2}") for _ in range(2)]
    networks, optimizers = ([twin[place] for twin in twins] for place in (1, 2))
    for step in range(9):
        train_step(networks[0], optimizers[0], *batch(2 * step + rank))
    assert networks[0].module.widths != networks[1].module.widths
    networks[1].load_state_dict(copy.deepcopy(networks[0].state_dict()))
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    for step in range(9, 14):
        for network, optimizer in zip(networks, optimizers):
            train_step(network, optimizer, *batch(2 * step + rank))
    one, two = (everything(n.module, o) for n, o in zip(networks, optimizers))
    assert all(torch.equal(one[key], two[key]) for key in one)
    same_on_all(one)


@case
def a_part_of_a_larger_module(rank: int) -> None:
    """As Lightning wraps a module that holds the network; here compiled on the way."""
    gated = build(rank, policy=OFTEN)
    outer = nn.Sequential(torch.compile(gated, backend="eager"), nn.Linear(4, 4).double())
    network = DistributedDataParallel(outer)
    optimizer = momentum(network.parameters())
    attach(gated, optimizer)
    widths = set()
    for step in range(8):
        train_step(network, optimizer, *batch(2 * step + rank))
        widths.add(gated.widths)
    assert len(widths) > 1
    same_on_all(everything(gated, optimizer))


@case
def wrapped_and_settled_while_evaluating(rank: int) -> None:
    """The widths of evaluation are others than those of the warm-up."""
    gated = build(rank, policy="utility{decay=0.6,scale=l2,warmup=3,reallocate=0}").eval()
    network = DistributedDataParallel(gated)
    optimizer = momentum(network.parameters())
    attach(gated, optimizer)
    network.train()
    for step in range(2):
        train_step(network, optimizer, *batch(2 * step + rank))
    warm = gated.widths
    network.eval()
    gated.settle()
    network.train()
    assert gated.widths != warm
    for step in range(2, 5):
        train_step(network, optimizer, *batch(2 * step + rank))
    same_on_all({name: p.detach() for name, p in gated.named_parameters()})


@case
def a_batch_that_cannot_be_shared(rank: int) -> None:
    del rank
    images, labels = torch.arange(140 * 64).view(140, 1, 8, 8) % 256, torch.arange(140) % 10
    part = images.to(torch.uint8), labels
    data = from_tensors("stripes", part, part, tuple("0123456789"))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(OptionError, match="2 processes cannot share a batch of 65 evenly"):
        fit(model, data, TrainOptions(epochs=1, batch_size=65, device="cpu"))


@case
def a_compiled_wrapper(rank: int) -> None:
    """Dynamo compiles what is inside the wrapper, which goes on reducing at new widths."""
    gated = build(rank, policy=OFTEN)
    network = torch.compile(DistributedDataParallel(gated), backend="eager")
    optimizer = momentum(gated.parameters())
    attach(gated, optimizer)
    widths = set()
    for step in range(8):
        train_step(network, optimizer, *batch(2 * step + rank))
        widths.add(gated.widths)
    assert len(widths) > 1
    same_on_all(everything(gated, optimizer))


@case
def averages(rank: int) -> None:
    """Equal on all ranks, since what they average is."""
    gated, network, optimizer = wrapped(rank, OFTEN)
    average = AveragedModel(gated, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for step in range(8):
        train_step(network, optimizer, *batch(2 * step + rank))
        average.update_parameters(gated)
    parameters = [name for name, _ in average.module.named_parameters()]
    dense = average.module.dense_tensors()
    same_on_all({name: dense[name].detach() for name in parameters})


@case
def ranks_with_fewer_batches(rank: int) -> None:
    """Those that wait exchange no channels; the weights that they end with would be of others."""
    gated, network, optimizer = wrapped(rank, "random", norms=False)
    train_step(network, optimizer, *batch(rank))
    with pytest.raises(GateError, match=r"cannot wait in DistributedDataParallel\.join\(\)"):
        network.join()
    gated.settle()
    with network.join():
        for step in range(1, 3 + rank):
            train_step(network, optimizer, *batch(2 * step + rank))
    same_on_all({name: p.detach() for name, p in gated.named_parameters()})
