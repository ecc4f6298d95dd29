"""What a daemon offers beside its node: listeners, control socket, NBD, metrics; and taking over a new configuration.

Decides in which order they begin and end, and what changes when the configuration does: what can be changed is, what
cannot be is said, and the rest goes on as it was. Must not know signals or systemd (``daemon``).
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

import pyrepl
from pyrepl.errors import NotFound, PyreplError
from pyrepl.runtime.addresses import show
from pyrepl.runtime.certificates import TlsFiles
from pyrepl.runtime.transport import parse_address
from pyrepl.service import logs
from pyrepl.service.config import Config, ExportTable, NbdTable
from pyrepl.service.control import Control, Limits, group_id
from pyrepl.service.metrics import Metrics
from pyrepl.service.metrics_server import MetricsServer
from pyrepl.service.watch import GOOD, Watch

if TYPE_CHECKING:
    from pyrepl.node import Node

_log = logging.getLogger("pyrepl.node")


class Serving:
    """Everything that reaches a node from outside, from the moment it is made until :meth:`stop`.

    Raises:
        PyreplError: an address cannot be had, or certificates cannot be used; what had begun is ended. An export whose
            group or store is not there yet is no reason: it is tried again by :meth:`look`.
    """

    def __init__(self, node: Node, config: Config) -> None:
        self._node = node
        self._config = config
        self._control: Control | None = None
        self._metrics = Metrics(node, self._requests)
        self._metrics_server: MetricsServer | None = None
        self._metrics_at: str | None = None
        self._nbd: dict[str, str] = {}  # address of the configuration -> address that was had
        self._tls: TlsFiles | None = None
        self._exports: dict[str, ExportTable] = {}  # that stand
        self._said: dict[str, str] = {}  # why an export cannot begin: each reason is logged once
        self._chronicle = Chronicle(node)
        self._watch = Watch(node)
        self.listening: list[str] = []
        try:
            self._begin()
        except BaseException:
            self.stop()
            raise

    def about(self) -> dict[str, Any]:
        """The addresses, as they were had."""
        return {
            "listening": self.listening,
            "control": self._config.control.socket or None,
            "nbd": list(self._nbd.values()),
            "metrics": self._metrics_server.address if self._metrics_server is not None else None,
        }

    @property
    def parted(self) -> list[str]:
        """The groups in which there is a split brain, as of the last look."""
        return self._watch.parted

    def look(self) -> None:
        """Tells what has become of links, and begins exports that could not begin before: their group or store may be
        there now."""
        self._watch.look()
        self._begin_exports()

    def _begin_exports(self) -> None:
        for table in self._config.export:
            if table.name not in self._exports:
                self._start_export(table)

    def take_over(self, config: Config) -> list[str]:
        """Changes what can be changed while it runs; what cannot be, and why."""
        problems: list[str] = []
        self._config = config
        logs.set_level(config.log.level)
        if self._control is not None:
            self._control.insecure = config.insecure
            self._control.limits = _limits(config)
        wanted = {table.name: table for table in config.export}
        for name in [name for name, table in self._exports.items() if wanted.get(name) != table]:
            try:
                self._node.stop_export(name)
                del self._exports[name]
            except NotFound:
                del self._exports[name]
            except PyreplError as error:  # clients are attached
                problems.append(f"export {name}: {error}")
        self._begin_exports()
        problems += [f"export {name}: {self._said[name]}" for name in wanted if name in self._said]
        problems += self._take_over_nbd(config.nbd, config.insecure)
        try:
            self._serve_metrics(config.metrics.listen)
        except PyreplError as error:
            problems.append(f"metrics: {error}")
        return problems

    def stop(self) -> None:
        """Nobody gets in any more, who is in is let out. Harmless the second time."""
        if self._control is not None:
            self._control.stop()
        if self._metrics_server is not None:
            self._metrics_server.stop()
            self._metrics_server = None
        self._chronicle.stop()

    # ---- inside

    def _begin(self) -> None:
        node, config = self._node, self._config
        self._begin_exports()
        self._tls = _tls(config.nbd)
        for address in config.nbd.listen:
            self._nbd[address] = node.listen_nbd(address, tls=self._tls, insecure=config.insecure)
        self.listening = [show(*node.listen(*parse_address(address))) for address in config.listen]
        self._serve_metrics(config.metrics.listen)
        if config.control.socket:
            self._control = Control(
                node,
                config.control.socket,
                group=config.control.group,
                limits=_limits(config),
                insecure=config.insecure,
                metrics=self._metrics.text,
                program=f"pyrepld {pyrepl.__version__}",
            )
            self._control.start()

    def _start_export(self, table: ExportTable) -> None:
        try:
            for known in self._node.exports:  # one that was started by hand, and kept, is as good
                if known.name == table.name and _shows(known) == (table.group, table.store, table.read_only):
                    break
            else:
                self._node.start_export(
                    table.name, table.group, table.store, read_only=table.read_only, keep=False
                )
            self._exports[table.name] = table
            self._said.pop(table.name, None)
        except PyreplError as error:
            if self._said.get(table.name) != error.text:
                self._said[table.name] = error.text
                _log.warning("export %s cannot begin yet: %s", table.name, error)

    def _take_over_nbd(self, nbd: NbdTable, insecure: bool) -> list[str]:
        problems: list[str] = []
        fresh = _tls(nbd)
        try:
            if fresh is not None:
                fresh.server_context()
        except PyreplError as error:  # what is served goes on with the certificates of before
            return [f"nbd: {error}"]
        renewed = (fresh is None) == (self._tls is None)
        for address, had in list(self._nbd.items()):
            if address not in nbd.listen or not renewed:  # with TLS instead of without, or the other way round
                self._node.stop_nbd(had)
                del self._nbd[address]
        for address in nbd.listen:
            if address in self._nbd and fresh is None:
                continue
            try:  # certificates are read again: the same files may hold others
                self._nbd[address] = self._node.listen_nbd(
                    self._nbd.get(address, address), tls=fresh, insecure=insecure
                )
            except PyreplError as error:
                problems.append(f"nbd {address}: {error}")
        self._tls = fresh
        return problems

    def _serve_metrics(self, address: str | None) -> None:
        if address == self._metrics_at:
            return
        fresh = None
        if address is not None:
            fresh = MetricsServer(*parse_address(address), self._metrics.text)
            _log.info("event=listening address=%s protocol=http", fresh.address)
        if self._metrics_server is not None:
            self._metrics_server.stop()
        self._metrics_server, self._metrics_at = fresh, address

    def _requests(self) -> tuple[int, dict[tuple[str, str], int]]:
        return self._control.requests() if self._control is not None else (0, {})


class Chronicle:
    """Writes what happens at a node into the log."""

    def __init__(self, node: Node) -> None:
        self._events = node.events()
        self._thread = threading.Thread(target=self._write, name="pyrepl-chronicle", daemon=True)
        self._thread.start()
        for group in node.groups:
            if group.fault is not None:
                _log.error("group %s cannot be used: %s", group.name, group.fault)

    def stop(self) -> None:
        """Harmless the second time."""
        self._events.close()
        self._thread.join()

    def _write(self) -> None:
        for event in self._events:
            level = _level(event)
            known = {key: value for key, value in event.items() if key != "time" and value not in (None, [])}
            _log.log(level, "%s", " ".join(f"{key}={_plain(key, value)}" for key, value in known.items()))


def _plain(key: str, value: Any) -> str:
    if isinstance(value, list):
        return show(*value) if key == "address" else ",".join(map(str, value))
    return str(value)


def _level(event: dict[str, Any]) -> int:
    match event["event"]:
        case "group-failed" | "split-brain" | "stands-still":
            return logging.ERROR
        case "link-state" if event["state"] not in GOOD or event["degraded"]:
            return logging.WARNING
        case "not-promoted":
            return logging.WARNING
        case "operation":
            return logging.DEBUG
    return logging.INFO


def _shows(export: Any) -> tuple[str, str, bool | None]:
    return export.group.name, export.store, export.read_only


def check_world(config: Config) -> None:
    """What a configuration names on this machine can be used: certificates, and the group of users that may ask.

    Raises:
        PyreplError: it cannot be.
    """
    group_id(config.control.group)
    tls = _tls(config.nbd)
    if tls is not None:
        tls.server_context()


def _tls(nbd: NbdTable) -> TlsFiles | None:
    if nbd.certificate is None or nbd.key is None:
        return None
    return TlsFiles(certificate=nbd.certificate, key=nbd.key, ca=nbd.ca)


def _limits(config: Config) -> Limits:
    return Limits(connections=config.limits.connections, requests_per_second=config.limits.requests_per_second)
