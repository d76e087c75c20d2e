"""The storage step: a directory of the host, a named volume or memory, as a mount for the containers after it.

It only tells of mounts, in the spelling of the CDI specification; the container step makes them, in its own namespace.
"""

from __future__ import annotations

import os

from podrun.errors import WRONG_FILE, Failure
from podrun.hook import ABSOLUTE, TEXT, Problem, Wrong, checked, list_of, option
from podrun.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from podrun.hook import Facts, Step

takes: Sequence[str] = ()
gives: Sequence[str] = ("mounts",)
resident = False
default_name = ""

_VOLUME, _TMPFS = "volume:", "tmpfs:"
#: Sources that need a mount on the host first; each becomes one more way to get a directory in _mount.
_LATER = ("nfs:", "image:", "btrfs-snapshot:", "cifs:", "overlay:")
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

#: Options of mount(8) that a runtime knows, by what they decide: of each group the last word wins.
_FLAGS = (
    ("ro", "rw", "rro", "rrw"),
    ("nosuid", "suid"),
    ("nodev", "dev"),
    ("noexec", "exec"),
    ("rbind", "bind"),
    ("private", "rprivate", "slave", "rslave", "shared", "rshared", "unbindable", "runbindable"),
    ("noatime", "relatime", "strictatime", "atime"),
    ("nodiratime", "diratime"),
    ("sync", "async"),
    ("nosymfollow", "symfollow"),
)
_GROUP = {word: group for group, words in enumerate(_FLAGS) for word in words}
_OF_TMPFS = ("size", "mode", "uid", "gid", "nr_inodes")
_OF_A_BIND = frozenset(_FLAGS[_GROUP["bind"]] + _FLAGS[_GROUP["private"]])
#: Words of docker's -v that mean nothing here: SELinux labels, and promises about caches of its virtual machine.
_IDLE = frozenset({"z", "Z", "cached", "delegated", "consistent", "nocopy"})


def _source(text: str) -> str:
    """Raises Wrong for what is no source."""
    if text.startswith(_VOLUME):
        _volume(text[len(_VOLUME) :])
        return text
    if text.startswith(_TMPFS):
        if text != _TMPFS:
            raise Wrong(f"nothing follows after tmpfs: in {text!r}; its size is an option: size=64M")
        return text
    later = next((prefix for prefix in _LATER if text.startswith(prefix)), "")
    if later:
        raise Wrong(f"sources of kind {later} are not there yet; there are a path, volume: and tmpfs:")
    if not text.startswith("/"):
        raise Wrong(f"expected an absolute path, volume:NAME or tmpfs:, not {text!r}")
    return ABSOLUTE.parse(text)


def _volume(name: str) -> str:
    if not name or name.strip(_LETTERS + "-_.") or name[0] not in _LETTERS or len(name) > 128:
        raise Wrong(f"expected a volume's name of letters, digits, '-', '_' and '.', not {name!r}")
    return name


def _target(text: str) -> str:
    plain = f"/{'/'.join(part for part in text.split('/') if part not in ('', '.'))}"
    if plain == "/":
        raise Wrong("the root of the container is the image's place")
    return plain


def _option(text: str) -> str:
    key, equals, value = text.partition("=")
    if equals and key in _OF_TMPFS:
        _PARSERS[key](value)
    elif text not in _GROUP:
        raise Wrong(f"{text!r} is not an option of a bind, volume or tmpfs mount")
    return text


def _amount(text: str) -> None:
    number = text[:-1] if text[-1:] in tuple("kKmMgG%") else text
    if not (number.isascii() and number.isdecimal()):
        raise Wrong(f"expected a size such as 64M or 10%, not {text!r}")


def _octal(text: str) -> None:
    if not 0 < len(text) < 6 or text.strip("01234567"):
        raise Wrong(f"expected an octal mode such as 1777, not {text!r}")


def _id(text: str) -> None:
    if not (text.isascii() and text.isdecimal()) or int(text) >= 1 << 32:
        raise Wrong(f"expected a numeric id, not {text!r}")


_PARSERS = {"size": _amount, "nr_inodes": _amount, "mode": _octal, "uid": _id, "gid": _id}

SOURCE = checked(TEXT, _source, {"examples": ["/srv/web", "volume:data", "tmpfs:"]})
TARGET = checked(ABSOLUTE, _target)
OPTION = checked(TEXT, _option, {"examples": ["ro", "noexec", "size=64M"]})


class Options(NamedTuple):
    """What is mounted where."""

    source: str = option(SOURCE, "an absolute path of the host, volume:NAME, or tmpfs:")
    target: str = option(TARGET, "where the containers see it")
    options: list[str] = option(list_of(OPTION), "mount(8) options; nosuid and nodev unless undone by suid and dev", [])


