"""The options of a storage step: sources, targets and mount(8) options, and docker's spelling of them."""

from __future__ import annotations

from podrun.errors import WRONG_FILE
from podrun.hook import Problem
from podrun.options import ABSOLUTE, TEXT, Wrong, checked, list_of, option, whole
from podrun.options import secret as kept_secret
from podrun.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

VOLUME, TMPFS, FILE, IMAGE, NFS, SNAPSHOT = "volume:", "tmpfs:", "file:", "image:", "nfs:", "btrfs-snapshot:"
#: A bind whose changes are thrown away, as podman calls it.
OVERLAY = "O"
#: Of an image: written to, and what is written is thrown away.
RW = "rw"
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
GROUP = {word: group for group, words in enumerate(_FLAGS) for word in words}
OF_A_BIND = frozenset(_FLAGS[GROUP["bind"]] + _FLAGS[GROUP["private"]])
_NO_COPY = "nocopy"
#: Of a path or volume: all of it is given to the payload's user, as podman calls it.
OWN = "U"
#: What no payload is given as its own, not even by mistake.
_SYSTEM = {
    "/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/media", "/mnt", "/opt", "/proc", "/root", "/run",
    "/sbin", "/srv", "/sys", "/tmp", "/usr", "/var", "/var/lib", "/var/log", "/var/run", "/var/tmp",
}  # fmt: skip
#: Words of docker's -v that mean nothing here: SELinux labels, and promises about caches of its virtual machine.
IDLE = frozenset({"z", "Z", "cached", "delegated", "consistent"})
#: Options of mount helpers that carry a secret: what a step is given is kept in the journal.
_SECRETS = ("password", "pass", "passwd", "password2")


def _source(text: str) -> str:
    """Raises Wrong for what is no source, whatever its type."""
    if text.startswith(VOLUME):
        volume_name(text[len(VOLUME) :])
    elif text.startswith((TMPFS, FILE)):
        if text not in (TMPFS, FILE):
            more = "its size is an option: size=64M" if text.startswith(TMPFS) else "say content or credential"
            raise Wrong(f"nothing may follow {text.partition(':')[0]}: in {text!r}; {more}")
    elif text.startswith(SNAPSHOT):
        ABSOLUTE.parse(text[len(SNAPSHOT) :])
    elif text.startswith((IMAGE, NFS)):
        kind, _, rest = text.partition(":")
        if not rest or (kind == "nfs" and ":/" not in rest) or rest.startswith("-"):
            what = "an image's name" if kind == "image" else "host:/export"
            raise Wrong(f"expected {what} after {kind}:, not {text!r}")
    elif text.startswith("/"):
        return ABSOLUTE.parse(text) if not text.startswith("//") else text
    elif not text or text.startswith("-") or "\n" in text:
        raise Wrong(f"expected an absolute path, volume:NAME or tmpfs:, not {text!r}")
    return text


def volume_name(name: str) -> str:
    """Checks the name of a named volume; raises Wrong."""
    if not name or name.strip(_LETTERS + "-_.") or name[0] not in _LETTERS or len(name) > 128:
        raise Wrong(f"expected a volume's name of letters, digits, '-', '_' and '.', not {name!r}")
    return name


def _target(text: str) -> str:
    plain = f"/{'/'.join(part for part in text.split('/') if part not in ('', '.'))}"
    if plain == "/":
        raise Wrong("/ is the image's: nothing can be mounted over it")
    return plain


def _word(text: str) -> str:
    """The form of an option; which ones a source has is for :func:`misplaced`."""
    if not text or text.startswith("-") or any(letter in ", \t\n" for letter in text):
        raise Wrong(f"{text!r} is not an option: write each option as a string of its own")
    key, equals, _ = text.partition("=")
    if equals and key in _SECRETS:
        raise Wrong(f"{key}= does not belong in a pod file: name a file of credentials")
    if key in ("remount", "move"):
        raise Wrong(f"{text!r} is not an option of a new mount")
    return text


def _amount(text: str) -> bool:
    number = text[:-1] if text[-1:] in tuple("kKmMgG%") else text
    return number.isascii() and number.isdecimal()


def _octal(text: str) -> bool:
    return 0 < len(text) < 6 and not text.strip("01234567")


def _id(text: str) -> bool:
    return whole(text, (1 << 32) - 1) is not None


_VALUES = {
    "size": (_amount, "a size such as 64M or 10%"),
    "nr_inodes": (_amount, "a number such as 64k"),
    "mode": (_octal, "an octal mode such as 1777"),
    "uid": (_id, "a numeric id"),
    "gid": (_id, "a numeric id"),
}
_OF_TMPFS = ("size", "mode", "uid", "gid", "nr_inodes")
_OF_A_FILE = ("mode", "uid", "gid")


def _type(text: str) -> str:
    if not text or text.strip(_LETTERS + "-_.") or not text[0].isalnum():
        raise Wrong(f"expected a file system type such as ext4, not {text!r}")
    return text


