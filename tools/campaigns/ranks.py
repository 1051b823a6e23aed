"""Kill or stop one of the processes of torchrun, and look at how the others end.

    python -m tools.campaigns.ranks

Right is: the others end by themselves, with one message of fxprune and no traceback of it, and a
lone process goes on with the run.
"""

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tools.campaigns.signals import MODEL, run

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
TRAIN = ["train", "a.fxprune", "--data", "digits", "--epochs", "400", "--device", "cpu"]


def workers(parent: int) -> list[int]:
    """The processes of the ranks, in their order."""
    listed = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    ranks = {}
    for child in map(int, listed):
        found = re.search(rb"\0LOCAL_RANK=(\d+)\0", Path(f"/proc/{child}/environ").read_bytes())
        if found:
            ranks[int(found[1])] = child
    return [ranks[rank] for rank in sorted(ranks)]


def trial(folder: Path, rank: int, number: int, patience: float) -> str:
    """Send a signal to one rank in the middle of a training; returns how it went."""
    log = folder / "log"
    with log.open("wb") as file:
        started = subprocess.Popen(
            [*TORCHRUN, "-m", "fxprune", *TRAIN, "--patience", str(patience)],
            cwd=folder,
            stdout=file,
            stderr=file,
        )
    while b"epoch   1" not in log.read_bytes():
        time.sleep(0.2)
        if started.poll() is not None:
            return f"it never began: {log.read_text()}"
    victim = workers(started.pid)[rank]
    began = time.monotonic()
    os.kill(victim, number)
    try:
        started.wait(timeout=patience + 120)
    except subprocess.TimeoutExpired:
        started.kill()
        return "hang"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
    said = log.read_text()
    ours = said.count("error: another process of this training ended")
    traces = len(re.findall(r'File ".*/fxprune/', said))
    return f"{time.monotonic() - began:.1f} s, {ours} messages, {traces} lines of tracebacks"


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ |= {"XDG_STATE_HOME": name, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        (folder / "model.py").write_text(MODEL)
        for what, number, patience in (
            ("killed", signal.SIGKILL, 600),
            ("stopped", signal.SIGSTOP, 10),
        ):
            for rank in (0, 1):
                (folder / "model.py").write_text(MODEL)
                for path in folder.glob("a.fxprune/*"):
                    path.unlink()
                run("instrument", "model.py", "-o", "a.fxprune", folder=folder)
                print(f"rank {rank} {what}: {trial(folder, rank, number, patience)}", flush=True)
                run(*TRAIN, "--minutes", "0", folder=folder)
        print("a lone process went on each time")


if __name__ == "__main__":
    main()
