"""``pyrepld``: a node as a service. Opens it, listens, says that it is ready, ends on a signal.

    SIGTERM, SIGINT   no more requests; journals are applied, checkpoints taken; the end
    SIGHUP            the configuration is read again, and what can be taken over is

Decides start and end of the process, and what a reload takes over. Configuration is ``config``, requests are
``control``, words for systemd ``notify``.

Output: one JSON object per line on stdout:
    {"event": "ready", "pid": ..., "listening": ["127.0.0.1:7788"], "groups": [...], "control": ..., "nbd": [...],
     "metrics": ...}
    {"event": "stopping", "signal": "SIGTERM"}
    {"event": "stopped"}
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import resource
import signal
import stat
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click
import msgspec

from pyrepl.errors import PyreplError, UsageError
from pyrepl.runtime.streams import stand_in
from pyrepl.service.notify import Notifier

if TYPE_CHECKING:
    from pyrepl.node import Node
    from pyrepl.service.config import Config
    from pyrepl.service.serving import Serving

_log = logging.getLogger("pyrepl.daemon")

SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
EXTEND_EVERY = 2.0  # seconds between two requests for more time, while a start or a stop goes on
EXTEND_BY = 30.0  # seconds that each asks for
STUCK = 60.0  # seconds without a block read or written after which no more is asked for
_PR_SET_DUMPABLE = 4  # linux/prctl.h
LOOK = 1.0  # seconds between two looks at the node's health, where no watchdog asks for more


def _say(**what: object) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(what) + b"\n")
    sys.stdout.buffer.flush()


def _leave_no_core() -> None:
    """What passes through this process belongs on no other disk, and is nobody's to look at."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
        _log.warning("this process can be traced by others of its user: PR_SET_DUMPABLE is refused")


