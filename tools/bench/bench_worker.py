"""One contender in a process of its own: takes steps when told to, and says what they cost.

`serve` answers the requests of `bench_step.py` over a pipe, one at a time:

    ("turn", n)      seconds of each of n steps, by the wall's clock and by the process's own; on
                     a GPU their mean, with one wait at the end
    ("parts", n)     mean seconds of the parts of a step, with a wait for the device between them
    ("facts",)       what does not depend on time: peak memory, parameters, kernels a step …
"""

import contextlib
import gc
import itertools
import os
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import _paths  # noqa: F401 - the tools that all share
import torch
from bench_contenders import CONTENDERS, Case
from bench_models import NETWORKS
from memory import keep_freed_memory, resident_bytes, return_freed_memory, trim
from torch import nn
from torch.nn import functional

import fxprune

AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Clock:
    """Adds up the seconds of the parts of a step; off, it costs nothing worth mentioning."""

    def __init__(self, wait: Callable[[], None]) -> None:
        self.on = False
        self.wait = wait
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        if not self.on:
            yield
            return
        self.wait()
        began = time.perf_counter()
        yield
        self.wait()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def wrap(self, holder: Any, name: str, part: str) -> None:
        """Counts the calls of a function as a part."""
        function = getattr(holder, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(part):
                return function(*args, **kwargs)

        setattr(holder, name, timed)


class Worker:
    """A contender at work."""

    def __init__(self, case: Case, contender: str) -> None:
        self.case, self.device = case, torch.device(case.device)
        torch.set_num_threads(case.threads)
        keep_freed_memory()
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = True
        self._rehearse()
        trim()
        self.start_bytes = resident_bytes()
        torch.manual_seed(0)
        self.network = CONTENDERS[contender](case)
        layout = torch.channels_last if case.channels_last else torch.contiguous_format
        self.network.to(self.device, memory_format=layout).train()
        shape = (case.batch, 3, case.side, case.side)
        self.images = torch.randn(shape).to(self.device, memory_format=layout)
        classes = NETWORKS[case.network].classes
        self.labels = torch.randint(classes, (case.batch,)).to(self.device)
        self.optimizer = make_optimizer(case.optimizer, self.network)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=case.amp == "fp16")
        self.clock = Clock(self.wait)
        if isinstance(self.network, fxprune.GatedModule):
            self.clock.wrap(self.network, "observe", "observe")
            self.clock.wrap(self.network, "advance", "advance")
            self.clock.wrap(self.network, "_exchange", "exchange")
            fxprune.attach(self.network, self.optimizer)
        self.forward = torch.compile(self.network) if case.compile else self.network
        if isinstance(self.network, fxprune.GatedModule):
            self._grow_old(case.age)
        gc.collect()
        trim()

    def _rehearse(self) -> None:
        """Loads what every process loads sooner or later, so that it is nobody's memory."""
        toy = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3))
        gated = fxprune.instrument(toy, (torch.zeros(2, 3, 8, 8),)).to(self.device).train()
        optimizer = make_optimizer(self.case.optimizer, gated)
        fxprune.attach(gated, optimizer)
        gated(torch.zeros(2, 3, 8, 8, device=self.device)).sum().backward()
        optimizer.step()

    def _grow_old(self, age: int) -> None:
        batch = self.images, self.labels
        for _ in range(age):
            self.images, self.labels = torch.randn_like(batch[0][:2]), batch[1][:2]
            self.step()
        self.images, self.labels = batch

    def wait(self) -> None:
        """Until the device has done all it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def step(self) -> None:
        clock, dtype = self.clock, AMP.get(self.case.amp, torch.bfloat16)
        with clock.part("step"):
            self.optimizer.zero_grad()
            with clock.part("forward"):
                on = self.case.amp != "off"
                with torch.autocast(self.device.type, dtype, enabled=on):
                    loss = functional.cross_entropy(self.forward(self.images), self.labels)
            with clock.part("backward"):
                self.scaler.scale(loss).backward()
            with clock.part("update"):
                self.scaler.step(self.optimizer)
                self.scaler.update()

    def turn(self, steps: int) -> tuple[list[float], list[float]]:
        """Seconds of some steps, one by one on a CPU, their mean on a GPU; on the wall, of CPU."""
        if self.device.type == "cuda":
            self.step()  # the allocator takes back what it gave to the others
        self.wait()
        times = [(time.perf_counter(), time.process_time())]
        for number in range(1, steps + 1):
            self.step()
            if self.device.type == "cpu" or number == steps:
                self.wait()
                times.append((time.perf_counter(), time.process_time()))
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # the others have a turn on the same device
        each = steps // (len(times) - 1)
        wall, own = (
            [(end - begin) / each for begin, end in itertools.pairwise(clock)]
            for clock in zip(*times)
        )
        return wall, own

    def parts(self, steps: int) -> dict[str, float]:
        """Mean seconds of the parts of a step."""
        self.clock.on, self.clock.seconds = True, {}
        for _ in range(steps):
            self.step()
        self.clock.on = False
        seconds = {name: total / steps for name, total in self.clock.seconds.items()}
        swap, observe = seconds.pop("exchange", 0.0), seconds.pop("observe", 0.0)
        choose = observe + seconds.pop("advance", 0.0)
        update = seconds.pop("update")
        return seconds | {
            "optimizer": update - choose,
            "selection": choose - swap,
            "swap": swap,
        }

    def facts(self) -> dict[str, Any]:
        """What does not depend on time."""
        gated = self.network if isinstance(self.network, fxprune.GatedModule) else None
        return {
            "peak_bytes": self._peak_bytes(),
            "bank_bytes": gated.bank.bytes if gated is not None else 0,
            "params": sum(parameter.numel() for parameter in self.network.parameters()),
            "kernels": self._kernels(),
            "moved": self._moved(),
        }

    def _peak_bytes(self) -> int:
        """The most memory that was in use during two steps, beyond that of the bare process."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.turn(2)
            return torch.cuda.max_memory_allocated(self.device)
        return_freed_memory()
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        self.turn(2)
        return resident_bytes(peak=True) - self.start_bytes

    def _kernels(self) -> int | None:
        """How many kernels a step launches, copies and fills included; None on a CPU."""
        if self.device.type != "cuda":
            return None
        self.wait()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            self.step()
            self.wait()
        cuda = torch.autograd.DeviceType.CUDA
        return sum(
            event.device_type == cuda and not event.name.startswith("Optimizer.")  # a range
            for event in profile.events()
        )

    def _moved(self) -> float | None:
        """The share of the slots that a selection fills anew, over ten steps."""
        if not isinstance(self.network, fxprune.GatedModule):
            return None
        shares = []
        for _ in range(10):
            before = self.network.executing
            self.step()
            shares.append((self.network.executing != before).float().mean().item())
        return sum(shares) / len(shares)


def make_optimizer(name: str, network: nn.Module) -> torch.optim.Optimizer:
    if name == "adamw":
        return torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.01)
    return torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)


def serve(pipe: Connection, case: Case, contender: str) -> None:
    """Answers requests until there are no more."""
    os.environ.setdefault("OMP_NUM_THREADS", str(case.threads))
    try:
        worker = Worker(case, contender)
        pipe.send(("ready", None))
        while (request := pipe.recv()) is not None:
            name, *args = request
            pipe.send(("done", getattr(worker, name)(*args)))
    except EOFError:
        return
    except Exception as error:  # the others go on
        pipe.send(("failed", f"{type(error).__name__}: {error}"[:300]))
