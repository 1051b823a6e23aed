"""A SPEC becomes a network with inputs that fit it, or one message that says what to do."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from fxprune.cli.spec import Source, resolve
from fxprune.errors import SpecError

NET = """
import torch
from torch import nn


def build_model(width=4):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(width * 36, 2))


class Wide(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 32, 1))


ready = nn.Linear(5, 5)
number = 3
example_inputs = torch.zeros(7, 3, 8, 8)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Each test stands in a folder of its own; sys.path and sys.modules are put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith(("_fxprune_source_", "mine")):
            del sys.modules[name]


def write(name: str, text: str) -> None:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def shapes(found: Source) -> list[tuple[int, ...]]:
    return [tuple(item.shape) for item in found.example_inputs]


def refusal(spec: str, shape: str | None = None) -> str:
    with pytest.raises(SpecError) as caught:
        resolve(spec, shape)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_a_file_gives_build_model_and_its_inputs() -> None:
    write("model.py", NET)
    found = resolve("model.py")
    assert found.name == "model"
    assert shapes(found) == [(7, 3, 8, 8)]
    assert found.model(*found.example_inputs).shape == (7, 2)


def test_input_goes_before_the_inputs_of_the_file() -> None:
    write("model.py", NET)
    assert shapes(resolve("model.py", "3x16x24")) == [(2, 3, 16, 24)]
    write("two.py", "from torch import nn\nmodel = nn.Bilinear(24, 10, 2)\n")
    assert shapes(resolve("two.py", "16x24,10")) == [(2, 16, 24), (2, 10)]


def test_a_file_may_hold_the_module_itself() -> None:
    write("model.py", "from torch import nn\nmodel = nn.Linear(3, 4)\n")
    found = resolve("model.py", "3")
    assert isinstance(found.model, nn.Linear)


@pytest.mark.parametrize(
    ("name", "kind"), [("Wide", "Wide"), ("ready", "Linear"), ("build_model", "Sequential")]
)
def test_a_name_in_a_file(name: str, kind: str) -> None:
    write("sub/nets.py", NET)
    found = resolve(f"sub/nets.py:{name}")
    assert type(found.model).__name__ == kind
    assert found.name == f"nets-{name}"


def test_a_name_in_a_module() -> None:
    write("mine/nets.py", NET)
    found = resolve("mine.nets:Wide")
    assert type(found.model).__name__ == "Wide"
    assert (found.name, shapes(found)) == ("nets-Wide", [(7, 3, 8, 8)])


def test_options_reach_the_factory() -> None:
    write("model.py", NET)
    found = resolve("model.py{width=9}")
    assert found.model[0].out_channels == 9
    assert resolve("torchvision:squeezenet1_1{num_classes=7}").model.num_classes == 7


def test_a_relative_file_starts_from_base(folder: Path) -> None:
    write("here/model.py", NET)
    assert resolve("model.py", base=folder / "here").name == "model"


def test_example_inputs_may_be_a_function_or_a_list() -> None:
    head = "import torch\nfrom torch import nn\nmodel = nn.Identity()\n"
    write("a.py", head + "def example_inputs():\n    return torch.zeros(1, 2), torch.zeros(1, 3)\n")
    write("b.py", head + "example_inputs = [torch.zeros(1, 2)]\n")
    assert shapes(resolve("a.py")) == [(1, 2), (1, 3)]
    assert shapes(resolve("b.py")) == [(1, 2)]


def test_a_file_finds_its_neighbours_but_hides_nothing(folder: Path) -> None:
    write("net/parts.py", "from torch import nn\ndef head():\n    return nn.Linear(2, 2)\n")
    write("net/colorsys.py", "raise RuntimeError('this file is not the standard library')\n")
    write("net/model.py", "import parts\ndef build_model():\n    return parts.head()\n")
    sys.modules.pop("colorsys", None)
    assert isinstance(resolve("net/model.py", "2").model, nn.Linear)
    import colorsys

    assert hasattr(colorsys, "rgb_to_hsv")
    assert str(folder / "net") == sys.path[-1]
    del sys.modules["parts"]


def test_what_a_file_prints_does_not_mix_with_the_output(
    capsys: pytest.CaptureFixture[str],
) -> None:
    write("model.py", "from torch import nn\nprint('hello')\nmodel = nn.Linear(3, 4)\n")
    resolve("model.py", "3")
    out, err = capsys.readouterr()
    assert (out, err) == ("", "hello\n")


