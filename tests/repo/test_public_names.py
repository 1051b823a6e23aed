"""The public names and their signatures; a change here is a change for users (docs: Releases)."""

import inspect

import pytest

import fxprune
from fxprune import errors

PUBLIC = {
    "ChannelGraph": None,
    "GatedModule": None,
    "Pruned": None,
    "analyze": ("model", "example_inputs"),
    "attach": ("gated", "optimizer", "schedule", "steps"),
    "export_onnx": ("model", "example_inputs", "path", "inputs", "reference", "notes"),
    "fold": ("compact",),
    "follow": ("average", "gated"),
    "instrument": (
        "model",
        "example_inputs",
        "policy",
        "budget",
        "round_to",
        "every",
        "seed",
    ),
    "load": ("path", "model"),
    "prune": (
        "model",
        "example_inputs",
        "data",
        "macs",
        "params",
        "keep",
        "latency",
        "speedup",
        "budget",
        "max_drop",
        "policy",
        "options",
        "round_to",
        "watcher",
    ),
    "reference_of": ("gated", "dense"),
    "save": ("gated", "path"),
    "shrink": ("gated", "passes"),
    "try_export": ("gated",),
    "zeroed": ("gated", "model"),
}


def test_the_public_names_are_these() -> None:
    assert fxprune.__all__ == sorted(PUBLIC)
    assert set(PUBLIC) <= set(dir(fxprune))


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_found_where_it_is_used_first(name: str) -> None:
    assert getattr(fxprune, name).__name__ == name


@pytest.mark.parametrize("name", [name for name, given in PUBLIC.items() if given])
def test_a_public_function_keeps_the_names_and_order_of_its_parameters(name: str) -> None:
    given = tuple(inspect.signature(getattr(fxprune, name)).parameters)
    assert given[: len(PUBLIC[name] or ())] == PUBLIC[name]


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'fxprune' has no attribute 'prun'"):
        getattr(fxprune, "prun")  # noqa: B009


def test_the_errors_and_their_exit_codes_are_these() -> None:
    found = {
        name: value.exit_code
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.FxpruneError)
    }
    refused = {name for name, code in found.items() if code == 2}
    assert {name: code for name, code in found.items() if code != 2} == {
        "ExportError": 1,
        "ParityError": 1,
        "PassError": 1,
    }
    assert refused >= {
        "BudgetError",
        "DataError",
        "FxpruneError",
        "GateError",
        "ModelError",
        "OptionError",
        "RunError",
        "SpecError",
        "TraceError",
    }
