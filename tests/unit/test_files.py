import os
import subprocess
import sys
from pathlib import Path

import pytest

from fxprune.errors import RunError
from fxprune.files import read_bytes, write_bytes
from fxprune.formats import read_json, write_json


def test_a_folder_that_takes_no_files_is_not_called_missing():
    folder = Path("/proc")
    with pytest.raises(RunError, match=r"cannot write /proc/a\.json") as caught:
        write_bytes(folder / "a.json", b"{}")
    assert ("there is no folder" in str(caught.value)) is not folder.is_dir()


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"cannot write .*\n  why  .*No space left"):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_files_have_the_rights_that_the_user_asks_for(tmp_path):
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "a", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


@pytest.mark.slow
def test_what_a_killed_writer_left_is_removed_and_a_living_one_keeps_its_own(tmp_path):
    code = """
import os, sys
from pathlib import Path
from fxprune import files
os.fsync = lambda _: (print("ready", flush=True), sys.stdin.read())
files.write_bytes(Path(sys.argv[1]), b"new")
"""
    command = [sys.executable, "-c", code, str(tmp_path / "a")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    writers = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for writer in writers:
        assert writer.stdout.readline() == b"ready\n"
    assert len(list(tmp_path.iterdir())) == 2
    writers[0].kill()
    writers[0].communicate()
    write_bytes(tmp_path / "b", b"x")
    assert len(list(tmp_path.glob(".*"))) == 1
    writers[1].communicate()
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}
    assert (tmp_path / "a").read_bytes() == b"new"


def test_a_replaced_file_keeps_its_mode_and_its_link(tmp_path):
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "a", tmp_path / "a"
    target.write_bytes(b"old")
    target.chmod(0o604)
    link.symlink_to(target)
    write_bytes(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o604
    dangling = tmp_path / "b"
    dangling.symlink_to(tmp_path / "real" / "b")
    write_bytes(dangling, b"new")
    assert (tmp_path / "real" / "b").read_bytes() == b"new"


def test_names(tmp_path):
    path = tmp_path / ("é" * 125)
    write_bytes(path, b"x")
    assert read_bytes(path) == b"x"
    for name in ("a\0b", "x" * 256):
        with pytest.raises(RunError, match="cannot write"):
            write_bytes(tmp_path / name, b"x")
        with pytest.raises(RunError, match="cannot read"):
            read_bytes(tmp_path / name)


def test_only_regular_files_are_replaced(tmp_path):
    """A link of a run led to /dev/zero, and the device was replaced by metrics."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        (tmp_path / "link").symlink_to(name)
        for path in (tmp_path / name, tmp_path / "link"):
            with pytest.raises(RunError, match="is not a regular file"):
                write_bytes(path, b"new")
        (tmp_path / "link").unlink()
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "folder").is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "pipe"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no folder .*gone\n  do   make it") as caught:
        write_bytes(tmp_path / "gone" / "file", b"")
    assert ".tmp" not in str(caught.value)
