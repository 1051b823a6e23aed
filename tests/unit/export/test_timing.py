"""Paired timing, on functions that take a known time of the processor."""

import dataclasses
import itertools
import json
import math
import time
from collections.abc import Callable

import pytest

from fxprune.errors import BudgetError
from fxprune.export import timing
from fxprune.export.timing import Effort, Quotient, Timing, compare

EASY = Effort(precision=math.inf, noisy=math.inf, patience=0.0)
LAX = Effort(precision=1e6, noisy=1e6, patience=0.0)


def busy(seconds: float) -> Callable[[], None]:
    """A function that takes so much processor time in all of its calls."""

    def call() -> None:
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass

    return call


@pytest.fixture(autouse=True)
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "BLOCK", 0.004)


def test_a_quotient_is_the_median_of_the_rounds() -> None:
    found = compare(busy(0.004), busy(0.001), threads=1, effort=EASY)
    assert found.hot.median == pytest.approx(0.25, rel=0.1)
    assert found.cold.median == pytest.approx(0.25, rel=0.1)
    assert found.hot.rounds == timing.ROUNDS
    assert found.dense[0] == pytest.approx(0.004, rel=0.1)
    assert found.compact[0] == pytest.approx(0.001, rel=0.1)
    assert Timing.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_the_first_call_of_a_turn_is_cold_and_the_last_half_is_hot() -> None:
    """A network is slowest in its first call after the other one's, and warm after six."""
    calls: list[str] = []

    def network(name: str) -> Callable[[], None]:
        def call() -> None:
            since = len(list(itertools.takewhile(name.__eq__, reversed(calls))))
            busy(0.004 if since == 0 else 0.003 if since < 6 else 0.002)()
            calls.append(name)

        return call

    found = compare(network("dense"), network("compact"), threads=1, effort=EASY)
    for hot, cold in (found.dense, found.compact):
        assert cold == pytest.approx(2 * hot, rel=0.15)


def test_it_measures_until_the_error_is_small() -> None:
    """The quotient jumps between 1/2 and 1, so that its error falls with the rounds only."""
    calls = [0]

    def restless() -> None:
        calls[0] += 1
        block = calls[0] // 7
        busy(0.001 if block % 2 else 0.002)()

    found = compare(
        busy(0.002), restless, threads=1, effort=Effort(precision=0.3, noisy=0.3, patience=60)
    )
    assert found.hot.rounds >= timing.ROUNDS
    assert found.hot.error <= 0.3
    with pytest.raises(BudgetError) as caught:
        compare(busy(0.002), restless, threads=1, effort=Effort(precision=0, noisy=0, patience=0))
    assert "cannot be measured on this machine now\n  why  after 22 rounds" in str(caught.value)
    assert "macs=0.5" in str(caught.value)


def test_several_threads_need_cores_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds count only where other programs leave as many cores as there are threads."""
    monkeypatch.setattr(timing, "_cores", lambda: 2)
    used = iter(range(10**6))
    monkeypatch.setattr(timing, "busy_seconds", lambda: 100.0 * next(used))
    with pytest.raises(BudgetError) as caught:
        compare(busy(0.001), busy(0.001), threads=2, effort=LAX)
    text = str(caught.value)
    assert "in 22 of 22 rounds other programs used the cores that 2 threads need" in text
    assert "give --threads 1" in text
    found = compare(busy(0.001), busy(0.001), threads=2, effort=EASY)
    assert not found.quiet, "a figure in any case, marked"
    monkeypatch.setattr(timing, "busy_seconds", lambda: 0.0)
    assert compare(busy(0.001), busy(0.001), threads=2, effort=LAX).threads == 2


def test_the_error_of_a_median() -> None:
    found = Quotient.of([0.4, 0.5, 0.5, 0.5, 0.6] * 20)
    assert (found.median, found.low, found.high, found.rounds) == (0.5, 0.5, 0.5, 100)
    assert found.error == 0
    wide = dataclasses.replace(found, low=0.4, high=0.6)
    assert wide.error == pytest.approx(1.57 * 0.2 / 10 / 0.5)


def test_seconds_that_all_cores_were_busy_only_rise() -> None:
    before = timing.busy_seconds()
    busy(0.05)()
    assert timing.busy_seconds() >= before >= 0
