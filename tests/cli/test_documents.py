"""docs/commands.md and docs/json.md say what is so: each command and option, each field, each exit status."""

from __future__ import annotations

import re
from pathlib import Path

import click
import msgspec
import pytest

from pyrepl import errors
from tests.cli import structs, tree

DOCS = Path(__file__).resolve().parents[2] / "docs"
MANUAL = (DOCS / "commands.md").read_text()
JSON = (DOCS / "json.md").read_text()
COMMANDS = dict(tree.commands())
STRUCTS = structs.all_structs()


def sections(text: str) -> dict[str, str]:
    """Title -> what stands below it, up to the next title of any level."""
    parts = re.split(r"^(#{1,3}) (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[2::3], parts[3::3], strict=True))


PAGES = sections(MANUAL)


def words(text: str) -> str:
    return " ".join(text.split())


def test_every_command_has_its_page_and_nothing_else_has() -> None:
    assert [title for title in PAGES if title.startswith("pyrepl")] == list(COMMANDS)
    assert len(COMMANDS) > 40


@pytest.mark.parametrize("name", COMMANDS)
def test_synopsis(name: str) -> None:
    block = re.match(r"\n\n((?:    .*\n)+)", PAGES[name])
    assert block, "no synopsis"
    assert words(block[1]) == words(tree.synopsis(name, COMMANDS[name]))


def table(text: str) -> dict[str, str]:
    """The rows of a table of options: what stands in the first cell -> the second."""
    return dict(re.findall(r"^\| (`-[^|]+`) \| ([^|]+) \|$", text, flags=re.MULTILINE))


SHARED = table(PAGES["Options that many commands have"])


@pytest.mark.parametrize("name", COMMANDS)
def test_options(name: str) -> None:
    """Each option stands in the table of its command, in the words of its help; or at the top of the page, if there
    it has no other meaning."""
    told = table(PAGES[name])
    expected = {}
    for option in tree.options(COMMANDS[name]):
        names = ", ".join(f"`{flag}`" for flag in [*option.opts, *option.secondary_opts])
        if names not in told and names in SHARED:
            same = {other.help for command in COMMANDS.values() if not isinstance(command, click.Group)
                    for other in tree.options(command)
                    if other.opts == option.opts and f"`{other.opts[-1]}`" not in table(PAGES[name_of(command)])}
            assert same == {option.help}, f"{names} has several meanings: it belongs into the command's own table"
            continue
        default = option.get_help_extra(click.Context(COMMANDS[name])).get("default")
        expected[names] = words(f"{option.help} Default: {default}." if default else str(option.help))
    assert {names: words(text) for names, text in told.items()} == expected


def name_of(command: click.Command) -> str:
    return next(name for name, other in COMMANDS.items() if other is command)


@pytest.mark.parametrize("name", COMMANDS)
def test_what_help_says_is_in_the_manual(name: str) -> None:
    page = words(PAGES[name])
    for paragraph in tree.prose(COMMANDS[name]).split("\n\n"):
        assert words(paragraph) in page


@pytest.mark.parametrize("name", COMMANDS)
def test_example(name: str) -> None:
    examples = tree.example(COMMANDS[name])
    assert examples.strip(), "no example in its help"
    assert f"```sh\n{examples}\n```" in PAGES[name]
    if name != "pyrepl":
        assert name in examples or isinstance(COMMANDS[name], click.Group)


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if not isinstance(command, click.Group)])
def test_exit_status_is_told(name: str) -> None:
    assert "\nExit status: " in PAGES[name]


def test_examples_are_commands_that_exist() -> None:
    """Each line of an example that begins with pyrepl parses: its command and options are there."""
    for name in COMMANDS:
        for line in tree.example(COMMANDS[name]).splitlines():
            for call in re.findall(r"(?:^|\| |&& )(pyrepl [^|#&>]*)", line):
                arguments = [word.strip('"') for word in call.split()]
                command: click.Command = COMMANDS["pyrepl"]
                path = ["pyrepl"]
                while isinstance(command, click.Group) and len(arguments) > len(path):
                    if arguments[len(path)] == "COMMAND":
                        break
                    path.append(arguments[len(path)])
                    assert " ".join(path) in COMMANDS, call
                    command = COMMANDS[" ".join(path)]
                known = {flag for option in tree.options(command) for flag in [*option.opts, *option.secondary_opts]}
                flags = {word for word in arguments[len(path):] if re.fullmatch(r"--?[a-z][a-z-]*", word)}
                assert flags <= known | {"--help"}, call


