"""Holds random networks to the law, for as long as wanted.

    python tools/fuzz.py --n 10000 --seed 1
    python tools/fuzz.py --minutes 30 --onnx 0.05

Prints a line of progress every few seconds. What fails is shrunk and printed as a script that
repeats it from the root of the checkout, and the search goes on; the exit code is then 1. At the
end come the reasons for which channels were pinned, so that needless ones can be seen.
"""

import argparse
import math
import random
import re
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the tests are no installed package

import torch  # noqa: E402
from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: E402

from tests.support.random_nets import RandomNet, nets  # noqa: E402
from tests.support.trial import LawError, Trial, onnx_trial, trial  # noqa: E402

ROUND = 250
"""Networks of one run of hypothesis, which stops at its first failure."""
LIMIT = 20
"""Processor seconds after which a network counts as hanging; most take a fraction of one."""
PERIOD = 10.0
"""Seconds between two lines of progress."""
SHOWN = 25
"""Reasons, and networks without a free channel, that are shown at the end."""

REPEAT = """

from fxprune import instrument, shrink  # {what}
from fxprune.bank.exchange import Selection
from tests.support.law import gap, zeroed
from tests.support.topologies.base import randomised

torch.manual_seed(0)
model = randomised(Net()).double().eval()
x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
gated = instrument(model, (x,))
print(gated.channels)
chosen = {chosen}
gated.settle(chosen)
with torch.no_grad():
    print("shrunk is", gap(gated(x.clone()), shrink(gated)(x.clone())), "off")
    print("dense is", gap(gated(x.clone()), zeroed(model, gated, chosen)(x.clone())), "off")
"""


class TimeUp(BaseException):
    """The minutes are over, or enough networks were tried; hypothesis lets this through."""


def _hangs(*_: object) -> None:
    raise TimeoutError(f"it takes longer than {LIMIT} s")


@dataclass
class Tally:
    """What has been seen so far.

    Attributes:
        most: networks to try, those of shrinking included.
        until: when to stop, on time.monotonic's clock.
        onnx: the share of networks that is exported.
        free: channels that may be removed.
        pinned: channels by the reason for which they are pinned.
        nets: networks by the same.
        whole: for each network without a free channel, the first reason and the source.
        failures: scripts that repeat what failed, by its `_key`.
        again: how often a failure that is known came up.
    """

    most: float
    until: float
    onnx: float
    number: int = 0
    exported: int = 0
    free: int = 0
    pinned: Counter[str] = field(default_factory=Counter)
    nets: Counter[str] = field(default_factory=Counter)
    whole: list[tuple[str, str]] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    again: Counter[str] = field(default_factory=Counter)
    _started: float = field(default_factory=time.monotonic)
    _told: float = field(default_factory=time.monotonic)

    def round(self, number: int, folder: Path) -> None:
        """Tries networks until one fails, shrinks that, and prints it."""
        failed: list[tuple[str, Exception]] = []

        @seed(number)
        @settings(
            max_examples=ROUND,
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        )
        @given(nets)
        def search(net: RandomNet) -> None:
            try:
                self._try(net, folder)
            except Exception as error:
                key = _key(error)
                if isinstance(error, TimeoutError):  # shrinking would take hours
                    self._failed(net.source, error)
                elif key not in self.failures:
                    failed.append((net.source, error))  # the last one is the smallest
                    raise
                self.again[key] += 1

        try:
            search()
        except Exception:
            if not failed:
                raise
            self._failed(*failed[-1])

    def _failed(self, source: str, error: Exception) -> None:
        key, script = _key(error), _script(source, error)
        if key not in self.failures:
            self.failures[key] = script
            print(f"\n{'-' * 80}\n{script}{'-' * 80}\n", flush=True)

    def _try(self, net: RandomNet, folder: Path) -> None:
        now = time.monotonic()
        if now > self.until or self.number >= self.most:
            raise TimeUp
        self.number += 1
        if now - self._told >= PERIOD:
            self._told = now
            rate = self.number / (now - self._started)
            print(
                f"{self.number:6} nets, {rate:.1f} a second, {self.exported} exported, "
                f"{len(self.whole)} all pinned, {len(self.failures)} failures",
                flush=True,
            )
        # of the processor's time, as others may load the machine; again, where one is lost
        signal.setitimer(signal.ITIMER_PROF, LIMIT, 1)
        try:
            self._count(net, trial(net.source))
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        if random.Random(net.source).random() < self.onnx:
            self.exported += 1
            onnx_trial(net.source, folder / "net.onnx")

    def _count(self, net: RandomNet, result: Trial) -> None:
        if result.graph is None:
            self.whole.append((result.reasons[0] if result.reasons else "", net.source))
            return
        self.free += result.graph.layout.total
        for pinned in result.graph.pinned:
            self.pinned[_plain(pinned.reason)] += pinned.channels
        self.nets.update({_plain(pinned.reason) for pinned in result.graph.pinned})

    def report(self) -> None:
        """Prints what was pinned and why."""
        print(
            f"\n{self.number} nets in {time.monotonic() - self._started:.0f} s, {self.exported} "
            f"exported; {self.free} channels free, {self.pinned.total()} pinned; without a free "
            f"channel: {len(self.whole)} nets\n\nchannels   nets   pinned because"
        )
        for reason, channels in self.pinned.most_common(SHOWN):
            print(f"{channels:8} {self.nets[reason]:6}   {reason}")
        if self.failures:
            print("\nfailures")
        for key in self.failures:
            print(f"{1 + self.again[key]:5} x {key}")