def test_torchvision_and_timm() -> None:
    found = resolve("torchvision:resnet18")
    assert (found.name, shapes(found)) == ("resnet18", [(2, 3, 224, 224)])
    assert shapes(resolve("torchvision:resnet18", "3x32x32")) == [(2, 3, 32, 32)]
    assert shapes(resolve("torchvision:r3d_18")) == [(2, 3, 16, 112, 112)]
    assert shapes(resolve("torchvision:raft_small")) == 2 * [(2, 3, 128, 128)]
    found = resolve("timm:resnet10t")
    assert (found.name, shapes(found)) == ("resnet10t", [(2, 3, 176, 176)])


def test_the_same_spec_gives_the_same_inputs() -> None:
    one, two = (resolve("torchvision:squeezenet1_1", "3x40x40") for _ in range(2))
    assert torch.equal(one.example_inputs[0], two.example_inputs[0])


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("nowhere.py", ["there is no file", "nowhere.py"]),
        ("modle.py", ["there is no file", "did you mean model.py?"]),
        ("resnet18", ["cannot read the SPEC 'resnet18'", "write torchvision:resnet18"]),
        ("", ["cannot read the SPEC ''", "model.py:factory"]),
        ("model.py:nothing", ["model.py has no nothing", "model.py:NAME", "build_model, Wide"]),
        ("model.py:wide", ["model.py has no wide", "did you mean Wide?"]),
        ("model.py:number", ["number in model.py is an int"]),
        ("model.py:ready{a=1}", ["ready in model.py is a module: it takes no options"]),
        (
            "model.py{depth=9}",
            ["does not take these options", "given: depth=9", "'depth'", "(width=4)"],
        ),
        ("model.py:Wide{depth=9}", ["given: depth=9", "leave the braces out"]),
        ("model.py{width}", ["cannot read the options"]),
        ("model.py{width=", ["cannot read"]),
        ("mine_not.nets:f", ["there is no module mine_not"]),
        ("torch.nothing:f", ["there is no module torch.nothing"]),
        ("torchvision:resnet81", ["torchvision has no network 'resnet81'", "did you mean"]),
        ("timm:resnet10q", ["timm has no network 'resnet10q'", "did you mean"]),
    ],
)
def test_a_spec_that_names_nothing(spec: str, expected: list[str]) -> None:
    write("model.py", NET)
    text = refusal(spec)
    assert [part for part in expected if part not in text] == []


def test_a_file_without_a_factory() -> None:
    write("model.py", "from torch import nn\nimport math\nx = 3\n")
    assert "model.py has no build_model and no model" in refusal("model.py", "3")
    write("other.py", "from torch import nn\nclass Net(nn.Module):\n    pass\n")
    assert "write other.py:NAME with one of Net" in refusal("other.py", "3")


def test_a_factory_that_raises_is_told_with_its_own_line() -> None:
    write(
        "model.py",
        "from torch import nn\n\ndef build_model():\n    return nn.Conv2d(3, 5, 3, groups=2)\n",
    )
    text = refusal("model.py", "3x8x8")
    assert "the factory of model.py raises" in text
    assert "at   model.py:4   return nn.Conv2d(3, 5, 3, groups=2)" in text
    assert "why  ValueError: in_channels must be divisible by groups" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import not_there\n", ["at   model.py:1", "ModuleNotFoundError", "not_there"]),
        ("x = = 1\n", ["at   model.py:1   x = = 1", "SyntaxError"]),
        ("import sys\nsys.exit(3)\n", ["at   model.py:2", "SystemExit: 3"]),
    ],
)
def test_a_file_that_cannot_be_imported(text: str, expected: list[str]) -> None:
    write("model.py", text)
    said = refusal("model.py", "3")
    assert "model.py cannot be imported" in said
    assert [part for part in expected if part not in said] == []


def test_a_module_whose_own_import_is_missing_is_not_called_missing_itself() -> None:
    write("mine/broken.py", "import not_there\n")
    text = refusal("mine.broken:f", "3")
    assert "the module mine.broken cannot be imported" in text
    assert "not_there" in text


def test_a_factory_that_returns_no_module() -> None:
    write("model.py", "def build_model():\n    return 3\n")
    assert "the factory of model.py made an int" in refusal("model.py", "3")


