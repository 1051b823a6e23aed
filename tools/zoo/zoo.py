"""Sweeps the model zoos of torchvision and timm, and says what works, what does not, and why.

    python tools/zoo/zoo.py                          all networks, the small ones first
    python tools/zoo/zoo.py --only 'timm:res*'       some of them
    python tools/zoo/zoo.py --peer torch-pruning     the same networks through Torch-Pruning as well
    python tools/zoo/zoo.py --table                  writes the table again from what is known

Each network has a process of its own, with a limit of time and one of memory. Results are lines
of JSON, one a network and tool; what is there already is not done again. Networks that fail have
to be in zoo_expected.toml with the exact message: another message, or a network that passes
though it should not, ends the sweep with exit code 1. timm, and torch-pruning for the peer, have
to be installed.
"""

import argparse
import fnmatch
import json
import multiprocessing
import os
import shlex
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # the sweep holds networks to the law that the tests state

TOOLS = ("fxprune", "torch-pruning")
STAGES = ("step", "law", "onnx")
"""What can be left for another run."""
EXPECTED = Path(__file__).with_name("zoo_expected.toml")
TABLE = Path(__file__).with_name("zoo.md")

Record = dict[str, Any]


@dataclass
class Job:
    """One network that is being examined by one tool."""

    tool: str
    spec: str
    process: Any
    pipe: Connection
    began: float
    seconds: int
    memory: float

    def over(self) -> str:
        """Which limit it is over, in words; empty where it is inside all of them."""
        asleep = time.monotonic() - self.began > 20 * self.seconds
        if asleep or _processor_time(self.process.pid) > self.seconds:
            return f"it takes more than {self.seconds} s"
        if _resident(self.process.pid) > self.memory:
            return f"it takes more than {self.memory:g} GiB"
        return ""


def _processor_time(pid: int) -> float:
    """The time that a process has spent on a processor, in seconds; a busy machine adds none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident(pid: int) -> float:
    """The memory of a process in GiB."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**30


def examine(tool: str, spec: str, skip: frozenset[str], pipe: Connection) -> None:
    """What the process of one network does: all stages but those to skip."""
    import warnings

    import _paths  # noqa: F401 - the tools that all share
    import torch
    import zoo_check
    import zoo_models
    import zoo_peer
    from children import end_with_parent

    end_with_parent()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    sys.setrecursionlimit(10_000)
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    entry = next(entry for entry in zoo_models.entries() if entry.spec == spec)
    record = _Sent(pipe)
    record["torch"] = torch.__version__.partition("+")[0]
    try:
        if tool == "fxprune":
            zoo_check.examine(entry, record, skip)
        else:
            zoo_peer.examine(entry, record)
    except Exception as error:
        if "failed" not in record:
            record["failed"] = zoo_check.message(error)
    pipe.send(dict(record))  # lists in it have grown since they were sent
    pipe.send(None)


class _Sent(dict):  # type: ignore[type-arg]
    """A record whose entries go through a pipe as they are made, so that none is lost."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__()
        self.pipe = pipe

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self.pipe.send((key, value))

    def __ior__(self, other: Any) -> Any:
        for key, value in other.items():
            self[key] = value
        return self


def sweep(
    todo: list[tuple[str, str]], before: dict[tuple[str, str], Record], args: argparse.Namespace
) -> Iterator[Record]:
    """Examines networks, several at a time; yields a record of each as it ends.

    Stages that are in the record of before are not done again.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["zoo_check", "zoo_peer", "timm", "torchvision", "transformers", "ultralytics", "monai"]
    )
    waiting, running = list(todo), dict[Any, tuple[Job, Record]]()
    while waiting or running:
        while waiting and len(running) < args.jobs:
            tool, spec = waiting.pop(0)
            ours, theirs = context.Pipe(duplex=False)
            known = before.get((tool, spec), {})
            record = {} if "failed" in known or args.fresh else dict(known)
            skip = frozenset(args.skip) | record.get("stages", {}).keys()
            target = (tool, spec, skip, theirs)
            process = context.Process(target=examine, args=target, daemon=True)
            process.start()
            theirs.close()
            seconds = args.seconds if tool == "fxprune" else args.peer_seconds
            job = Job(tool, spec, process, ours, time.monotonic(), seconds, args.memory)
            running[ours] = job, {**record, "tool": tool, "spec": spec}
        for pipe in multiprocessing.connection.wait(list(running), timeout=0.5):
            job, record = running[pipe]
            if not _receive(job, record):
                del running[pipe]
                yield record
        for pipe, (job, record) in list(running.items()):
            if reason := job.over():
                job.process.kill()
                stages = list(record.get("stages", {}))
                record["failed"] = reason
                record["line"] = f"after {stages[-1]}" if stages else ""
                record["seconds"] = job.seconds
                del running[pipe]
                yield record


