"""Time two ONNX files beside each other, independently of fxprune: own sessions, own loops.

    python tools/bench/time_onnx.py dense.onnx compact.onnx --threads 1

*Hot* is what a loop of 100 calls sees (fewer where they take over a second), the networks' loops
in turn; *in turn* is a single call of one network after a single call of the other. Printed is
the quotient compact / dense of each, by the clock on the wall and by the processor: its median
over the rounds and its quartiles. The processor's figures say something for one thread only.
"""

import argparse
import json
import statistics
import time

import numpy as np
import onnxruntime

CALLS, SECONDS = 100, 1.0
REST = 0.2  # seconds; ONNX Runtime's threads spin for tens of milliseconds
TYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}


class Network:
    def __init__(self, path: str, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        draw = np.random.default_rng(0)
        self.inputs = {
            entry.name: draw.standard_normal(
                [size if isinstance(size, int) else 1 for size in entry.shape]
            ).astype(TYPES[entry.type])
            for entry in self.session.get_inputs()
        }

    def hot(self, calls: int) -> tuple[float, float]:
        """Loop when the threads of the other network, which spin after a call, are asleep."""
        time.sleep(REST)
        self.loop(2)
        return self.loop(calls)

    def loop(self, calls: int) -> tuple[float, float]:
        """Seconds a call, on the wall and of the processor."""
        wall, processor = time.perf_counter(), time.process_time()
        for _ in range(calls):
            self.session.run(None, self.inputs)
        return (
            (time.perf_counter() - wall) / calls,
            (time.process_time() - processor) / calls,
        )


def quotient(rounds: list[tuple[tuple[float, float], tuple[float, float]]], clock: int) -> dict:
    values = [compact[clock] / dense[clock] for dense, compact in rounds]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": round(middle, 4), "low": round(low, 4), "high": round(high, 4)}


def compare(dense: str, compact: str, threads: int, rounds: int) -> dict:
    networks = [Network(path, threads) for path in (dense, compact)]
    calls = []
    for network in networks:
        network.loop(2)
        calls.append(max(min(CALLS, int(SECONDS / network.loop(2)[0])), 3))
    loops = [(networks[0].hot(calls[0]), networks[1].hot(calls[1])) for _ in range(rounds)]
    turns = [(networks[0].loop(1), networks[1].loop(1)) for _ in range(max(5 * rounds, 30))]
    return {
        "threads": threads,
        "calls": calls,
        "rounds": rounds,
        **{
            f"{name} by {clock}": quotient(times, which)
            for name, times in (("hot", loops), ("in turn", turns))
            for which, clock in enumerate(("wall", "processor"))
        },
        "dense ms": round(1000 * statistics.median(dense[0] for dense, _ in loops), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dense")
    parser.add_argument("compact")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    print(json.dumps(compare(given.dense, given.compact, given.threads, given.rounds)))


if __name__ == "__main__":
    main()
