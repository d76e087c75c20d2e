"""Text that becomes lines of a unit: one setting stays one setting, whatever bytes are in it."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from podrun.options import Wrong
from podrun.systemd import boot, syntax, units
from podrun.systemd.generator import declared

#: What systemd's parser treats as its own (systemd.syntax(7), systemd.service(5)), and some that it does not.
NASTY = ["\n", "\r", "\t", "\\", "\\\\", '"', "'", "%", "%i", "$", "${X}", "$$", ";", " ; ", "#", "[Service]", "\nExecStartPre=/x",
         " ", "  ", "=", "@", "-", "+", "!", "|", ":", "\x01", "\x1b[2J", "\x7f", "\u2028", "\x85", "ü", "a", "0", "~", "*", "\\n", "\\x41"]  # fmt: skip


def words() -> list[str]:
    chance = random.Random(7)
    return [*NASTY, "", *("".join(chance.choices(NASTY, k=chance.randint(1, 5))) for _ in range(300))]


def pod(tmp_path: Path, tables: dict[str, Any], file: str = "/etc/podrun/web.toml") -> units.Pod:
    chain = [
        {"hook": "image", "name": "image", "ref": "host:"},
        {"hook": "container", "name": "main", "command": ["true"]},
    ]
    known = declared({"image", "container"})
    sections = {key: tables.get(key, {}) for key in ("unit", "service", "install")}
    return units.Pod("web", "", file, tables.get("pod", {}), units.cut(chain, known), sections, [], known=known)


def read_back(line: str) -> list[str]:
    """The words of a command line, by the rules of the manual alone."""
    found, at = [], 0
    while at < len(line):
        if line[at] == " ":
            at += 1
            continue
        quote, word = (line[at], "") if line[at] in "\"'" else ("", "")
        at += bool(quote)
        while at < len(line) and line[at] != (quote or " "):
            if line[at] == "\\":
                if line[at + 1] == "x":
                    word, at = word + chr(int(line[at + 2 : at + 4], 16)), at + 4
                else:
                    word, at = word + line[at + 1], at + 2
            elif line[at : at + 2] in ("%%", "$$"):
                word, at = word + line[at], at + 2
            else:
                assert line[at] not in "%$", f"a specifier or a variable in {line!r}"
                word, at = word + line[at], at + 1
        at += bool(quote)
        found.append(word)
    return found


def test_every_word_of_a_command_line_is_read_back_as_it_was() -> None:
    for word in words():
        line = syntax.quoted(word)
        assert not set(line) & set("\n\r\0")
        assert read_back(line) == [word], line
    assert read_back(" ".join(map(syntax.quoted, words()))) == words()


def test_systemd_loads_a_unit_with_every_word(tmp_path: Path) -> None:
    lines = [f"ExecReload=/bin/echo {syntax.quoted(word)} end" for word in words()]
    (tmp_path / "web.service").write_text(
        "\n".join(["[Service]", "Type=oneshot", "ExecStart=/bin/true", *lines]) + "\n"
    )
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", f"{tmp_path}/web.service"], capture_output=True, text=True, timeout=60
    )
    complaints = [line for line in done.stderr.splitlines() if "web.service" in line]
    assert complaints == []


@pytest.mark.parametrize("word", ["a\nb", "a\\", "a\r", "\0", "100%", "${X}", 'a"b', "\ud800"])
def test_the_words_of_reload_and_the_file_of_a_pod_make_no_line_of_their_own(tmp_path: Path, word: str) -> None:
    found = pod(tmp_path, {"pod": {"reload": ["kick", word]}})
    try:
        text = units.single(found, units.Command("/opt/podrun"))
    except Wrong:
        assert word in ("\0", "\ud800")
        return
    reloads = [line for line in text.splitlines() if line.startswith("ExecReload=")]
    assert len(reloads) == 1
    assert read_back(reloads[0].partition("=")[2].replace("-c main ", ""))[-1] == word


@pytest.mark.parametrize("value", ["a\nExecStartPre=/x", "a\r", "a\0b", "a\\", "\\" * 3, "\ud800", "x" * (1 << 21)])
@pytest.mark.parametrize(
    ("section", "key"), [("unit", "Description"), ("service", "Environment"), ("install", "WantedBy")]
)
def test_a_setting_that_would_be_more_or_less_than_a_line_is_refused(
    tmp_path: Path, section: str, key: str, value: str
) -> None:
    for given in (value, ["fine", value]):
        with pytest.raises(Wrong, match="not a setting of one line"):
            units.single(pod(tmp_path, {section: {key: given}}), units.Command("/opt/podrun"))


@pytest.mark.parametrize("value", ["a\\\\", "tab\tx", "ü", "%i", "#x", "[Service]", " lead"])
def test_what_is_one_line_is_the_administrators_to_say(tmp_path: Path, value: str) -> None:
    text = units.single(pod(tmp_path, {"service": {"SyslogIdentifier": value}}), units.Command("/opt/podrun"))
    assert f"\nSyslogIdentifier={value}\n" in text


@pytest.mark.parametrize("file", ["/a\nb.toml", "/a\\", "/a\r.toml"])
def test_a_path_that_is_no_line_makes_no_unit(tmp_path: Path, file: str) -> None:
    with pytest.raises(Wrong):
        units.single(pod(tmp_path, {}, file), units.Command("/opt/podrun"))
    with pytest.raises(Wrong):
        boot.broken(file, "x", units.Command("/opt/podrun"))


def test_a_dependency_is_the_name_of_a_unit_and_no_path() -> None:
    text = "[Install]\nWantedBy=multi-user.target ../../../etc/x.target\nRequiredBy=/etc/a\n"
    assert syntax.links("web.service", text) == ["multi-user.target.wants/web.service"]