def _receive(job: Job, record: Record) -> bool:
    """Takes what a process has sent; False once it has ended."""
    try:
        while job.pipe.poll():
            sent = job.pipe.recv()
            if sent is None:
                job.process.join()
                record["seconds"] = round(sum(record["stages"].values()), 1)
                return False
            sent = sent if isinstance(sent, dict) else dict([sent])
            stages = {**record.get("stages", {}), **sent.get("stages", {})}
            record.update(sent, stages=stages)
    except EOFError:
        job.process.join()
        record.setdefault("failed", f"the process ended with code {job.process.exitcode}")
        return False
    return True


def known(path: Path) -> dict[tuple[str, str], Record]:
    """The records of a file of JSON lines; the last of each network and tool."""
    lines = path.read_text().splitlines() if path.exists() else []
    records = [json.loads(line) for line in lines if line.strip()]
    return {(record["tool"], record["spec"]): record for record in records}


def surprises(records: list[Record], expected: dict[str, str]) -> list[str]:
    """What the expected failures do not say; only fxprune is held to them."""
    found = []
    for record in records:
        if record["tool"] != TOOLS[0]:
            continue
        failed, wanted = record.get("failed", ""), expected.get(record["spec"], "")
        if failed != wanted:
            found.append(
                f"{record['spec']}: {failed or 'it passes'}\n    expected: {wanted or 'it passes'}"
            )
    return found


def expect(path: Path = EXPECTED) -> dict[str, str]:
    """The expected failures of fxprune by network."""
    loaded: dict[str, str] = tomllib.loads(path.read_text())["fxprune"] if path.exists() else {}
    return loaded


def accept(records: list[Record], path: Path = EXPECTED) -> None:
    """Writes the failures of these records as the expected ones; others stay."""
    done = {record["spec"]: record.get("failed", "") for record in records}
    merged = {s: m for s, m in {**expect(path), **done}.items() if m}
    head = "# Networks on which tools/zoo/zoo.py fails, with the exact message.\n\n[fxprune]\n"
    lines = [f"{json.dumps(spec)} = {json.dumps(merged[spec])}\n" for spec in sorted(merged)]
    path.write_text(head + "".join(lines))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=["*"], help="patterns of specs")
    parser.add_argument("--peer", choices=TOOLS[1:], help="this tool as well")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "zoo.jsonl")
    parser.add_argument("--fresh", action="store_true", help="do again what is known")
    parser.add_argument("--retry", action="store_true", help="do again what failed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=int, default=300, help="processor time of one network")
    parser.add_argument("--peer-seconds", type=int, default=120, help="the peer's limit")
    parser.add_argument("--memory", type=float, default=12.0, help="limit of one network, in GiB")
    parser.add_argument("--skip", nargs="*", default=[], choices=STAGES, help="for another run")
    parser.add_argument("--accept", action="store_true", help="failures become expected ones")
    parser.add_argument("--table", action="store_true", help="only write the table")
    return parser.parse_args()


def missing(record: Record, skip: list[str]) -> bool:
    """Whether stages are asked for that were skipped before."""
    if record["tool"] != TOOLS[0] or "failed" in record:
        return False
    return not set(STAGES) <= record["stages"].keys() | set(skip)


def main() -> int:
    args = arguments()
    import zoo_models
    import zoo_report

    specs = [
        entry.spec
        for entry in sorted(zoo_models.entries(), key=lambda entry: entry.millions)
        if any(fnmatch.fnmatch(entry.spec, pattern) for pattern in args.only)
    ]
    tools = TOOLS if args.peer else TOOLS[:1]
    records = known(args.out)
    todo = [
        (tool, spec)
        for tool in tools
        for spec in specs
        if args.fresh
        or (tool, spec) not in records
        or (args.retry and "failed" in records[tool, spec])
        or missing(records[tool, spec], args.skip)
    ]
    if not args.table:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        for number, record in enumerate(sweep(todo, records, args), start=1):
            records[record["tool"], record["spec"]] = record
            with args.out.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(f"[{number}/{len(todo)}] {zoo_report.line(record)}", flush=True)
    mine = [records[tool, spec] for spec in specs for tool in tools if (tool, spec) in records]
    if args.accept:
        accept([record for record in mine if record["tool"] == TOOLS[0]])
    print("\n".join(zoo_report.summary(mine)))
    if args.only == ["*"] and not args.skip:
        command = shlex.join(["python", "tools/zoo/zoo.py", *sys.argv[1:]])
        TABLE.write_text(zoo_report.page(mine, command))
    wrong = surprises(mine, expect())
    for text in wrong:
        print(f"not as expected: {text}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
