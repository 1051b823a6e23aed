"""One writer at a time, also where the file system has no locks: there that is said."""

import errno
import fcntl
import os
import warnings
from pathlib import Path

import pytest

from fxprune.errors import FxpruneWarning, RunError
from fxprune.files import scratch, write_bytes
from fxprune.runs.writer import LOCK, only_writer, require_lock


@pytest.fixture(params=[errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def without_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: int) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", fails)


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    told = pytest.raises(RunError, match=f"why  process {os.getpid()} on ")
    with only_writer(tmp_path), told, only_writer(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("without_locks")
def test_a_file_system_without_locks_is_told(tmp_path: Path) -> None:
    told = r"has no locks \(.*\): nothing keeps .* run$"
    with pytest.warns(FxpruneWarning, match=told), only_writer(tmp_path):
        left = (tmp_path / LOCK).read_bytes()
    (tmp_path / LOCK).write_bytes(left)  # of a killed process
    told = f"did not end: process {os.getpid()} on .*, since "
    with pytest.warns(FxpruneWarning, match=told), only_writer(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("without_locks")
def test_files_are_written_without_locks(tmp_path: Path) -> None:
    with warnings.catch_warnings(action="error"):
        write_bytes(tmp_path / "a", b"x")
        with scratch() as folder:
            write_bytes(folder / "b", b"y")
    assert not folder.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_is_moved_meanwhile_is_noticed(tmp_path: Path) -> None:
    run, other = tmp_path / "a", tmp_path / "b"
    with only_writer(run):
        require_lock(run)
        run.rename(other)
        with pytest.raises(RunError, match="is not the folder any more in which this began"):
            require_lock(run)
        run.mkdir()
        (run / LOCK).write_text('{"pid": 1, "host": "other", "since": "now"}')
        with pytest.raises(RunError, match="is not the folder any more in which this began"):
            require_lock(run)
    assert (run / LOCK).exists(), "it is another process's"
