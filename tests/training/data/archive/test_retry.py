"""Storage that fails for a while is read again, storage that keeps failing is named, other errors are final."""

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dataset_files import encoded, npy, write_folder, write_zip
from PIL import Image

from edm2.training.data.archive import retry as retry_module
from edm2.training.data.archive.files import StorageError
from edm2.training.data.archive.retry import PAUSES, TRANSIENT, is_transient, retry
from edm2.training.data.dataset import DatasetError, open_dataset


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Nobody sleeps; the pauses are put down here."""
    passed: list[float] = []
    monkeypatch.setattr(retry_module.time, "sleep", passed.append)
    return passed


def failing(times: int, code: int = errno.EIO) -> Callable[[], str]:
    """Fails so many times, then answers."""
    left = iter(range(times))

    def read() -> str:
        if next(left, None) is not None:
            raise OSError(code, os.strerror(code))
        return "answer"

    return read


@pytest.mark.parametrize("code", sorted(TRANSIENT), ids=errno.errorcode.get)
@pytest.mark.parametrize("times", range(len(PAUSES) + 1))
def test_pauses_double_until_the_error_is_gone(times: int, code: int, pauses: list[float]):
    assert retry(failing(times, code), "a file") == "answer"
    assert pauses == [2**i for i in range(times)]


def test_it_ends_after_about_a_minute_and_the_log_says_once_that_it_retries(pauses: list[float], caplog):
    with pytest.raises(OSError, match="Input/output error, at each of 7 attempts in 0 seconds") as failure:
        retry(failing(100), "a file")
    assert is_transient(failure.value)
    assert sum(pauses) == 63
    [record] = caplog.records
    assert (record.levelno, record.getMessage()) == (
        logging.WARNING,
        "a file: Input/output error; trying again for 63 seconds",
    )


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "no"), PermissionError(errno.EACCES, "no"),
                                   ValueError("damaged"), OSError("without a number")])  # fmt: skip
def test_other_errors_are_final_at_once(error: Exception, pauses: list[float]):
    def read() -> None:
        raise error

    with pytest.raises(type(error)):
        retry(read, "a file")
    assert not pauses
    assert not is_transient(error)


# ------------------------------------------------------------------------------------------------ through a dataset


ATTEMPTS = len(PAUSES) + 1


@pytest.fixture(params=[write_folder, write_zip], ids=["folder", "zip"])
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Three images, of which number k is full of k."""
    images = {f"{k}.png": encoded(Image.new("L", (4, 4), k)) for k in range(3)}
    return request.param(tmp_path / {write_folder: "data", write_zip: "data.zip"}[request.param], images)


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Makes the next reads fail, in the ways in which folders and ZIPs read."""
    left = {"times": 0, "code": 0}
    pread, fstat = os.pread, os.fstat

    def failing_now(function: Callable) -> Callable:
        def called(*arguments: object) -> object:
            if left["times"]:
                left["times"] -= 1
                raise OSError(left["code"], os.strerror(left["code"]))
            return function(*arguments)

        return called

    monkeypatch.setattr(os, "pread", failing_now(pread))
    monkeypatch.setattr(os, "fstat", failing_now(fstat))
    return lambda times, code=errno.ESTALE: left.update(times=times, code=code)


def test_a_dataset_is_opened_and_read_when_the_storage_is_back(data: Path, storage):
    storage(2)
    dataset = open_dataset(data)
    storage(3)
    assert dataset.images([2])[0].unique().tolist() == [2]


def test_storage_that_stays_away_is_named_with_file_and_index(data: Path, storage):
    dataset = open_dataset(data)
    storage(ATTEMPTS)
    with pytest.raises(StorageError) as failure:
        dataset.images([1])
    line = str(failure.value)
    assert line.startswith(f"{data}/1.png: cannot be read: ")
    assert line.endswith("Stale file handle, at each of 7 attempts in 0 seconds (index 1)")


def test_a_stale_handle_is_given_up_and_a_zip_on_storage_that_stays_away_not_called_damaged(tmp_path: Path, storage):
    """A network file system refuses a handle for ever; a file that is opened anew it may hand out."""
    data = write_zip(tmp_path / "data.zip", {"1.npy": npy(np.zeros((1, 2, 2), dtype=np.uint8))})
    dataset = open_dataset(data)
    before = dataset._files._file
    storage(1)
    dataset.images([0])
    assert dataset._files._file is not before
    storage(ATTEMPTS)
    with pytest.raises(DatasetError, match=r"data\.zip: cannot be (read|opened)") as failure:
        open_dataset(data)
    assert "copy or write it anew" not in str(failure.value)