def _plain(reason: str) -> str:
    """A reason without its numbers."""
    return re.sub(r"\d+(, \d+)*", "#", reason)


def _key(error: Exception) -> str:
    """What two failures of one cause have in common, mostly."""
    first = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, LawError):
        return _plain(re.sub(r"\d\.\de[-+]\d+", "#", first))
    frames = traceback.extract_tb(error.__traceback__)
    last = [
        frame for frame in frames if "/fxprune/" in frame.filename or "/passes/" in frame.filename
    ]
    where = f"{Path(last[-1].filename).name}, {last[-1].name}" if last else "the network itself"
    return f"{type(error).__name__} in {where}: {_plain(first)}"


def _script(source: str, error: Exception) -> str:
    """Source that repeats a failure, and its traceback as a comment."""
    chosen = error.chosen if isinstance(error, LawError) else None
    selection = "gated.best()"
    if chosen is not None:
        selection = f"Selection(torch.tensor({chosen.channels.tolist()}), {chosen.widths})"
    trace = "".join(traceback.format_exception(error, limit=-6, chain=False))
    comment = "".join(f"# {line}\n" for line in trace.splitlines())
    what = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"{source}{REPEAT.format(what=what, chosen=selection)}\n{comment}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=0, help="networks to try (1000)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="when to stop")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--onnx", type=float, default=0.01, help="share that is exported (0.01)")
    parser.add_argument("--pinned", action="store_true", help="print nets without a free channel")
    options = parser.parse_args()
    torch.set_num_threads(1)
    signal.signal(signal.SIGPROF, _hangs)
    warnings.simplefilter("ignore")  # of torch's exporter and of in-place dropout
    most = options.n or (1000 if math.isinf(options.minutes) else math.inf)
    tally = Tally(most, time.monotonic() + 60 * options.minutes, options.onnx)
    number = options.seed * 1_000_003
    with tempfile.TemporaryDirectory() as folder:
        try:
            while True:
                tally.round(number, Path(folder))
                number += 1
        except TimeUp:
            pass
    if options.pinned:
        for reason, source in tally.whole[:SHOWN]:
            print(f"# {reason}\n{source}\n")
    tally.report()
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
