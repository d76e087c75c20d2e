"""Writes the manual pages: of commands from click's help, podrun.toml(5) from declarations, podrun-hook(7) from docs.

Nothing is written twice: what --help, the JSON Schema and the reference say is what the pages say.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from podrun import __version__
from podrun.cli.main import podrun
from podrun.engine import hook_loader
from podrun.options import REQUIRED, Option
from podrun.podfile import tables

DOCS = Path(__file__).parents[1] / "docs"
_DATE = "2026"
_BULLET = "\\(bu"


def pages() -> dict[str, str]:
    """The pages by file name: "podrun-up.1" and its text."""
    found = {}
    for words, command, context in _commands(podrun, ["podrun"], None):
        found[f"{'-'.join(words)}.1"] = _command(words, command, context)
    found["podrun.toml.5"] = _pod_file()
    found["podrun-hook.7"] = _from_markdown(
        "podrun-hook", "7", "the hook contract", (DOCS / "reference" / "hooks.md").read_text()
    )
    return found


# --- commands -------------------------------------------------------------------------------------------------------


def _commands(
    command: click.Command, words: list[str], parent: click.Context | None
) -> Iterator[tuple[list[str], click.Command, click.Context]]:
    context = click.Context(command, info_name=words[-1], parent=parent)
    yield words, command, context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None and not inner.hidden:
                yield from _commands(inner, [*words, name], context)


def _command(words: list[str], command: click.Command, context: click.Context) -> str:
    name = "-".join(words)
    help_text = (command.help or "").strip()
    first, _, rest = help_text.partition("\n\n")
    short = " ".join(first.split()).rstrip(".")
    lines = [_title(name, "1"), ".SH NAME", f"{_plain(name)} \\- {_inline(short[:1].lower() + short[1:])}"]
    usage = " ".join(command.collect_usage_pieces(context))
    lines += [".SH SYNOPSIS", f".B {_plain(' '.join(words))}", _inline(usage)]
    lines += [".SH DESCRIPTION", _inline(" ".join(first.split()))]
    for paragraph in rest.split("\n\n") if rest else ():
        lines += [".PP", _inline(" ".join(paragraph.split()))]
    options = [parameter.get_help_record(context) for parameter in command.get_params(context)]
    known = [record for record in options if record and record[1]]
    if known:
        lines.append(".SH OPTIONS")
        for flags, text in known:
            lines += [".TP", f".B {_plain(flags)}", _inline(text) or "\\&"]
    if isinstance(command, click.Group):
        lines.append(".SH COMMANDS")
        for inner in command.list_commands(context):
            sub = command.get_command(context, inner)
            if sub is not None and not sub.hidden:
                lines += [".TP", f".BR {_plain(name)}\\-{_plain(inner)} (1)", _inline(sub.get_short_help_str(100))]
    if words == ["podrun"]:
        lines += _environment_and_files()
    lines.append(".SH SEE ALSO")
    others = ["-".join(words[:-1])] if len(words) > 1 else []
    lines.append(", ".join(f"\\fB{_plain(page)}\\fR(1)" for page in others) + (", " if others else "") + _SEE)
    return "\n".join(lines) + "\n"


_SEE = "\\fBpodrun.toml\\fR(5), \\fBpodrun\\-hook\\fR(7)"
_CODES = {
    "65": "the image is malformed or fails verification",
    "69": "something needed is unavailable: a registry, dockerd, etcd",
    "73": "something cannot be created: the disk is full, a foreign object is in the way",
    "75": "busy, try again: the pod is up already, a pool is exhausted",
    "76": "a step failed",
    "77": "not allowed: credentials, the ownership of a hook",
    "78": "the pod file or the options are wrong",
    "125": "podrun itself failed",
    "126, 127": "the command cannot be executed, is not in the image",
    "128+n": "the container was ended by the signal n",
}
_FILES = {
    "/etc/podrun/NAME.toml": "the pods of this host, each a unit when the generator is installed; see podrun.toml(5)",
    "/etc/podrun/networks.toml": "subnets of bridges, and what all pods on them have in common",
    "/var/lib/podrun": "images, volumes and writable layers (--root, PODRUN_ROOT)",
    "/run/podrun": "journals, leases and the file registry (--run, PODRUN_RUN)",
}


def _environment_and_files() -> list[str]:
    lines = [".SH EXIT STATUS", "That of the container where one ran, else:"]
    for code, text in _CODES.items():
        lines += [".TP", f".B {_plain(code)}", _inline(text)]
    lines.append(".SH FILES")
    for path, text in _FILES.items():
        lines += [".TP", f".I {_plain(path)}", _inline(text)]
    return lines


# --- the pod file ---------------------------------------------------------------------------------------------------


def _pod_file() -> str:
    lines = [
        _title("podrun.toml", "5"),
        ".SH NAME",
        "podrun.toml \\- one pod: an ordered chain of steps",
        ".SH SYNOPSIS",
        ".I /etc/podrun/NAME.toml",
        ".SH DESCRIPTION",
        "A pod file is TOML: the table \\fB[pod]\\fR, a \\fB[[chain]]\\fR table for each step, in the order of the",
        "start,",
        "and settings that are handed on to the pod's unit. \\fBpodrun check\\fR tells all mistakes,",
        "\\fBpodrun schema\\fR prints the JSON Schema of the file for editors.",
    ]
    lines += [".SH THE TABLES", *_options(tables.FileTable._field_defaults)]
    lines += [".SH THE TABLE [pod]", *_options(tables.PodTable._field_defaults)]
    lines += [".SH EVERY STEP", *_options(tables.StepTable._field_defaults)]
    for name in sorted(hook_loader.FIRST_PARTY):
        hook = hook_loader.load(name)
        if hook.Options is None:
            continue
        about = " ".join(str(getattr(hook, "__doc__", "") or "").split("\n\n")[0].split())
        lines += [f".SH THE STEP {_plain(name)}", _inline(about), *_options(hook.Options._field_defaults)]
    lines += [".SH SEE ALSO", "\\fBpodrun\\fR(1), \\fBpodrun\\-hook\\fR(7), \\fBsystemd.time\\fR(7)"]
    return "\n".join(lines) + "\n"


def _options(declared: dict[str, Option]) -> Iterator[str]:
    for key, option in declared.items():
        default = "required" if option.default is REQUIRED else _default(option.default)
        yield ".TP"
        yield f".BR {_plain(key)}" + (f' " ({_plain(default)})"' if default else "")
        yield _inline(option.doc + _choices(option.kind.schema))
        inner = option.kind.schema.get("properties", {})
        if inner:
            yield ".RS"
            for name, schema in inner.items():
                yield from (".TP", f".B {_plain(name)}", _inline(schema.get("description", "") + _choices(schema)))
            yield ".RE"


def _default(value: Any) -> str:
    if value in (None, "", [], {}, (), 0, 0.0, False):
        return ""
    return f"default: {str(value).lower() if isinstance(value, bool) else value}"


def _choices(schema: Any) -> str:
    words = schema.get("enum")
    return f" (one of {', '.join(str(word) for word in words)})" if words else ""


# --- Markdown -------------------------------------------------------------------------------------------------------


def _from_markdown(name: str, section: str, short: str, text: str) -> str:
    """A page of docs as a manual page: headings, paragraphs, lists, tables, blocks of code."""
    lines = [_title(name, section), ".SH NAME", f"{_plain(name)} \\- {_inline(short)}"]
    blocks = re.split(r"^(```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    for block in blocks:
        if block.startswith("```"):
            body = block.split("\n")[1:-1]
            lines += [".PP", ".RS 4", ".nf", *(_plain(line) or "\\&" for line in body), ".fi", ".RE"]
            continue
        for paragraph in re.split(r"\n\s*\n", block):
            lines += _paragraph(paragraph.strip("\n"))
    lines += [".SH SEE ALSO", "\\fBpodrun\\fR(1), \\fBpodrun.toml\\fR(5)"]
    return "\n".join(lines) + "\n"


def _paragraph(text: str) -> list[str]:
    if not text.strip():
        return []
    first = text.split("\n")[0]
    if first.startswith("# "):
        rest = text.partition("\n")[2]
        return [".SH DESCRIPTION", *(_paragraph(rest) if rest else [])]
    if first.startswith("#"):
        macro = ".SH" if first.startswith("## ") else ".SS"
        heading = first.lstrip("# ")
        rest = text.partition("\n")[2]
        return [f"{macro} {_inline(heading)}", *(_paragraph(rest) if rest else [])]
    if first.startswith("|"):
        rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in text.split("\n")]
        lines = []
        for row in rows[2:]:
            lines += [
                ".TP",
                f"\\fB{_inline(row[0])}\\fR",
                _inline("; ".join(cell for cell in row[1:] if cell)) or "\\&",
            ]
        return lines
    if re.match(r"[-*] |\d+\. ", first):
        items = re.split(r"\n(?=[-*] |\d+\. )", text)
        lines = []
        for item in items:
            mark, _, rest = item.partition(" ")
            lines += [f".IP {_BULLET if mark in '-*' else mark} 4", _inline(" ".join(rest.split()))]
        return lines
    if first.startswith("    "):
        return [".PP", ".RS 4", ".nf", *(_plain(line[4:]) or "\\&" for line in text.split("\n")), ".fi", ".RE"]
    return [".PP", _inline(" ".join(text.split()))]


# --- roff -----------------------------------------------------------------------------------------------------------


def _title(name: str, section: str) -> str:
    return f'.TH "{_plain(name.upper())}" "{section}" "{_DATE}" "podrun {__version__}" "podrun"'


def _plain(text: str) -> str:
    """Text as it is: no character of it is roff's."""
    text = (
        text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq").replace("'", "\\(aq").replace("^", "\\(ha")
    )
    text = text.replace("~", "\\(ti").replace("`", "\\(ga")
    return f"\\&{text}" if text.startswith(".") else text


def _inline(text: str) -> str:
    """A line of prose with Markdown's code, stress and links."""
    text = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", text.replace("\\|", "|"))
    parts = re.split(r"(`[^`]+`|\*\*[^*]+\*\*|(?<![\w*])\*[^*\s][^*]*\*(?!\w))", text)
    made = []
    for part in parts:
        if part.startswith("`") and len(part) > 1:
            made.append(f"\\fB{_plain(part[1:-1])}\\fR")
        elif part.startswith("**"):
            made.append(f"\\fB{_plain(part[2:-2])}\\fR")
        elif part.startswith("*") and len(part) > 2:
            made.append(f"\\fI{_plain(part[1:-1])}\\fR")
        else:
            made.append(_plain(part))
    line = "".join(made)
    return f"\\&{line}" if line.startswith(("'", ".")) else line


def main() -> None:
    """Writes the pages into the directory that is the first argument."""
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (directory / name).write_text(text)


if __name__ == "__main__":
    main()