class Daemon:
    """One run of the process.

    Args:
        config: what to run.
        file: where it was read; None: from the command line, there is nothing to reload.
    """

    def __init__(self, config: Config, file: str | None) -> None:
        self._config = config
        self._file = file
        self._notifier = Notifier()

    def run(self) -> None:
        """Runs until SIGTERM or SIGINT, then closes the node.

        Raises:
            PyreplError: it cannot start, or a group failed while it was closed.
        """
        from pyrepl.node import Node
        from pyrepl.service import logs
        from pyrepl.service.serving import Serving

        logs.start(self._config.log.level)
        _leave_no_core()
        self._check_folder()
        self._notifier.status(f"opening {self._config.state}")
        with self._taking_long():
            node = Node.open(
                self._config.state, self._config.create, name=self._name_to_give(), hooks=self._config.hooks_of
            )
        try:
            self._check_name(node.name)
            serving = Serving(node, self._config)
            try:
                self._tell_ready(node, serving)
                number = self._until_told(node, serving)
                _say(event="stopping", signal=signal.Signals(number).name)
                _log.info("stopping: %s", signal.Signals(number).name)
                self._notifier.stopping()
            finally:
                serving.stop()
        finally:
            with self._taking_long():
                node.close()
        _say(event="stopped")
        _log.info("stopped")
        self._notifier.close()

    # ---- inside

    def _name_to_give(self) -> str | None:
        return self._config.name if self._config.create else None

    def _check_folder(self) -> None:
        """What stands in it says which files and devices this process opens."""
        state = self._config.state
        try:
            mode = os.stat(state).st_mode
        except OSError:
            return  # there is none yet, or whoever opens it says why not
        if mode & stat.S_IWOTH:
            raise UsageError(f"the node's folder {state}: everybody may change it: chmod o-w {state}", path=state)

    def _check_name(self, name: str) -> None:
        if self._config.name not in (None, name):
            raise UsageError(
                f"the node in {self._config.state} is called {name!r}, the configuration says {self._config.name!r}: a "
                f"node keeps its name; correct one of name and state",
                name=name,
            )

    def _tell_ready(self, node: Node, serving: Serving) -> None:
        groups = [{"name": group.name, "state": group.state} for group in node.groups]
        _say(event="ready", pid=os.getpid(), groups=groups, **serving.about())
        _log.info("node %s is ready: %s", node.name, _counted(len(node.groups)))
        self._notifier.ready()

    def _until_told(self, node: Node, serving: Serving) -> int:
        """Serves until a signal says that it is over; the signal."""
        from pyrepl.service.health import Health

        watchdog = self._notifier.watchdog_seconds
        look = min(LOOK, watchdog / 2) if watchdog is not None else LOOK
        health = Health(node, max(watchdog or 0.0, 5.0))
        said: list[str] = []
        try:
            while True:
                told = signal.sigtimedwait(SIGNALS, look)
                # CPython gives whatever stood in memory if this process was stopped (SIGSTOP, a debugger, a frozen
                # cgroup) until the time was over: that is no signal.
                number = told.si_signo if told is not None and told.si_signo in SIGNALS else None
                if number == signal.SIGHUP:
                    self._reload(serving)
                elif number is not None:
                    return number
                serving.look()
                hanging = health.hanging()
                if not hanging:
                    self._notifier.alive()
                if hanging != said:
                    said = hanging
                    level = logging.ERROR if hanging else logging.INFO
                    _log.log(level, "groups that do not answer: %s", ", ".join(hanging) or "none")
                self._notifier.status(_summary(node, hanging, serving.parted))
        finally:
            health.stop()

    def _reload(self, serving: Serving) -> None:
        from pyrepl.service.config import RELOADABLE, Config, frozen_changes, load

        self._notifier.reloading()
        try:
            if self._file is None:
                _log.warning("SIGHUP: this daemon was started without a configuration file, there is nothing to read")
                return
            fresh = load(self._file)
            frozen, problems = frozen_changes(self._config, fresh), serving.take_over(fresh)
            for key in frozen:
                _log.warning("SIGHUP: %s has changed, which needs a restart of the daemon", key)
            for problem in problems:
                _log.error("SIGHUP: not taken over: %s", problem)
            kept = {key: getattr(self._config, key) for key in Config.__struct_fields__ if key not in RELOADABLE}
            self._config = msgspec.structs.replace(fresh, **kept)
            missing = len(frozen) + len(problems)
            but = f", but for {missing} {'thing' if missing == 1 else 'things'} named above" if missing else ""
            _log.info("SIGHUP: %s was taken over%s", self._file, but)
        except PyreplError as error:
            _log.error("SIGHUP: nothing is taken over, all goes on as before: %s", error)
        finally:
            self._notifier.ready()

    @contextlib.contextmanager
    def _taking_long(self) -> Iterator[None]:
        """Meanwhile systemd is asked for patience: opening redoes a journal, closing applies one. Not for ever: a disk
        that hangs moves no block, and then systemd's own limits hold."""
        over = threading.Event()

        def ask() -> None:
            blocks, since = _blocks(), time.monotonic()
            while not over.is_set():
                now, moved = time.monotonic(), _blocks()
                if moved != blocks:
                    blocks, since = moved, now
                if now - since < STUCK:
                    self._notifier.extend(EXTEND_BY)
                    self._notifier.alive()
                over.wait(min(EXTEND_EVERY, (self._notifier.watchdog_seconds or EXTEND_EVERY) / 2))

        thread = threading.Thread(target=ask, name="pyrepl-extend", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def _blocks() -> int:
    """Blocks that this process has read and written so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_inblock + usage.ru_oublock


def _counted(groups: int) -> str:
    return "1 group" if groups == 1 else f"{groups} groups"


def _summary(node: Node, hanging: list[str], parted: list[str]) -> str:
    """One line for ``systemctl status``."""
    groups = node.groups
    failed = [group.name for group in groups if group.fault is not None]
    parts = [_counted(len(groups))]
    if failed:
        parts.append(f"failed: {', '.join(failed)}")
    if parted:
        parts.append(f"split brain: {', '.join(parted)}")
    if hanging:
        parts.append(f"not answering: {', '.join(hanging)}")
    return "; ".join(parts)


def _from_flags(state: str, listen: tuple[str, ...], create: bool, socket: str, insecure: bool) -> Config:
    from pyrepl.service.config import Config, ControlTable, mistakes

    config = Config(
        state=os.path.abspath(state),
        create=create,
        listen=listen,
        insecure=insecure,
        control=ControlTable(socket=os.path.abspath(socket) if socket else ""),
    )
    for mistake in mistakes(config):
        raise UsageError(f"{'.'.join(str(part) for part in mistake.path)}: {mistake}")
    return config


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", "file", metavar="FILE", help="Run by this configuration; docs/daemon.md has all its keys.")
@click.option("--check", is_flag=True, help="With --config: only say whether it is right, with files that it names.")
@click.option("--state", metavar="DIR", help="Without a configuration: the node's folder.")
@click.option(
    "--listen", multiple=True, metavar="HOST:PORT", help="Take connections of primaries here; port 0: any. Repeatable."
)
@click.option("--socket", default="", metavar="PATH", help="Without a configuration: the control socket; else none.")
@click.option("--insecure", is_flag=True, help="Allow listeners without TLS that other machines can reach.")
@click.option("--create", is_flag=True, help="Make the node if there is none.")
def main(
    file: str | None, check: bool, state: str | None, listen: tuple[str, ...], socket: str, insecure: bool, create: bool
) -> None:
    """Runs a node until SIGTERM, which drains and checkpoints.

    \b
    Example:
      pyrepld --config /etc/pyrepl/node.toml
      pyrepld --state /var/lib/pyrepl --listen 127.0.0.1:7788 --socket /run/pyrepl/control.sock
    """
    stand_in()
    if (file is None) == (state is None):
        raise click.UsageError("give --config FILE, or --state DIR")
    if file is not None and (listen or socket or insecure):
        raise click.UsageError("--listen, --socket and --insecure stand in the configuration")
    if check and file is None:
        raise click.UsageError("--check needs --config")
    # Blocked before any import can make a thread, so that all threads inherit it and this one alone gets them.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    from pyrepl.service.config import load

    try:
        if state is not None:
            config = _from_flags(state, listen, create, socket, insecure)
        else:
            assert file is not None
            config = load(file)
            if create:
                config = msgspec.structs.replace(config, create=True)
        if check:
            from pyrepl.service.serving import check_world

            check_world(config)
            click.echo(f"{file}: is right")
            return
        Daemon(config, file).run()
    except PyreplError as error:
        click.echo(f"pyrepld: {error}", err=True)
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
