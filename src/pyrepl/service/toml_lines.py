"""On which line of a TOML document each key and each element stands, for errors that name a place.

Decides only where things are. What they mean is decided by ``tomllib``, which has accepted the text before; of text
that it refused, as much is located as can be.
"""

from __future__ import annotations

import contextlib
import re
import tomllib
from collections import Counter

Path = tuple[str | int, ...]

MOST_DEEP = 32  # keys and indexes of a path; what lies deeper is not located

_SPACE = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BLANK = re.compile(r"[ \t]*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR = re.compile(r"[^,\]}\n#]*")
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'', re.DOTALL
)


def locate(text: str) -> list[tuple[Path, int]]:
    """(path, line) of every table, key and element in the order of the text; lines count from 1.

    A path is made of keys and indexes: ``("export", 1, "name")``.
    """
    scan = _Scan(text)
    with contextlib.suppress(_Lost, tomllib.TOMLDecodeError):
        scan.document()
    return scan.found


def line_of(text: str, path: Path) -> int:
    """The line of this path, or of the nearest thing around it; 1 if nothing of it is there."""
    lines: dict[Path, int] = {}
    for found, line in locate(text):
        lines.setdefault(found, line)
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)


def repeated(text: str) -> tuple[Path, int] | None:
    """The first key that is given twice, and the line of its second time."""
    seen: Counter[Path] = Counter()
    for path, line in locate(text):
        seen[path] += 1
        if seen[path] > 1:
            return path, line
    return None


class _Lost(Exception):
    """Not TOML from here on."""


class _Scan:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._arrays: Counter[Path] = Counter()
        self.found: list[tuple[Path, int]] = []

    def document(self) -> None:
        table: Path = ()
        while True:
            self._skip(_SPACE)
            if self._at >= len(self._text):
                return
            if self._take("[["):
                name = self._resolve(self._keys())
                self._arrays[name] += 1
                table = (*name, self._arrays[name] - 1)
                self._note(table)
                self._expect("]]")
            elif self._take("["):
                table = self._resolve(self._keys())
                self._note(table)
                self._expect("]")
            else:
                self._pair(table)

    def _pair(self, table: Path) -> None:
        path = (*table, *self._keys())
        self._note(path)
        self._expect("=")
        self._skip(_BLANK)
        self._value(path)

    def _value(self, path: Path) -> None:
        text = self._text
        if len(path) > MOST_DEEP:
            raise _Lost
        if self._take("["):
            index = 0
            while True:
                self._skip(_SPACE)
                if self._take("]"):
                    return
                self._note((*path, index))
                self._value((*path, index))
                index += 1
                self._skip(_SPACE)
                if not self._take(","):
                    self._expect("]")
                    return
        elif self._take("{"):
            while True:
                self._skip(_SPACE)
                if self._take("}"):
                    return
                self._pair(path)
                self._skip(_SPACE)
                if not self._take(","):
                    self._expect("}")
                    return
        elif text.startswith(('"', "'"), self._at):
            self._match(_STRING)
        else:
            self._match(_SCALAR)

    def _keys(self) -> Path:
        parts: list[str | int] = []
        while True:
            self._skip(_BLANK)
            if self._text.startswith(('"', "'"), self._at):
                parts.append(str(tomllib.loads(f"key = {self._match(_STRING)}")["key"]))
            else:
                parts.append(self._match(_BARE))
            self._skip(_BLANK)
            if not self._take("."):
                return tuple(parts)

    def _resolve(self, keys: Path) -> Path:
        """Where a table's name leads: through an array it leads to the last element."""
        path: Path = ()
        for number, key in enumerate(keys):
            path = (*path, key)
            if path in self._arrays and number < len(keys) - 1:
                path = (*path, self._arrays[path] - 1)
        return path

    def _note(self, path: Path) -> None:
        self.found.append((path, self._text.count("\n", 0, self._at) + 1))

    def _take(self, token: str) -> bool:
        found = self._text.startswith(token, self._at)
        if found:
            self._at += len(token)
        return found

    def _expect(self, token: str) -> None:
        if not self._take(token):
            raise _Lost

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self._text, self._at)
        if match is not None:
            self._at = match.end()

    def _match(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        if match is None:
            raise _Lost
        self._at = match.end()
        return match[0]
