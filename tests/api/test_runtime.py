"""The driver's threads and the placement of files, without a node around them."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time

import pytest

from pyrepl.border import again, typed
from pyrepl.errors import (
    DeviceError,
    InternalError,
    InUse,
    NotFound,
    Refused,
    UsageError,
    WaitTimeout,
)
from pyrepl.runtime.driver import Driver
from pyrepl.runtime.placement import FilePlacement, make_journal, open_patiently
from pyrepl.site import Site
from tests.support.simulation import World, create_site

MIB = 1 << 20


@pytest.fixture
def driven():
    site: Site = create_site(World(), 1)
    failures: list[BaseException] = []
    driver = Driver(site, failures.append)
    yield site, driver, failures
    driver.close()


def test_calls_run_between_steps_on_one_thread(driven):
    _, driver, _ = driven
    threads = set()
    results: list[int] = []

    def body(n):
        threads.add(threading.current_thread().name)
        assert driver.call(lambda: n) == n  # from inside: at once
        return n * n

    callers = [threading.Thread(target=lambda n=n: results.append(driver.call(lambda: body(n)))) for n in range(20)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert sorted(results) == [n * n for n in range(20)] and threads == {"g-apply"}


def test_a_refusal_in_a_call_is_the_callers(driven):
    _, driver, failures = driven

    def refuse():
        raise Refused("no", reason="state")

    with pytest.raises(Refused, match="no"):
        driver.call(refuse)
    assert driver.call(lambda: 5) == 5 and not failures


def test_any_other_error_in_a_call_is_the_end(driven):
    site, driver, failures = driven

    def fail():
        raise OSError(errno.EIO, "disk")

    with pytest.raises(OSError, match="disk"):
        driver.call(fail)
    with pytest.raises(OSError, match="disk"):
        driver.call(lambda: 5)
    assert [error.errno for error in failures] == [errno.EIO]
    with pytest.raises(OSError):  # nothing is acknowledged any more
        site.window.wait_applied(99, 60)
    assert site.window.state().failed


def test_who_waits_when_it_fails_is_told(driven):
    _, driver, failures = driven
    entered, go = threading.Event(), threading.Event()
    outcomes: list[str] = []

    def first():
        entered.set()
        go.wait(60)
        raise ZeroDivisionError

    def call(function):
        try:
            driver.call(function)
            outcomes.append("done")
        except ZeroDivisionError:
            outcomes.append("failed")

    callers = [threading.Thread(target=call, args=(function,)) for function in (first, int, int)]
    callers[0].start()
    assert entered.wait(60)
    for caller in callers[1:]:
        caller.start()
    while len(driver._calls) < 2:
        time.sleep(0.001)
    go.set()
    for caller in callers:
        caller.join(60)
    assert outcomes == ["failed"] * 3 and len(failures) == 1


def test_a_failing_step(driven, monkeypatch):
    site, driver, failures = driven
    done = threading.Event()
    driver._on_failure = lambda error: (failures.append(error), done.set())
    monkeypatch.setattr(site, "step", lambda: 1 / 0)
    driver.hurry()
    assert done.wait(60) and isinstance(failures[0], ZeroDivisionError)
    with pytest.raises(OSError):
        site.window.wait_applied(99, 60)


def test_a_window_that_fails_by_itself(driven):
    site, driver, failures = driven
    done = threading.Event()
    driver._on_failure = lambda error: (failures.append(error), done.set())
    site.window.fail(errno.ENOSPC)
    assert done.wait(60) and failures[0].errno == errno.ENOSPC


def test_a_close_that_meets_an_error_gives_back_the_rest_and_ends_the_threads(driven, monkeypatch):
    site, driver, _ = driven

    def fails():
        raise OSError(errno.EIO, "an input/output error")

    monkeypatch.setattr(site.applier.workshop, "abandon", fails)
    errors: list[BaseException] = []

    def close():
        try:
            driver.close()
        except OSError as error:
            errors.append(error)

    closing = threading.Thread(target=close, daemon=True)
    closing.start()
    closing.join(20)
    assert not closing.is_alive() and [error.errno for error in errors] == [errno.EIO]
    assert site.window.state().failed == errno.ESHUTDOWN and not any(thread.is_alive() for thread in driver._threads)


def test_after_close(driven):
    _, driver, failures = driven
    driver.close()
    with pytest.raises(Refused) as caught:
        driver.call(lambda: 5)
    assert caught.value.reason == "closed" and not failures


# ---- placement


@pytest.fixture
def placement(tmp_path):
    made = FilePlacement(tmp_path / "a" / "b" / "c", alignment=4096)
    yield made
    made.close()


def test_own_files(placement):
    path = placement.create("data", 7, 64 * 1024)
    assert os.path.basename(path) == "7-data.img" and os.stat(path).st_blocks == 0
    with placement.open(path, 64 * 1024) as device:
        device.write(0, b"x" * 4096)
        device.flush()
    placement.resize(path, 128 * 1024)
    placement.resize(path, 64 * 1024)  # never shorter
    with placement.open(path, 256 * 1024) as device:
        assert device.size == 256 * 1024 and device.read(0, 4096) == b"x" * 4096
    assert placement.create("data", 7, 4096) == path and os.path.getsize(path) == 4096  # what a crash left is emptied
    with open(path, "rb") as file:
        assert not any(file.read())
    other = placement.create("x" * 255, 8, 4096)
    assert placement.sweep({path}) == [other] and os.listdir(placement.folder) == ["7-data.img"]
    placement.remove(path)
    placement.remove(path)
    assert os.listdir(placement.folder) == []


def test_given_devices(placement, tmp_path):
    path = str(tmp_path / "given")
    with open(path, "wb") as file:
        file.truncate(MIB)
    placement.take(path)
    with pytest.raises(InUse):
        FilePlacement(tmp_path / "other", alignment=4096).take(path)
    with pytest.raises(OSError) as caught:
        open_patiently(path, 0.05)
    assert caught.value.errno == errno.EBUSY
    placement.give_back(path)
    placement.give_back(path)
    with placement.open(path, MIB) as device:
        assert device.size == MIB
    with pytest.raises(DeviceError, match="give it back its size"):
        placement.open(path, MIB + 1)
    with pytest.raises(Refused, match="make it larger first"):
        placement.resize(path, MIB + 1)
    placement.resize(path, MIB)
    placement.remove(path)
    assert os.path.getsize(path) == MIB


def test_patience(placement, tmp_path):
    path = str(tmp_path / "busy")
    with open(path, "wb") as file:
        file.truncate(MIB)
    holder = os.open(path, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    timer = threading.Timer(0.1, os.close, (holder,))
    timer.start()
    open_patiently(path, 10).close()
    timer.join()
    with pytest.raises(FileNotFoundError):
        open_patiently(str(tmp_path / "none"), 10)


def test_a_journal_that_cannot_be_made_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(OSError, match="full"):
        make_journal(str(tmp_path / "j"), MIB)
    assert os.listdir(tmp_path) == []


# ---- the border


@pytest.mark.parametrize(("error", "kind", "words"), [
    (TimeoutError("x"), WaitTimeout, "the time given is over"), (OSError(errno.ESHUTDOWN, "x"), Refused, "closed"),
    (OSError(errno.EBUSY, "busy", "/dev/x"), InUse, "/dev/x: busy"), (OSError(errno.EROFS, "x"), Refused, "read-only"),
    (OSError(errno.ENOENT, "absent", "/dev/x"), DeviceError, "check the path"), (OSError(errno.EACCES, "x"), DeviceError, "run as"),
    (OSError(errno.ENOSPC, "x"), DeviceError, "free some"), (OSError(errno.EIO, "broken", "/dev/x"), DeviceError, "/dev/x: broken"),
    (OSError("words only"), DeviceError, "words only"), (KeyError("gone"), NotFound, "doing: gone"), (LookupError(), NotFound, "doing"),
    (ValueError("bad"), UsageError, "bad"), (TypeError("bad"), UsageError, "bad"), (OverflowError("bad"), UsageError, "bad"),
    (BufferError("bad"), UsageError, "bad"), (ZeroDivisionError("bug"), InternalError, "ZeroDivisionError: bug"),
])
def test_every_error_becomes_a_typed_one(error, kind, words):
    made = typed(error, "doing", group="g")
    assert type(made) is kind and words in str(made) and str(made).startswith("doing") and made.context["group"] == "g"
    assert typed(made, "again") is made
    copied = again(made)
    assert copied is not made and type(copied) is kind and str(copied) == str(made) and copied.context == made.context
    assert copied.retryable == made.retryable
    if isinstance(error, OSError) and kind is DeviceError:
        assert made.errno == copied.errno == error.errno and made.filename == error.filename