def _mapping(text: str) -> str:
    fields = text.removeprefix("uid:").removeprefix("gid:").split(":")
    if len(fields) != 3 or not all(_id(field) for field in fields) or fields[2] == "0":
        raise Wrong(f"expected [uid:|gid:]SOURCE:POD:COUNT such as '1000:0:1', not {text!r}")
    return text


SOURCE = checked(TEXT, _source, {"examples": ["/srv/web", "volume:data", "tmpfs:", "image:nginx:1.27", "file:"]})
TARGET = checked(ABSOLUTE, _target)
OPTION = checked(TEXT, _word, {"examples": ["ro", "noexec", "size=64M"]})


class Options(NamedTuple):
    """What is mounted where."""

    source: str = option(
        SOURCE,
        "an absolute path of the host, volume:NAME, tmpfs:, image:REF, nfs:HOST:/EXPORT, btrfs-snapshot:/PATH, "
        "file: with content, credential or secret, or with type anything that mount(8) takes",
    )
    target: str = option(TARGET, "where the containers see it")
    options: list[str] = option(
        list_of(OPTION),
        "mount(8) options; nosuid and nodev unless undone by suid and dev; changes to a path with O, to an image "
        "with rw, are thrown away; with U all of a path or volume is given to the payload's user",
        [],
    )
    type: str = option(
        checked(TEXT, _type), "a file system type: mount(8) mounts the source, a block device or an image file too", ""
    )
    content: str = option(kept_secret(TEXT), "with file: its content; it appears in no journal and in no inspect", "")
    credential: str = option(
        checked(TEXT, volume_name), "with file: the systemd credential to copy (LoadCredential= of the unit)", ""
    )
    secret: str = option(checked(TEXT, volume_name), "with file: the secret to copy ('podrun secret create')", "")
    idmap: list[str] = option(
        list_of(checked(TEXT, _mapping)),
        "of a path or volume: owners of the source as others in the pod, '1000:0:1'",
        [],
    )


def kind_of(source: str, type: str = "", options: Sequence[str] = ()) -> str:
    """What sort of source it is: bind, volume, tmpfs, file, image, snapshot, overlay, or mount for mount(8)."""
    prefixes = ((VOLUME, "volume"), (TMPFS, "tmpfs"), (FILE, "file"), (IMAGE, "image"), (SNAPSHOT, "snapshot"))
    for prefix, name in prefixes:
        if source.startswith(prefix):
            return name
    if type not in ("", "bind") or source.startswith(NFS):
        return "mount"
    return "overlay" if OVERLAY in options else "bind"


def misplaced(source: str, options: Sequence[str], type: str = "") -> list[Problem]:
    """The options that such a source does not have."""
    sort = kind_of(source, type, options)
    called = {"tmpfs": "a tmpfs", "file": "a file", "image": "an image", "overlay": "an overlay"}
    problems = []
    for word in () if sort == "mount" else options:
        key, equals, value = word.partition("=")
        what = f"{word!r} is not an option of {called.get(sort, 'a bind mount')}"
        if equals:
            if key in {"tmpfs": _OF_TMPFS, "file": _OF_A_FILE}.get(sort, ()):
                fits, expected = _VALUES[key]
                if fits(value):
                    continue
                what = f"{key}: expected {expected}, not {value!r}"
        elif word in GROUP:
            if not (sort == "tmpfs" and word in OF_A_BIND):
                continue
        elif (word == OVERLAY and sort == "overlay") or (word == _NO_COPY and sort == "volume"):
            continue
        elif word == OWN and sort in ("bind", "volume"):
            if source not in _SYSTEM:
                continue
            what = f"{source} is the host's: its files cannot be given to a payload's user"
        problems.append(Problem(what, WRONG_FILE, key="options"))
    if sort == "bind" and not source.startswith("/"):
        what = f"expected an absolute path, volume:NAME or tmpfs:, not {source!r}"
        problems.append(Problem(what, WRONG_FILE, key="source"))
    if type and sort not in ("mount", "bind") and type != sort:
        problems.append(Problem(f"type {type!r} does not go with {source}", WRONG_FILE, key="type"))
    return problems


def resolved(defaults: Sequence[str], options: Sequence[str]) -> list[str]:
    """The defaults with what ``options`` say; of words that contradict each other, the later."""
    chosen = {GROUP.get(word, word.partition("=")[0]): word for word in (*defaults, *options)}
    return list(chosen.values())


def split_docker(text: str) -> tuple[str, str, list[str]]:
    """Source, target and options of docker's ``source:target[:options]``; a source without a slash is a volume."""
    fields = text.split(":")
    if len(fields) not in (2, 3) or not fields[0]:
        raise Wrong(f"expected source:target[:options], not {text!r}")
    source = fields[0] if "/" in fields[0] else f"{VOLUME}{fields[0]}"
    if source.startswith("."):
        raise Wrong(f"expected an absolute path, not {text!r}")
    words = fields[2].split(",") if len(fields) == 3 else []
    return _source(source), TARGET.parse(fields[1]), [word for word in words if word and word not in IDLE]
