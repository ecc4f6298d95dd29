"""The configuration file: every mistake is named by file, line and key; everything that may stand there is understood."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrepl.errors import DeviceError, NotFound, UsageError
from pyrepl.service.config import RELOADABLE, Config, ExportTable, NbdTable, frozen_changes, load
from pyrepl.service.toml_lines import line_of, locate, repeated

LEAST = 'state = "/s"\n'

FULL = """
# a node
state = "/var/lib/pyrepl"
name = "paris"
create = true
listen = [
    "127.0.0.1:7788",  # here
    "[::1]:7788",
]
insecure = false

[control]
socket = "/run/pyrepl/control.sock"
group = "pyrepl"

[nbd]
listen = ["unix:/run/pyrepl/nbd.sock", "0.0.0.0:10809"]
certificate = "/etc/pyrepl/nbd.pem"
key = "/etc/pyrepl/nbd.key"
ca = "/etc/pyrepl/ca.pem"

[metrics]
listen = "127.0.0.1:9788"

[log]
level = "debug"

[limits]
connections = 8
requests_per_second = 50

[[export]]
name = "data"
group = "db"
store = "data"

[[export]]
name = "monday"
group = "db"
store = "monday"
read_only = true
"""


def write(folder: Path, text: str | bytes) -> str:
    path = folder / "node.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_everything_that_may_stand_there(tmp_path: Path) -> None:
    config = load(write(tmp_path, FULL))
    assert config.name == "paris" and config.create and config.listen == ("127.0.0.1:7788", "[::1]:7788")
    assert config.nbd == NbdTable(listen=("unix:/run/pyrepl/nbd.sock", "0.0.0.0:10809"), certificate="/etc/pyrepl/nbd.pem",
                                  key="/etc/pyrepl/nbd.key", ca="/etc/pyrepl/ca.pem")
    assert config.export[1] == ExportTable(name="monday", group="db", store="monday", read_only=True)
    assert config.limits.connections == 8 and config.log.level == "debug"


def test_the_least(tmp_path: Path) -> None:
    assert load(write(tmp_path, LEAST)) == Config(state="/s")


MISTAKES = [
    # text, line, key, words
    ("stat = 1", 1, "stat", "unknown key; the keys here are: state, name"),
    (LEAST + "\n\nlisten_on = 3", 4, "listen_on", "unknown key"),
    (LEAST + "[nbd]\n# why\nfoo = 1", 4, "nbd.foo", "unknown key; the keys here are: listen, certificate, key, ca"),
    (LEAST + "nbd.foo = 1", 2, "nbd.foo", "unknown key"),
    (LEAST + 'nbd = { listen = [],\n"f o" = 1 }' if sys.version_info >= (3, 15) else LEAST + 'nbd = { listen = [], "f o" = 1 }',
     2, "nbd.f o", "unknown key"),
    (LEAST + "[[export]]\nname='a'\ngroup='g'\nstore='s'\n[[export]]\nname='b'\ngroup='g'\n\nstor='s'", 10, "export[1].stor", "unknown key"),
    (LEAST + "[[export]]\nname='a'\ngroup='g'\n", 2, "export[0]", "store is missing"),
    (LEAST + "[controll]\n", 2, "controll", "unknown key"),
    ("", 1, "", "state is missing"),
    (LEAST + "name = 3", 2, "name", "expected a string"),
    (LEAST + "create = 'yes'", 2, "create", "expected true or false, got a string"),
    (LEAST + 'listen = "127.0.0.1:1"', 2, "listen", "expected a list, got a string"),
    (LEAST + 'listen = [\n "127.0.0.1:1",\n 5,\n]', 4, "listen[1]", "expected a string, got a whole number"),
    (LEAST + 'listen = ["127.0.0.1:1",\n\n "nonsense"]', 4, "listen[1]", "not an address"),
    (LEAST + 'listen = ["127.0.0.1:1", "127.0.0.1:1"]', 2, "listen[1]", "twice"),
    (LEAST + 'listen = ["203.0.113.7:1"]', 2, "listen[0]", "insecure = true"),
    (LEAST + 'listen = ["0.0.0.0:1"]', 2, "listen[0]", "insecure = true"),
    (LEAST + 'listen = ["[::]:1"]', 2, "listen[0]", "insecure = true"),
    (LEAST + 'listen = ["storage.example:1"]', 2, "listen[0]", "insecure = true"),
    (LEAST + "[limits]\nconnections = 0", 3, "limits.connections", ">= 1"),
    (LEAST + "[limits]\nconnections = 1025", 3, "limits.connections", "<= 1024"),
    (LEAST + "[limits]\nconnections = 1.0", 3, "limits.connections", "got a number"),
    (LEAST + "[limits]\nrequests_per_second = 100001", 3, "limits.requests_per_second", "<= 100000"),
    (LEAST + "[log]\nlevel = 'loud'", 3, "log.level", "'loud': must be one of debug, info, warning, error"),
    (LEAST + "log = 'debug'", 2, "log", "expected a table, got a string"),
    ('state = "relative"', 1, "state", "whole path"),
    (LEAST + "name = '../x'", 2, "name", "cannot be a name"),
    (LEAST + "[control]\nsocket = 'run'", 3, "control.socket", "whole path"),
    (LEAST + f"[control]\nsocket = '/{'x' * 107}'", 3, "control.socket", "107 bytes"),
    (LEAST + "[control]\ngroup = ''", 3, "control.group", "empty"),
    (LEAST + "[nbd]\nlisten = ['unix:x']", 3, "nbd.listen[0]", "unix:/"),
    (LEAST + "[nbd]\nlisten = ['unix:/a', 'unix:/a']", 3, "nbd.listen[1]", "twice"),
    (LEAST + "[nbd]\nlisten = ['192.0.2.1:10809']", 3, "nbd.listen[0]", "without TLS"),
    (LEAST + "[nbd]\n\ncertificate = '/c'", 2, "nbd", "key is missing"),
    (LEAST + "[nbd]\nkey = '/c'", 2, "nbd", "certificate is missing"),
    (LEAST + "[nbd]\nca = '/c'", 3, "nbd.ca", "without certificate"),
    (LEAST + "[nbd]\ncertificate = '/c'\nkey = 'k'", 4, "nbd.key", "whole path"),
    (LEAST + "[metrics]\nlisten = '0.0.0.0:9788'", 3, "metrics.listen", "without TLS"),
    (LEAST + "[metrics]\nlisten = '9788'", 3, "metrics.listen", "not an address"),
    (LEAST + "[[export]]\nname='a'\ngroup='g'\nstore='s'\n[[export]]\nname='a'\ngroup='g'\nstore='s'", 7, "export[1].name", "already"),
    (LEAST + "[[export]]\nname='-a'\ngroup='g'\nstore='s'", 3, "export[0].name", "cannot be a name"),
    (LEAST + "[[hook]]\nmark='m'", 2, "hook[0]", "program is missing"),
    (LEAST + "[[hook]]\nmark='/m'\nprogram=['/p']", 3, "hook[0].mark", "cannot be a name"),
    (LEAST + "[[hook]]\nmark='m'\nprogram=['p']", 4, "hook[0].program", "whole path"),
    (LEAST + "[[hook]]\nmark='m'\nprogram=[]", 4, "hook[0].program", "list of a program"),
    (LEAST + "[[hook]]\nmark='m'\nprogram='/p'", 4, "hook[0].program", "expected a list"),
    (LEAST + "[[hook]]\nmark='m'\nprogram=['/p']\ntimeout=301", 5, "hook[0].timeout", "at most 300"),
    (LEAST + "[[hook]]\nmark='m'\nprogram=['/p']\ngroup='-'", 5, "hook[0].group", "cannot be a name"),
    (LEAST + "[[hook]]\nmark='m'\nprogram=['/p']\n[[hook]]\nmark='m'\nprogram=['/q']", 6, "hook[1].mark", "already"),
    (LEAST + "[[hook]]\nmark='m'\nprogram=['/p']\nholds=true", 5, "hook[0].holds", "unknown key"),
    (LEAST + "x 3", 2, "", "not TOML"),
    (LEAST + '\nname = "a', 3, "", "not TOML"),
    (LEAST + "name = 'a'\n\nname = 'b'", 4, "name", "given twice"),
    (LEAST + "name = 'a'\nname = 'b'\n[log]\nlevel='info'", 3, "name", "given twice"),
    (LEAST + "[log]\n[nbd]\n[log]\n", 4, "log", "given twice"),
    (LEAST + "a = " + "[" * 2000, 2, "", "not TOML"),
    ("\ufeff" + LEAST, 1, "", "byte order mark"),
    (LEAST.encode("utf-16"), 1, "", "UTF-16"),
    (LEAST + "name = 'a'\r\n", 2, "", "carriage return"),
    (LEAST.encode() + b"\n# caf\xe9\n", 3, "", "not UTF-8"),
    (LEAST + "name = 'a\0'", 2, "", "not TOML"),
]


@pytest.mark.parametrize(("text", "line", "key", "words"), MISTAKES, ids=range(len(MISTAKES)))
def test_mistakes_are_named_by_file_line_and_key(tmp_path: Path, text: str | bytes, line: int, key: str, words: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        load(path)
    assert caught.value.context == {"file": path, "line": line, "key": key}
    assert str(caught.value).startswith(f"{path}:{line}: {key}") and words in str(caught.value)


def test_hooks_of_a_group(tmp_path: Path) -> None:
    """Its own go before those of all groups, wherever they stand."""
    tables = [("m", "/own", "db"), ("m", "/all", None), ("*", "/any", None), ("n", "/other", "other")]
    text = "".join(f"[[hook]]\nmark='{mark}'\nprogram=['{program}']\n" + (f"group='{group}'\n" if group else "")
                   for mark, program, group in tables)
    for order in (text, "".join("[[hook]]" + part for part in reversed(text.split("[[hook]]")[1:]))):
        config = load(write(tmp_path, LEAST + order))
        assert {hook.mark: hook.run for hook in config.hooks_of("db")} == {"m": ("/own",), "*": ("/any",)}
        assert {hook.mark: hook.run for hook in config.hooks_of("other")} == {"m": ("/all",), "*": ("/any",), "n": ("/other",)}


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1"])
def test_loopback_needs_no_permission(tmp_path: Path, address: str) -> None:
    assert load(write(tmp_path, f'{LEAST}listen = ["{address}"]')).listen == (address,)


def test_insecure_allows_routable_addresses(tmp_path: Path) -> None:
    text = f'{LEAST}insecure = true\nlisten = ["0.0.0.0:1"]\n[nbd]\nlisten = ["0.0.0.0:2"]\n[metrics]\nlisten = "0.0.0.0:3"'
    assert load(write(tmp_path, text)).insecure
    tls = f'{LEAST}[nbd]\nlisten = ["0.0.0.0:2"]\ncertificate = "/c"\nkey = "/k"'
    assert load(write(tmp_path, tls)).nbd.listen == ("0.0.0.0:2",)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"there is no such file"):
        load(str(tmp_path / "none"))
    with pytest.raises((DeviceError, UsageError), match=r"not a file|cannot be read"):
        load(str(tmp_path))
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(UsageError, match=r"not a file"):
        load(str(fifo))
    path = write(tmp_path, LEAST)
    os.chmod(path, 0o646)
    with pytest.raises(UsageError, match=r"chmod o-w"):
        load(path)
    os.chmod(path, 0o600)
    write(tmp_path, LEAST + "#" * (1 << 18))
    with pytest.raises(UsageError, match=r"longer than 262144"):
        load(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="root reads everything")
def test_a_file_that_only_others_may_read(tmp_path: Path) -> None:
    path = write(tmp_path, LEAST)
    os.chmod(path, 0o600)
    for folder in (tmp_path, *tmp_path.parents[:3]):
        os.chmod(folder, 0o755)
    code = "import os, sys; os.setgid(65534); os.setuid(65534)\nfrom pyrepl.service.config import load\nload(sys.argv[1])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", "import pyrepl.service.config;" + code, path], capture_output=True, text=True,
                          check=False, env=environment)
    assert "cannot be read: Permission denied" in done.stderr


def check(path: str, *more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    code = "import sys; from pyrepl.service.daemon import main; main(sys.argv[1:])"
    return subprocess.run([sys.executable, "-c", code, *more, "--config", path], capture_output=True, text=True, check=False,
                          timeout=60, env=environment)


def test_check_only_looks(tmp_path: Path) -> None:
    good = check(write(tmp_path, f'state = "{tmp_path}/node"\ncreate = true\n'), "--check")
    assert good.returncode == 0 and "is right" in good.stdout and not (tmp_path / "node").exists()
    bad = check(write(tmp_path, LEAST + "\nfoo = 1\n"), "--check")
    assert bad.returncode == 2 and f"{tmp_path}/node.toml:3: foo: unknown key" in bad.stderr and "Traceback" not in bad.stderr


def test_check_looks_at_what_the_file_names(tmp_path: Path) -> None:
    done = check(write(tmp_path, LEAST + '[control]\ngroup = "no-such-group"\n'), "--check")
    assert done.returncode == 2 and "there is no group 'no-such-group' on this machine" in done.stderr and "Traceback" not in done.stderr
    tls = LEAST + f'[nbd]\nlisten = ["127.0.0.1:0"]\ncertificate = "{tmp_path}/c.pem"\nkey = "{tmp_path}/k.pem"\n'
    done = check(write(tmp_path, tls), "--check")
    assert done.returncode == 3 and f"the key {tmp_path}/k.pem cannot be read" in done.stderr and "Traceback" not in done.stderr
    (tmp_path / "k.pem").write_text("no key")
    (tmp_path / "k.pem").chmod(0o600)
    (tmp_path / "c.pem").write_text("no certificate")
    done = check(write(tmp_path, tls), "--check")
    assert done.returncode == 2 and "cannot be used for TLS" in done.stderr and "Traceback" not in done.stderr


def test_flags_and_file_do_not_mix(tmp_path: Path) -> None:
    path = write(tmp_path, LEAST)
    for more in (["--state", "/s"], ["--listen", "127.0.0.1:0"], ["--insecure"], ["--socket", "/c"]):
        done = check(path, *more)
        assert done.returncode == 2 and "Error" in done.stderr


def test_what_a_reload_takes_over() -> None:
    assert set(RELOADABLE) < set(Config.__struct_fields__)
    old = Config(state="/s")
    assert frozen_changes(old, Config(state="/t", name="n", insecure=True, nbd=NbdTable(listen=("unix:/n",)))) == ["state", "name"]


# ---- lines


def test_lines_of_everything() -> None:
    places = dict(reversed(locate(FULL)))
    lines = FULL.splitlines()
    for path, line in places.items():
        last = next(part for part in reversed(path) if isinstance(part, str))
        if not isinstance(path[-1], int):
            assert last in lines[line - 1], path
    assert lines[places["listen", 1] - 1].strip().startswith('"[::1]')
    assert lines[places["export", 1] - 1] == "[[export]]" and places["export", 1] > places["export", 0]


@pytest.mark.parametrize(("text", "path", "line"), [
    ('a = """\nb = 1\n"""\nb = 2', ("b",), 4),
    ("a = '''\nb = 1\n'''\nb = 2", ("b",), 4),
    ('a = "\\"\\\\" # b = 3\nb = 2', ("b",), 2),
    ('"a b" . c = 1\n[ x . "y" ]\nz=1', ("x", "y", "z"), 3),
    ("[[e]]\n[[e]]\n[e.s]\nk = 1", ("e", 1, "s", "k"), 4),
    ("a = [[1,\n2], # ]\n[3]]", ("a", 1, 0), 3),
    ("a = { b = [ {c = 1},\n {d = 2} ] }", ("a", "b", 1, "d"), 2),
    ("a = 1979-05-27T07:32:00Z\nb=0x1F", ("b",), 2),
    ("a = 1", ("b", "c"), 1),
])
def test_lines_of_what_is_unusual(text: str, path: tuple[str | int, ...], line: int) -> None:
    assert line_of(text, path) == line


def test_repeated_is_not_the_same_name_elsewhere() -> None:
    assert repeated(FULL) is None
    assert repeated("[a]\nx=1\n[b]\nx=1\n") is None
    assert repeated("[a]\nx=1\n[b]\nx=1\nx=2") == (("b", "x"), 5)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab.=[]{}\"'\n #\\,1\r\t", max_size=60))
def test_any_text_is_located_or_not_but_never_breaks(text: str) -> None:
    places = locate(text)
    try:
        tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError):
        return
    assert all(1 <= line <= text.count("\n") + 1 for _, line in places)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(["state", "name", "listen", "nbd", "export", "x"]),
                       st.one_of(st.integers(), st.text("ab/", max_size=3), st.booleans(), st.lists(st.integers(), max_size=2))))
def test_any_document_is_a_configuration_or_an_error_with_a_line(tmp_path_factory: pytest.TempPathFactory, document: dict[str, object]) -> None:
    import json
    text = "\n".join(f"{key} = {json.dumps(value)}" for key, value in document.items())
    path = write(tmp_path_factory.mktemp("c"), text)
    try:
        load(path)
    except UsageError as error:
        assert error.context["line"] >= 1 and str(error).startswith(path)
