"""What is wrong with a step is told with the file and the line, whoever found it: podrun, a hook, or an executable."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from podrun_hooks.executable import declaration
from support.launcher import Podrun

pytestmark = pytest.mark.root

DESCRIPTION = {
    "doc": "writes notes",
    "options": {
        "type": "object",
        "additionalProperties": False,
        "required": ["text"],
        "properties": {
            "text": {"type": "string", "description": "what to write"},
            "size": {"type": "integer", "minimum": 1},
            "colour": {"enum": ["red", "blue"]},
            "tags": {"type": "array", "items": {"type": "string"}},
        },
    },
}


@pytest.fixture
def note(home: Path, podrun: Podrun) -> Any:
    """An executable that says what its options are, and whatever the test lets it do besides."""
    (home / "hooks.d").mkdir()
    podrun.environ["PODRUN_HOOKS"] = str(home / "hooks.d")

    def write(more: str = "", description: Any = DESCRIPTION) -> None:
        path = home / "hooks.d/note"
        said = f"describe) echo '{json.dumps(description)}';;"
        path.write_text(f"#!/bin/sh\necho $PODRUN_VERB >>{home}/asked\ncase $PODRUN_VERB in {said} {more} esac\n")
        path.chmod(0o755)

    write()
    return write


def steps(podrun: Podrun, *lines: Any) -> Any:
    return podrun.file("web", "[[chain]]\n" + "\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("lines", "line", "what"),
    [
        (['hook = "note"', 'text = "x"', 'colr = "red"'], 4, "unknown key 'colr'; did you mean 'colour'?"),
        (['hook = "note"', "text = 3"], 3, "text: expected a string, not 3"),
        (['hook = "note"', 'text = "x"', "size = 0"], 4, "size: expected at least 1, not 0"),
        (['hook = "note"', 'text = "x"', "size = true"], 4, "size: expected an integer, not True"),
        (['hook = "note"', 'text = "x"', 'colour = "green"'], 4, "colour: expected one of red, blue, not 'green'"),
        (['hook = "note"', 'text = "x"', 'tags = ["a", 3]'], 4, "tags[1]: expected a string, not 3"),
        (['hook = "note"'], 2, "text is missing"),
    ],
)
def test_check_believes_what_an_executable_says_of_its_options(
    podrun: Podrun, note: Any, lines: Any, line: int, what: str
) -> None:
    file = steps(podrun, *lines)
    done = podrun("check", file)
    assert (done.stdout, done.returncode) == (f"{file}:{line}: note: error: {what}\n", 78)
    assert f"!  note: {what}\n" in podrun("plan", file).stdout


def test_a_start_does_not_ask_an_executable_what_it_is(podrun: Podrun, home: Path, note: Any) -> None:
    podrun("up", "-d", steps(podrun, 'hook = "note"', "size = 0"), check=True)
    podrun("down", "web", check=True)
    assert (home / "asked").read_text().split() == ["up", "down"]


@pytest.mark.parametrize(
    "description", ["x", [], {"options": 1}, {"options": {"properties": [], "required": 3, "additionalProperties": {}}}]
)
def test_a_description_that_is_none_is_left_aside_and_the_kit_says_so(
    podrun: Podrun, home: Path, note: Any, description: Any
) -> None:
    note(description=description)
    file = steps(podrun, 'hook = "note"', "any = 1")
    assert podrun("check", file).returncode == 0
    assert podrun("hook", "describe", "note").returncode == 0
    assert podrun("schema").returncode == 0


def test_the_kit_finds_a_description_that_nobody_can_use(podrun: Podrun, note: Any) -> None:
    note(description={"takes": "netns"})
    done = podrun("hook", "test", "note")
    assert done.returncode == 76
    assert "what it answers to describe has no good takes" in done.stdout


def test_editors_complete_what_an_executable_says_of_its_options(podrun: Podrun, note: Any) -> None:
    schema = json.loads(podrun("schema").stdout)
    [table] = [
        one["then"] for one in schema["$defs"]["step"]["allOf"] if one["if"]["properties"]["hook"]["const"] == "note"
    ]
    assert table["properties"]["text"]["description"] == "what to write"
    assert (table["required"], table["additionalProperties"]) == (["text"], False)


@pytest.mark.parametrize(
    ("schema", "options", "what"),
    [
        ({}, {"a": 1}, []),
        (None, {"a": 1}, []),
        ({"additionalProperties": {"type": "string"}}, {"a": 1}, ["a: expected a string, not 1"]),
        ({"properties": {"a": {"type": ["string", "null"]}}}, {"a": 1}, ["a: expected a string or nothing, not 1"]),
        ({"properties": {"a": {"type": "number"}}}, {"a": 1}, []),
        ({"properties": {"a": {"type": "number"}}}, {"a": True}, ["a: expected a number, not True"]),
        ({"properties": {"a": {"type": "nonsense"}}}, {"a": 1}, []),
        ({"properties": {"a": {"pattern": "^b"}}}, {"a": "ab"}, ["a: 'ab' does not match ^b"]),
        ({"properties": {"a": {"pattern": "("}}}, {"a": "ab"}, []),
        ({"properties": {"a": {"maxItems": 1}}}, {"a": [1, 2]}, ["a: expected at most 1, not 2 items"]),
        (
            {"properties": {"a": {"properties": {"b": {"type": "integer"}}}}},
            {"a": {"b": "x"}},
            ["b: expected an integer, not 'x'"],
        ),
        ({"required": ["a", "b"]}, {}, ["a is missing", "b is missing"]),
    ],
)
def test_declarations(schema: Any, options: Any, what: Any) -> None:
    assert [wrong.what for wrong in declaration.wrong(schema, options)] == what


# --- where ------------------------------------------------------------------------------------------------------------


def test_what_first_party_hooks_find_is_told_with_the_line_of_the_option(podrun: Podrun) -> None:
    holder = socket.create_server(("127.0.0.1", 0))
    port = holder.getsockname()[1]
    found = {}
    for name, lines, line in (
        ("mount source", ['hook = "storage"', 'target = "/data"', 'source = "/srv/nowhere"'], 4),
        ("port", ['hook = "network"', "publish = [", f'  "127.0.0.1:{port}:80",', "]"], 3),
        ("image", ['hook = "image"', 'pull = "never"', 'ref = "localhost:1/no/such:1"'], 4),
        ("directory", ['hook = "image"', 'ref = "dir:/srv/nowhere"'], 3),
        ("registry", ['hook = "register"', 'service = "x"', "port = 1", 'registry = "file:/srv/nowhere"'], 5),
        ("netns", ['hook = "network"', 'mode = "netns:/run/netns/nowhere"'], 3),
        ("oci", ['hook = "oci-hooks"', 'directories = ["/srv/nowhere"]'], 3),
    ):
        file = steps(podrun, *lines)
        up, check = podrun("up", file), podrun("check", file)
        found[name] = (f"podrun: web: {file}:{line}: " in up.stderr, check.stdout.startswith(f"{file}:{line}: "))
        assert "nothing was started" in up.stderr, up.stderr
    holder.close()
    assert found == dict.fromkeys(found, (True, True))


def test_the_line_is_that_of_the_drop_in_that_says_so(podrun: Podrun, home: Path) -> None:
    file = steps(podrun, 'hook = "storage"', 'target = "/data"', 'source = "/usr"')
    (home / "web.toml.d").mkdir()
    drop_in = home / "web.toml.d/10-site.toml"
    drop_in.write_text('# ours\n[[chain]]\nhook = "storage"\nsource = "/srv/nowhere"\n')
    assert f"podrun: web: {drop_in}:4: storage: there is no /srv/nowhere on the host" in podrun("up", file).stderr


def test_the_line_of_a_template_is_told_for_its_instances(podrun: Podrun, home: Path) -> None:
    (home / "web@.toml").write_text('[[chain]]\nhook = "storage"\ntarget = "/data"\nsource = "/srv/%i"\n')
    done = podrun("up", f"{home}/web@blue.toml")
    assert f"podrun: web@blue: {home}/web@.toml:4: storage: there is no /srv/blue" in done.stderr


def test_of_several_wrong_steps_the_first_one_is_told(podrun: Podrun) -> None:
    file = podrun.file("web", "".join(f'[[chain]]\nhook = "nobody"\nname = "{name}"\n' for name in "abc"))
    assert podrun("up", file).stderr.startswith(f"podrun: web: {file}:2: unknown hook 'nobody'")
    file = podrun.file("web", '[[chain]]\nhook = "storage"\nsorce = "/usr"\n' * 2)
    assert podrun("up", file).stderr.startswith(f"podrun: web: {file}:3: unknown key 'sorce'")


def test_a_pod_without_a_file_has_no_lines(podrun: Podrun) -> None:
    done = podrun("run", "-v", "/srv/nowhere:/x", "host:", "true")
    assert (done.returncode, "there is no /srv/nowhere on the host" in done.stderr, ".toml" in done.stderr) == (
        78,
        True,
        False,
    )


def test_an_executable_says_which_option_it_means_in_check_and_in_up(podrun: Podrun, note: Any) -> None:
    error = json.dumps({"error": "no such colour here", "hint": "ask ops", "key": "colour"})
    problem = json.dumps({"problems": [{"what": "no paint", "key": "text", "fatal": True}]})
    note(f"up) echo '{error}'; exit 69;; check) echo '{problem}';;")
    file = steps(podrun, 'hook = "note"', 'text = "x"', 'colour = "red"')
    assert podrun("check", file).stdout == f"{file}:3: note: error: no paint\n"
    done = podrun("up", file)
    assert done.stderr == f"podrun: web: {file}:4: note: no such colour here; ask ops; undone: note\n"
    assert done.returncode == 69


def test_an_option_that_the_file_does_not_have_is_told_at_its_step(podrun: Podrun, note: Any) -> None:
    note("""up) echo '{"error": "no key", "key": "key_file"}'; exit 69;;""")
    file = steps(podrun, "# one", 'hook = "note"', 'text = "x"')
    assert f"podrun: web: {file}:1: note: no key;" in podrun("up", file).stderr


# --- what an executable may do to those who ask it ------------------------------------------------------------------


@pytest.mark.parametrize(
    "told",
    [
        "head -c 3000000 /dev/zero",
        "printf '\\377\\376{}'",
        "printf '%0100000d' 0 | tr 0 '['",
        "exec /nowhere",
        "kill -9 $$",
        """echo '{"doc": 1, "takes": 1, "gives": [1], "options": {"properties": {"a": {"type": [1], "enum": "abc"}, "b": 4}}}'""",
        """printf '{"doc": "a\\\\u001b[2J\\\\nb", "options": {"properties": {"a\\\\u001b": {"description": "\\\\u0007"}}}}'""",
    ],
)
def test_describing_ends_well_whatever_is_told(podrun: Podrun, home: Path, told: str) -> None:
    (home / "odd").write_text(f"#!/bin/sh\n{told}\n")
    (home / "odd").chmod(0o755)
    for words in (
        ("hook", "describe", f"{home}/odd"),
        ("check", steps(podrun, f'hook = "exec:{home}/odd"', 'a = "x"')),
    ):
        done = podrun(*words)
        assert (done.returncode, done.stderr.count("Traceback"), done.stderr.count("internal")) == (0, 0, 0), (
            done.stderr
        )
        assert not {letter for letter in done.stdout if not letter.isprintable()} - {"\n"}


@pytest.mark.parametrize("name", ["nowhere", "directory", "link", "plain", "others"])
def test_what_cannot_be_run_is_not_described(podrun: Podrun, home: Path, name: str) -> None:
    (home / "directory").mkdir()
    (home / "link").symlink_to("nowhere")
    (home / "plain").write_text("")
    (home / "others").write_text("")
    (home / "others").chmod(0o777)
    done = podrun("hook", "describe", f"{home}/{name}")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (77 if name == "others" else 78, "", 1)


@pytest.mark.parametrize(
    "words",
    [
        ["-o", "x"], ["-o", "=1"], ["-o", "hook=image"], ["-o", "x=1979-05-27"], ["-o", "x=inf"], ["--facts", "["],
        ["--facts", "[1]"], ["--facts", '{"netns": 5}'], ["--rounds", "0"], ["--rounds", "x"], ["--in", "nowhere.toml"],
    ],
)  # fmt: skip
def test_the_kit_refuses_what_it_cannot_use(podrun: Podrun, note: Any, words: Any) -> None:
    done = podrun("hook", "test", "note", *words)
    assert (done.returncode, done.stdout) == (78, "")
    assert "Traceback" not in done.stderr
