"""``pyrepl status``: the line that a person reads first, JSON, monitoring, watching; on wide, narrow and no terminals."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest

from pyrepl.cli import headline, monitoring, output, sizes, tables
from pyrepl.cli.status import _changes, _gone
from tests.cli.conftest import COMMAND, PATH, environment

LINK = {
    "name": "paris", "state": "streaming", "consistent": True, "degraded": False, "holds_writers": False, "synced": True,
    "divergent_bytes": 0, "lag_events": 0, "lag_bytes": 0, "lag_seconds": 0.0, "last_error": "", "reason": "", "address": "h:1", "mode": "async",
}
GROUP = {"group": "db", "role": "primary", "state": "active", "error": None, "group_id": "0" * 32, "consistent": True,
         "journal": {"used": 3, "size": 100}, "lsn": {"applied": 7}, "links": [LINK]}
PARTED = {"node": "ab" * 16, "link": "paris", "fork_lsn": 9, "lsn": 11, "there_lsn": 10}
LIMITS = monitoring.Limits(60, 600, 80, 95)


def first(group=(), **link):
    return headline.lines({**GROUP, "links": [{**LINK, **link}], **dict(group)})[0]


# ---- the line


@pytest.mark.parametrize(("link", "line"), [
    ({"lag_events": 9, "lag_bytes": 12 << 20, "lag_seconds": 0.4},
     "db  primary  → paris  consistent, 0.4 s behind (12 MiB, journal 3 % full)"),
    ({}, "db  primary  → paris  consistent, up to date (journal 3 % full)"),
    ({"lag_events": 9, "lag_bytes": 4096, "lag_seconds": None}, "db  primary  → paris  consistent, 4 KiB behind (journal 3 % full)"),
    ({"state": "paused", "lag_events": 1, "lag_bytes": 1, "lag_seconds": 3700},
     "db  primary  → paris  paused, consistent, 1 h 1 min behind (1 B, journal 3 % full)"),
    ({"state": "resyncing", "consistent": False, "divergent_bytes": 3 << 19},
     "db  primary  → paris  resyncing, inconsistent, 1.5 MiB differ, up to date (journal 3 % full)"),
    ({"state": "connecting", "consistent": False, "peer": "ab", "connections": 0, "lag_events": 1, "lag_seconds": None, "lag_bytes": 4096},
     "db  primary  → paris  connecting, not known yet whether it is consistent, 4 KiB behind (journal 3 % full)"),
    ({"state": "down", "consistent": False, "peer": "ab", "connections": 1, "lag_events": 1, "lag_seconds": None, "lag_bytes": 4096},
     "db  primary  → paris  down, inconsistent, 4 KiB behind (journal 3 % full)"),
    ({"state": "paused", "last_error": "the peer ended the connection"},
     "db  primary  → paris  paused, consistent, up to date (journal 3 % full)"),
    ({"state": "refused", "last_error": "sizes differ"},
     "db  primary  → paris  refused (sizes differ), consistent, had everything when it was heard of last (journal 3 % full)"),
    ({"found_different": {"lsn": 6, "time": 0.0, "bytes": 128 << 10}},
     "db  primary  → paris  consistent, 128 KiB found different at LSN 6, not repaired, up to date (journal 3 % full)"),
    ({"degraded": True, "mode": "sync"}, "db  primary  → paris  consistent, not in sync: writes do not wait for it, up to date (journal 3 % full)"),
])
def test_the_first_line(link, line):
    assert first(**link) == line


def test_how_long_ago_the_last_error_was():
    assert "refused (sizes differ, 1 h 1 min ago), consistent" in first(state="refused", last_error="sizes differ",
                                                                        last_error_time=time.time() - 3690)
    assert "refused for 3 min 5 s (no room), consistent" in first(state="refused", last_error="no room",
                                                                  refused_since=time.time() - 185)
    assert "refused for" not in first(state="refused", refused_since=None, last_error="no room")
    assert "inconsistent (journal" in first(state="refused", consistent=False), "nothing is up to date that was never there"
    said = headline.detail({**GROUP, "group_id": "g", "lsn": {"end": 7, "durable": 7, "applied": 7}, "stores": [], "links": [],
                            "journal": {"used": 3, "size": 100, "engine": "e", "checkpoints": 1}, "window": {"used": 1, "size": 2},
                            "last_refusal": "no", "last_refusal_time": time.time() - 61})
    assert "  refused    no, 1 min 1 s ago" in said


def test_other_first_lines():
    assert first({"links": []}) == "db  primary  no links (journal 3 % full)"
    assert first({"role": "secondary", "links": []}) == "db  secondary  consistent, at LSN 7 (journal 3 % full)"
    assert "inconsistent, at LSN 7" in first({"role": "secondary", "links": [], "consistent": False})
    assert "waiting for its primary" in first({"role": "secondary", "links": [], "group_id": None})
    failed = {"group": "db", "role": None, "state": "failed", "error": "the disk is gone", "links": []}
    way = "when the cause is gone, `pyrepl group open db` opens it again"
    assert headline.lines(failed) == [f"db  unknown  failed: the disk is gone; {way}"]
    assert headline.lines({**failed, "error": "it is over (`pyrepl group open db`)"}) == ["db  unknown  failed: it is over (`pyrepl group open db`)"]
    assert "closed: it was closed" in headline.lines({**failed, "state": "closed", "error": None})[0]
    two = headline.lines({**GROUP, "links": [LINK, {**LINK, "name": "rome"}]})
    assert two[1] == "             → rome  consistent, up to date (journal 3 % full)"


def test_split_brain_in_the_first_line():
    said = "both sites have written since event 9, this one up to 11, the other up to 10; nothing is sent before it is said which side loses that: "
    with_link = first({"split_brain": [PARTED]}, state="diverged", last_error="x")
    assert with_link == f"db  primary  → paris  SPLIT BRAIN with paris: {said}`pyrepl resolve db --loser here` or `--loser paris` (journal 3 % full)"
    unknown = {**PARTED, "link": None}
    lines = headline.lines({**GROUP, "links": [{**LINK, "name": "rome"}], "split_brain": [unknown]})
    assert lines[0] == "db  primary  → rome  consistent, up to date (journal 3 % full)"
    assert lines[1].strip().startswith(f"SPLIT BRAIN with node abababab: {said}`pyrepl resolve db --loser here`, or a link to it")
    assert "no links" not in first({"links": [], "split_brain": [unknown]})
    asking = first({"asking": ["paris"], "split_brain": [PARTED]})
    assert asking.startswith(f"db  primary  inactive: SPLIT BRAIN with paris: {said}`pyrepl resolve db --loser here` at that side")
    assert "consistent, no primary has led it yet, at LSN 7" in first({"role": "secondary", "links": [], "primary_connected": False})
    below = first({"role": "secondary", "links": [], "split_brain": [unknown], "primary_connected": False})
    assert below.startswith("db  secondary  consistent, SPLIT BRAIN with node abababab") and "or the same there, at LSN 7" in below
    assert first({"role": "secondary", "links": [], "primary_connected": False, "fed_by": "ab"}) == (
        "db  secondary  consistent, its primary is not connected, at LSN 7 (journal 3 % full)")


def test_the_first_lines_of_a_cascade():
    """Each says who feeds it, and whom it feeds."""
    middle = {**GROUP, "role": "secondary", "primary_connected": True, "fed_by": "ab" * 16, "above": [], "links": [LINK]}
    assert headline.lines(middle) == [
        "db  secondary  consistent, fed by its primary, node abababab, at LSN 7 (journal 3 % full)",
        "               → paris  consistent, up to date (journal 3 % full)"]
    last = {**middle, "above": ["cd" * 16], "links": []}
    assert headline.lines(last) == ["db  secondary  consistent, fed by node abababab, a secondary itself, at LSN 7 (journal 3 % full)"]
    assert headline.lines({**last, "primary_connected": False}) == [
        "db  secondary  consistent, node abababab, which feeds it, is not connected, at LSN 7 (journal 3 % full)"]


def test_watch_tells_a_split_brain_once():
    good, bad = _changes(GROUP), _changes({**GROUP, "split_brain": [PARTED]})
    again = _changes({**GROUP, "split_brain": [{**PARTED, "lsn": 12}]})
    assert good[0][1] != bad[0][1] == again[0][1] and "SPLIT BRAIN" in bad[0][2]
    others = _changes({**GROUP, "links": [{**LINK, "name": "rome"}], "split_brain": [PARTED]})
    assert "SPLIT" not in others[0][2]


def test_status_of_a_real_pair(berlin, paris, pair):
    lines = berlin.ok("status", pair).splitlines()
    assert re.fullmatch(rf"{pair}  primary  → paris  consistent, up to date \(journal (< 1|\d+) % full\)", lines[0])
    assert [line.split()[0] for line in lines[1:]] == ["group", "LSN", "journal", "window", "volume", "link"]
    assert re.match(rf"{pair}  secondary  consistent, at LSN \d+ \(journal ", paris.ok("status", pair))
    berlin.ok("link", "pause", f"{pair}/paris")
    berlin.ok("volume", "write", f"{pair}/data", input=bytes(1 << 20))
    time.sleep(0.2)
    assert re.search(r"→ paris  paused, consistent, \d+\.\d s behind \(1\.\d MiB, journal \d+ % full\)", berlin.ok("status", pair))


def test_all_groups_stand_below_each_other(berlin, pair, group):
    lines = berlin.ok("status").splitlines()
    heads = lines[: lines.index("")]
    assert len({line.index(" primary") for line in heads if " primary" in line}) == 1
    assert lines.index("") < lines.index(pair) < lines.index(group)


# ---- JSON


def test_json(berlin, paris, pair):
    told = berlin.json(output.Status, "status")
    assert told.schema == 1 and told.node.name == "berlin" and told.node.listening == [berlin.address]
    group = next(one for one in told.groups if one.name == pair)
    link = group.links[0]
    assert (group.role, group.state, group.error, group.consistent) == ("primary", "active", None, True)
    assert (link.name, link.mode, link.state, link.synced, link.lag_bytes, link.lag_seconds) == ("paris", "async", "streaming", True, 0, 0.0)
    assert link.last_error is None and link.reason is None
    assert link.bytes_sent.events + link.bytes_sent.copied > 0
    there = paris.json(output.Status, "status", pair)
    assert [one.name for one in there.groups] == [pair]
    assert there.groups[0].role == "secondary" and there.groups[0].group_id == group.group_id


def test_json_of_a_group_that_failed_is_null_where_nothing_is_known(daemons):
    daemon = daemons("killed-bergen")
    group = daemon.new_group()
    daemon.stop()
    os.truncate(f"{daemon.folder}/{group}.journal", 8192)
    daemon.start()
    told = daemon.json(output.Status, "status").groups[0]
    assert (told.name, told.state, told.role, told.lsn, told.stores) == (group, "failed", None, None, [])
    assert told.error and group in told.error


# ---- terminals


def on_a_terminal(columns, *arguments, **more):
    """What a pyrepl process writes to a terminal of that width."""
    import fcntl
    import pty
    import struct
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen([sys.executable, "-c", COMMAND, *arguments], stdout=slave, stdin=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, env=environment(TERM="xterm", **more))
    os.close(slave)
    text = b""
    try:
        while piece := os.read(master, 65536):
            text += piece
    except OSError:
        pass  # the other end is closed
    finally:
        os.close(master)
    assert process.wait(60) == 0
    return text.decode().replace("\r\n", "\n")


def test_colour_on_a_terminal_only_and_not_if_nobody_wants_it(berlin, pair):
    assert "\x1b[32mconsistent\x1b[0m" in on_a_terminal(120, "status", pair, PYREPL_SOCKET=berlin.socket)
    assert "\x1b[" not in on_a_terminal(120, "status", pair, PYREPL_SOCKET=berlin.socket, NO_COLOR="1")
    assert "\x1b[" not in berlin.ok("status", pair)


def test_a_terminal_that_knows_no_arrows(berlin, pair):
    done = berlin("status", pair, PYTHONIOENCODING="latin-1")
    assert done.returncode == 0 and f"{pair}  primary  ? paris  consistent" in done.stdout, done.stderr


def test_lists_on_a_narrow_terminal(berlin, group):
    wide = on_a_terminal(200, "volume", "list", group, PYREPL_SOCKET=berlin.socket)
    assert wide.splitlines()[0].split() == ["VOLUME", "SIZE", "DEVICE"]
    narrow = on_a_terminal(30, "volume", "list", group, PYREPL_SOCKET=berlin.socket)
    assert narrow.splitlines()[:2] == [f"volume  {group}/data", "size    4 MiB"]
    assert berlin.ok("volume", "list", group) == wide


def test_tables(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    tables.show(["NAME", "COUNT"], [["a", 1], ["bb", 1000], [None, None]], none="nothing")
    assert capsys.readouterr().out == "NAME  COUNT\na         1\nbb     1000\n-         -\n"
    tables.show(["NAME"], [], none="nothing")
    assert capsys.readouterr().out == "nothing\n"
    monkeypatch.setenv("COLUMNS", "8")
    tables.show(["NAME", "COUNT"], [["a", 1], ["bb", 2]], none="nothing")
    assert capsys.readouterr().out == "name   a\ncount  1\n\nname   bb\ncount  2\n"


# ---- monitoring


@pytest.mark.parametrize(("group", "link", "status", "text"), [
    ({}, {}, 0, "OK: 1 group, 1 link"),
    ({}, {"lag_seconds": 61.0}, 1, "WARNING: db → paris 1 min 1 s behind"),
    ({}, {"lag_seconds": 600.0}, 2, "CRITICAL: db → paris 10 min 0 s behind"),
    ({"journal": {"used": 80, "size": 100}}, {}, 1, "WARNING: db journal 80 % full"),
    ({"journal": {"used": 95, "size": 100}}, {}, 2, "CRITICAL: db journal 95 % full"),
    ({}, {"state": "paused", "last_error": "it was down before"}, 1, "WARNING: db → paris paused"),
    ({}, {"state": "down", "last_error": "a|b\nc"}, 2, "CRITICAL: db → paris down: a/b c"),
    ({}, {"state": "refused"}, 2, "CRITICAL: db → paris refused"),
    ({}, {"state": "resyncing", "consistent": False}, 1, "WARNING: db → paris resyncing, db → paris inconsistent"),
    ({}, {"found_different": {"lsn": 6, "time": 0.0, "bytes": 65536}}, 1,
     "WARNING: db → paris 64 KiB found different at LSN 6, not repaired"),
    ({}, {"degraded": True, "mode": "sync"}, 1, "WARNING: db → paris not in sync"),
    ({"state": "failed", "error": "the disk is gone"}, {}, 2,
     "CRITICAL: db failed: the disk is gone; when the cause is gone, `pyrepl group open db` opens it again"),
    ({"role": "secondary", "consistent": False, "links": []}, {}, 1, "WARNING: db inconsistent"),
    ({"stands": {"text": "it stands still"}}, {}, 2, "CRITICAL: db: it stands still"),
    ({"mover_rests": {"text": "the mover rests"}}, {}, 1, "WARNING: db: the mover rests"),
    ({}, {"stands": "it stands still"}, 2, "CRITICAL: db → paris it stands still"),
    ({}, {"state": "refused", "last_error": "it stands still", "stands": "it stands still"}, 2,
     "CRITICAL: db → paris refused: it stands still"),
    ({"role": "secondary", "primary_connected": False, "links": []}, {}, 1, "WARNING: db is a secondary, and no primary is connected"),
    ({"role": "secondary", "primary_connected": True, "links": []}, {}, 0, "OK: 1 group, 0 links"),
    ({"journal": {"used": 80, "size": 100}, "split_brain": [PARTED]}, {"state": "diverged", "last_error": "long"}, 2,
     f"CRITICAL: db {headline.split_brain({**GROUP}, PARTED)}, db → paris diverged, db journal 80 % full"),
])
def test_verdicts(group, link, status, text):
    verdict = monitoring.judge([{**GROUP, "links": [{**LINK, **link}], **group}], LIMITS)
    assert (verdict.status, verdict.line().split(" | ")[0]) == (status, text)


def test_figures_have_the_form_of_plug_ins():
    line = monitoring.judge([GROUP], LIMITS).line()
    figures = line.split(" | ")[1]
    assert re.fullmatch(r"('[^'=]+'=[\d.]+(s|%|B)?(;[\d.]*){4} ?)+", figures), figures
    assert "'db → paris lag'=0.000s;60;600;0;" in figures


def test_check_of_a_real_pair(berlin, pair):
    done = berlin("status", pair, "--check")
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("OK: 1 group, 1 link | ")
    done = berlin("status", pair, "--check", "--warn-journal", "0")
    assert done.returncode == 1 and done.stdout.startswith(f"WARNING: {pair} journal ")
    done = berlin("status", pair, "--check", "--crit-journal", "0")
    assert done.returncode == 2 and done.stdout.startswith(f"CRITICAL: {pair} journal ")
    berlin.ok("link", "pause", f"{pair}/paris")
    berlin.ok("mark", pair, "m")
    done = berlin("status", pair, "--check", "--crit-lag", "0.000001")
    assert done.returncode == 2 and "behind" in done.stdout


def test_check_is_unknown_when_it_cannot_tell(berlin, tmp_path):
    done = berlin("status", "--check", "--socket", str(tmp_path / "nothing"))
    assert done.returncode == 3 and done.stdout.startswith("UNKNOWN: no daemon listens at") and not done.stderr
    done = berlin("status", "nothing", "--check")
    assert done.returncode == 3 and done.stdout.startswith("UNKNOWN: ") and "nothing" in done.stdout
    done = berlin("status", "--check", "--warn-lag", "soon")
    assert done.returncode == 3 and "'soon' is not a time" in done.stderr


@pytest.mark.parametrize("arguments", [["--json", "--watch"], ["--check", "--json"], ["--watch", "--interval", "0"]])
def test_what_excludes_each_other(berlin, arguments):
    assert berlin("status", *arguments).returncode in (2, 3)


# ---- watching


def test_watch_without_a_terminal_writes_a_line_for_each_change(berlin, pair):
    watching = subprocess.Popen([sys.executable, "-c", COMMAND, "status", pair, "--watch", "--interval", "0.1"],
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(PYREPL_SOCKET=berlin.socket))
    assert watching.stdout is not None
    line = watching.stdout.readline()
    assert re.match(rf"\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d\S+  {pair}  primary  → paris  consistent", line)
    berlin.ok("link", "pause", f"{pair}/paris")
    while "paused" not in (line := watching.stdout.readline()):
        assert line
    berlin.ok("link", "remove", f"{pair}/paris")
    lines = [watching.stdout.readline(), watching.stdout.readline()]
    assert any("no links" in line for line in lines) and any(f"{pair}  → paris  gone" in line for line in lines)
    berlin.ok("link", "add", f"{pair}/rome", "127.0.0.1:1")
    while "down" not in (line := watching.stdout.readline()):
        assert line and "gone" not in line, "the group has another line than before, and is there"
    watching.send_signal(2)
    assert watching.wait(60) == 130
    watching.communicate()


def test_what_is_gone():
    group, one, two = ("db", ""), ("db", "paris"), ("db", "rome")
    assert _gone({group}, {one, two}, [GROUP]) == [], "a link was added to a group that had none"
    assert _gone({one, two}, {two}, [GROUP]) == ["db  → paris"]
    assert _gone({one}, {group}, [GROUP]) == ["db  → paris"]
    assert _gone({one}, {group}, [{**GROUP, "state": "failed"}]) == [], "it is not shown"
    assert _gone({one, two, ("web", "")}, {("web", "")}, [{**GROUP, "group": "web"}]) == ["db"]


def test_figures_are_no_change():
    before = _changes({**GROUP, "links": [LINK]})
    after = _changes({**GROUP, "journal": {"used": 50, "size": 100}, "links": [{**LINK, "lag_bytes": 5, "lag_seconds": 1.0, "lag_events": 1}]})
    assert [words for _, words, _ in before] == [words for _, words, _ in after] and before != after


@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
def test_watch_on_a_terminal(berlin, pair, tmp_path):
    """The screen is drawn again when something changes, and given back at the end; a narrow one wraps nothing."""
    socket = str(tmp_path / "tmux")
    script = tmp_path / "watch"
    script.write_text(f"#!/bin/sh\nexec '{sys.executable}' -c \"{COMMAND}\" status {pair} --watch --interval 0.2\n")
    script.chmod(0o755)

    def tmux(*arguments):
        return subprocess.run(["tmux", "-S", socket, "-f", "/dev/null", *arguments], capture_output=True, text=True, check=True,
                              env=environment(PYREPL_SOCKET=berlin.socket, PYTHONPATH=PATH, LC_ALL="C.UTF-8")).stdout

    def screen(*words, right=lambda shown: True):
        """What is shown when it is as wanted: it may be looked at while it is being drawn."""
        deadline = time.monotonic() + 60
        while not (all(word in (shown := tmux("capture-pane", "-p")) for word in words) and right(shown)):
            assert time.monotonic() < deadline, shown
            time.sleep(0.05)
        return shown

    def wraps_nothing(shown):
        return len([line for line in shown.splitlines() if line.strip()]) == 7 and all(len(line) <= 40 for line in shown.splitlines())

    tmux("new-session", "-d", "-x", "100", "-y", "20", "sh")
    try:
        tmux("send-keys", f"{script}; echo ended with $?", "Enter")
        shown = screen("→ paris", "consistent", "window")
        assert shown.splitlines()[0].startswith(f"{pair}  primary  → paris")
        berlin.ok("link", "pause", f"{pair}/paris")
        screen("paused", right=lambda shown: shown.count("primary") == 1)  # drawn again, not below
        tmux("resize-window", "-x", "40", "-y", "20")
        screen("…", right=wraps_nothing)
        tmux("resize-window", "-x", "100", "-y", "20")
        tmux("send-keys", "C-c")
        screen("ended with 130", right=lambda shown: "primary" not in shown)
    finally:
        subprocess.run(["tmux", "-S", socket, "kill-server"], check=False)


def test_watch_outlives_a_restart_of_the_daemon(daemons):
    daemon = daemons("killed-molde")
    group = daemon.new_group()
    watching = subprocess.Popen([sys.executable, "-c", COMMAND, "status", group, "--watch", "--interval", "0.1"], stdout=subprocess.PIPE,
                                text=True, env=environment(PYREPL_SOCKET=daemon.socket))
    assert watching.stdout is not None
    assert f"{group}  primary  no links" in watching.stdout.readline()
    daemon.stop()
    assert "  the daemon does not answer: " in watching.stdout.readline()
    daemon.start()
    while "the daemon does not answer" in (line := watching.stdout.readline()):
        pass
    assert f"{group}  primary  no links" in line
    watching.send_signal(2)
    assert watching.wait(60) == 130
    watching.communicate()


def test_watch_that_is_terminated_gives_the_terminal_back(berlin, pair):
    import pty

    master, slave = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", COMMAND, "status", pair, "--watch", "--interval", "0.1"], stdout=slave,
                               stdin=subprocess.DEVNULL, env=environment(TERM="xterm", PYREPL_SOCKET=berlin.socket))
    os.close(slave)
    text = b""
    try:
        while b"consistent" not in text:
            text += os.read(master, 65536)
        process.terminate()
        while piece := os.read(master, 65536):
            text += piece
    except OSError:
        pass  # the other end is closed
    finally:
        os.close(master)
    assert process.wait(60) == 128 + 15
    for taken, given in ((b"\x1b[?1049h", b"\x1b[?1049l"), (b"\x1b[?25l", b"\x1b[?25h")):
        assert text.rindex(given) > text.rindex(taken), "the screen, or the cursor"


# ---- the words of figures


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (1 << 20, "1 MiB"),
                                             (5 << 40, "5 TiB"), (3 << 60, "3072 PiB")])
def test_bytes_for_people(count, text):
    assert sizes.human(count) == text


@pytest.mark.parametrize(("text", "time_"), [("1", 1), ("0.5", 0.5), ("30s", 30), ("5m", 300), ("2h", 7200)])
def test_times(text, time_):
    assert sizes.seconds(text) == time_


@pytest.mark.parametrize(("time_", "text"), [(0, "0.0 s"), (59.94, "59.9 s"), (59.96, "1 min 0 s"), (60, "1 min 0 s"), (119.7, "2 min 0 s"), (3599, "59 min 59 s"), (7260, "2 h 1 min")])
def test_times_for_people(time_, text):
    assert sizes.duration(time_) == text


def test_shares():
    assert [sizes.share(part, 1000) for part in (0, 1, 30, 1000)] == ["0 %", "< 1 %", "3 %", "100 %"]
    assert sizes.share(0, 0) == "0 %"
    assert sizes.percent("80%") == sizes.percent("80") == 80.0


def test_json_is_one_line(berlin, pair):
    text = berlin.ok("status", "--json")
    assert text.count("\n") == 1 and next(iter(json.loads(text))) == "schema"