def test_exit_statuses() -> None:
    """The table is the classes: each with its status, each status with its classes."""
    rows = re.findall(r"^\| (\d+) \| ([^|]*)\| [^|]+ \|$", PAGES["Exit status"], flags=re.MULTILINE)
    told = {int(status): set(re.findall(r"`(\w+)`", classes)) for status, classes in rows}
    known: dict[int, set[str]] = {}
    for name in errors.__all__:
        kind = getattr(errors, name)
        known.setdefault(kind.exit_status, set()).add(name)
    assert {status: classes for status, classes in told.items() if classes} == known
    assert {status for status, classes in told.items() if not classes} == {0, 130, 141}


def test_meaning_of_an_exit_status_is_that_of_the_class() -> None:
    for status, name, meaning in re.findall(r"^\| (\d+) \| `(\w+)`[^|]* \| ([^|]+) \|$", PAGES["Exit status"],
                                            flags=re.MULTILINE):
        first = (getattr(errors, name).__doc__ or "").split(";")[0].split(".")[0]
        if int(status) not in (1, 8, 9):  # which have a meaning of their own on the command line
            assert first.split(",")[0] in meaning


# ---- JSON


SECTIONS = sections(JSON)


def test_every_struct_has_its_section_and_nothing_else_has() -> None:
    titles = [title for title in SECTIONS if title not in ("JSON", "Outputs", "Parts")]
    assert titles == [*(name for name, kind in STRUCTS.items() if structs.is_output(kind)),
                      *(name for name, kind in STRUCTS.items() if not structs.is_output(kind))]


@pytest.mark.parametrize("name", STRUCTS)
def test_fields_types_and_units(name: str) -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]*)\| ([^|]+) \|$", SECTIONS[name], flags=re.MULTILINE)
    rows = [row for row in rows if "-" not in row[0]]
    assert [(field, kind, unit.strip()) for field, kind, unit, _ in rows] == structs.rows(STRUCTS[name])
    assert all(len(meaning) > 3 for *_, meaning in rows)


@pytest.mark.parametrize("name", [name for name, kind in STRUCTS.items() if structs.is_output(kind)])
def test_outputs_name_commands_that_exist(name: str) -> None:
    named = re.findall(r"`(pyrepl [a-z ]+)`", SECTIONS[name].split("|")[0])
    assert all(one in COMMANDS for one in named)
    assert named or "mark" in SECTIONS[name]


def test_every_json_option_has_an_output() -> None:
    """What takes --json is named by a section, or changes a store (Operation)."""
    text = " ".join(section.split("|")[0] for section in SECTIONS.values())
    for name, command in COMMANDS.items():
        if any("--json" in option.opts for option in tree.options(command)):
            noun = name.split()[1]
            assert f"`{name}`" in text or noun in ("volume", "snapshot", "mark"), name


def test_schema_is_one_everywhere() -> None:
    for kind in STRUCTS.values():
        if structs.is_output(kind):
            field = next(field for field in msgspec.structs.fields(kind) if field.name == "schema")
            assert field.default == 1
            assert kind.__struct_fields__[0] == "schema"


def test_every_event_is_described() -> None:
    package = Path(__file__).resolve().parents[2] / "src" / "pyrepl"
    emitted = {name for path in package.rglob("*.py") for name in re.findall(r'"event": "([a-z-]+)"', path.read_text())}
    own = {"ready", "stopping", "stopped"}  # lines of pyrepld's standard output
    table = JSON.partition("Events and their details:")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `([a-z-]+)` \|", table, flags=re.MULTILINE)) == emitted - own