def up(step: Step, facts: Facts) -> Facts:
    """Tells of the mount; a named volume that is not there is created."""
    options: Options = step.options
    step.notify(f"STATUS=providing {options.target}")
    provide(options.source, step.pod.root)
    return {"mounts": [_mount(options.source, options.target, options.options, step.pod.root)]}


def down(step: Step, own: Facts) -> None:
    """Nothing to undo: the mount went with the container, and a named volume outlives its pods."""


def check(step: Step) -> list[Problem]:
    """A source that has to exist, and options that its kind of mount does not have."""
    options: Options = step.options
    return [*missing(options.source), *_misplaced(options.source, options.options)]


def explain(step: Step) -> list[str]:
    """The mount(8) command; ROOTFS is the container's root, in its mount namespace."""
    options: Options = step.options
    mount = _mount(options.source, options.target, options.options, step.pod.root)
    where = f"ROOTFS{mount['containerPath']}"
    if mount["type"] == "tmpfs":
        return [f"mount -t tmpfs -o {','.join(mount['options'])} tmpfs {where}"]
    made = [f"mkdir -p {mount['hostPath']}"] if options.source.startswith(_VOLUME) else []
    flags = ",".join(word for word in mount["options"] if word not in ("bind", "rbind"))
    return [*made, f"mount --rbind {mount['hostPath']} {where}", f"mount -o remount,bind,{flags} {where}"]


def from_docker(text: str, root: str = "") -> dict[str, Any]:
    """The mount (CDI) that docker's ``-v`` spells ``source:target[:options]``; a source without a slash is a volume.

    ``root`` is the pod's, for named volumes. Without side effects: call :func:`missing` in a check and :func:`provide`
    before mounting, both with :func:`docker_source`. Raises Wrong.
    """
    source, target, words = _split(text)
    if source.startswith(_VOLUME) and not root:
        raise Wrong(f"expected an absolute path, not {text!r}")
    options = [OPTION.parse(word) for word in words if word and word not in _IDLE]
    for problem in _misplaced(source, options):
        raise Wrong(f"{problem.what} in {text!r}")
    return _mount(source, target, options, root)


def docker_source(text: str) -> str:
    """The source of a docker-spelled volume as :func:`missing` and :func:`provide` take it. Raises Wrong."""
    return _split(text)[0]


def missing(source: str) -> list[Problem]:
    """The problem with a source that is a path of the host and not there; docker would create a directory of root's."""
    if source.startswith("/") and not os.path.exists(source):
        return [Problem(f"there is no {source} on the host", WRONG_FILE, "create it, or use a named volume")]
    return []


def provide(source: str, root: str) -> None:
    """Makes sure that a source is there: a named volume is created, 0755. Raises Failure (WRONG_FILE) for a path."""
    for problem in missing(source):
        raise Failure(problem.what, code=problem.code, hint=problem.hint)
    if source.startswith(_VOLUME):
        place = _place(source, root)
        # Of the directories above, only root's own are made along with it; the payload may be anybody.
        os.makedirs(os.path.dirname(place), mode=0o755, exist_ok=True)
        try:
            os.mkdir(place, 0o755)
        except FileExistsError:
            return
        os.chmod(place, 0o755)


def _split(text: str) -> tuple[str, str, list[str]]:
    fields = text.split(":")
    if len(fields) not in (2, 3) or not fields[0]:
        raise Wrong(f"expected source:target[:options], not {text!r}")
    source = fields[0] if "/" in fields[0] else f"{_VOLUME}{fields[0]}"
    return _source(source), TARGET.parse(fields[1]), fields[2].split(",") if len(fields) == 3 else []


def _misplaced(source: str, options: Sequence[str]) -> list[Problem]:
    if source == _TMPFS:
        wrong = [word for word in options if word in _OF_A_BIND]
        kind = "a tmpfs"
    else:
        wrong = [word for word in options if "=" in word]
        kind = "a bind mount"
    return [Problem(f"option {word!r} is not one of {kind}", WRONG_FILE) for word in wrong]


def _mount(source: str, target: str, options: Sequence[str], root: str) -> dict[str, Any]:
    if source == _TMPFS:
        words = _resolved(["nosuid", "nodev", "mode=1777"], options)
        return {"hostPath": "tmpfs", "containerPath": target, "type": "tmpfs", "options": words}
    path = _place(source, root) if source.startswith(_VOLUME) else source
    words = _resolved(["rbind", "nosuid", "nodev"], options)
    return {"hostPath": path, "containerPath": target, "type": "bind", "options": words}


def _resolved(defaults: Sequence[str], options: Sequence[str]) -> list[str]:
    """The defaults with what ``options`` say; of words that contradict each other, the later."""
    chosen = {_GROUP.get(word, word.partition("=")[0]): word for word in (*defaults, *options)}
    return list(chosen.values())


def _place(source: str, root: str) -> str:
    return f"{root}/volumes/{source[len(_VOLUME) :]}/data"