def test_no_shape_is_known() -> None:
    write("model.py", "from torch import nn\nmodel = nn.Linear(3, 4)\n")
    text = refusal("model.py")
    assert "no shape is known" in text
    assert "--input 3x32x32" in text


@pytest.mark.parametrize("value", ["3", "[]", "(1, 2)", "{'x': 1}"])
def test_example_inputs_that_are_no_tensors(value: str) -> None:
    write("model.py", f"from torch import nn\nmodel = nn.Linear(3, 4)\nexample_inputs = {value}\n")
    assert "do   make it a tensor, a tuple of tensors" in refusal("model.py")


def test_example_inputs_that_raise() -> None:
    write(
        "model.py",
        "from torch import nn\nmodel = nn.Linear(3, 4)\ndef example_inputs():\n    1 / 0\n",
    )
    text = refusal("model.py")
    assert "example_inputs of model.py raises" in text
    assert "at   model.py:4   1 / 0" in text


@pytest.mark.parametrize("text", ["", "3x", "abc", "3x-1", "0x32x32", "3x32.5", "3 32 32", "nan"])
def test_an_input_that_is_no_shape(text: str) -> None:
    write("model.py", NET)
    assert f"cannot read the input shape {text!r}" in refusal("model.py", text)


def test_an_input_that_is_too_large() -> None:
    write("model.py", NET)
    assert "does not fit into memory" in refusal("model.py", "3x9999999x9999999")
    assert "does not fit into memory" in refusal("model.py", "3x99999999999999999999999")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("os:system{command='touch called'}", "system in os is a builtin_function_or_method"),
        ("subprocess:run{args='touch called'}", "a function of Python's standard library"),
        ("mine.odd:Plain", "a class of Plain, no network"),
        ("mine.odd:number", "a function that returns int"),
        ("mine.odd:nothing", "a function that returns None"),
        ("mine.odd:run", "a function of Python's standard library"),
    ],
)
def test_what_makes_no_network_is_not_called(spec: str, expected: str, folder: Path) -> None:
    called = "    open('called', 'w')\n"
    write(
        "mine/odd.py",
        "import functools, subprocess\nrun = functools.partial(subprocess.run, 'touch called')\n"
        f"class Plain:\n  def __init__(self):\n{called}"
        f"def number() -> int:\n{called}def nothing() -> None:\n{called}",
    )
    text = refusal(spec, "3")
    assert expected in text
    assert "do   name a class of a torch.nn.Module, or a function that returns one" in text
    assert not (folder / "called").exists()


def test_other_ways_to_write_a_factory() -> None:
    write(
        "model.py",
        "import functools\nfrom torch import nn\nfrom torchvision.models import resnet18\n"
        "small = functools.partial(resnet18, num_classes=3)\n"
        "@functools.lru_cache\ndef cached():\n    return nn.Linear(3, 3)\n"
        "class Net(nn.Linear):\n  @classmethod\n  def of(cls) -> 'Net':\n    return cls(3, 3)\n"
        "of = Net.of\nshort = lambda: nn.Linear(3, 3)\n",
    )
    for name in ("small", "resnet18", "cached", "of", "short"):
        resolve(f"model.py:{name}", "3x32x32")


def test_commas_between_the_sizes_of_one_input() -> None:
    write("model.py", NET)
    text = refusal("model.py", "3,8,8")
    assert text.startswith("--input gives the shapes of 3 inputs\n  why  Sequential.forward takes")
    assert "write x between the sizes of an input, such as 3x32x32" in text


def test_an_option_that_a_library_does_not_take() -> None:
    text = refusal("torchvision:resnet18{classes=10}")
    assert "unexpected keyword argument 'classes'" in text
    assert text.endswith("\n  do   check the options in braces: classes")


def test_files_and_folders_that_are_no_code() -> None:
    write("net.onnx", "")
    assert "a network is built by Python code" in refusal("net.onnx")
    write("net.fxprune/plan.json", "{}")
    assert "it is a run, which train, export and report take" in refusal("net.fxprune")


def test_a_file_that_is_no_text_has_no_line_of_pythons_own() -> None:
    Path("bytes.py").write_bytes(b"\xff\xfe\x00")
    assert "\n  at " not in refusal("bytes.py")
