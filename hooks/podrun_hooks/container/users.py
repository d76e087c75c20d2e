"""USER: a user[:group] as the image's own passwd and group files understand it."""

from __future__ import annotations

from podrun.errors import MALFORMED, WRONG_FILE, Failure
from podrun.options import Wrong
from podrun.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from podrun_hooks.support.rooted_tree import Tree
    from podrun_hooks.support.userns import Range

#: (uid_t) -1 means "leave it" to setresuid(2) and chown(2): the last number that names a user is one less.
_LAST = 2**32 - 2
#: Bytes of a passwd or group file: a million users.
_LARGEST = 64 << 20


class User(NamedTuple):
    """Who the container's process is."""

    uid: int
    gid: int
    #: Supplementary groups, without ``gid``.
    groups: Sequence[int] = ()
    home: str = "/"

    def seen_from_outside(self, base: Range) -> User:
        """The same user by the host's ids: ``base`` is where the pod's ids begin there."""
        groups = [base.gid + group for group in self.groups]
        return self._replace(uid=base.uid + self.uid, gid=base.gid + self.gid, groups=groups)


def spelled(text: str) -> str:
    """Checks the spelling "user[:group]"; raises Wrong. A number of 2^32-1 or more names nobody."""
    user, _, group = text.partition(":")
    # "1000:" and ":1000" are docker's: what is left out is the default.
    for word in [word for word in (user, group) if word] or [""]:
        if not word or ":" in word or word.startswith("-") or not word.isprintable() or set(word) & set(" /,"):
            raise Wrong(f"expected a user such as 'www-data', '1000' or '1000:1000', not {text[:100]!r}")
        if word.isdigit() and not _is_number(word):
            if not word.isascii():
                raise Wrong(f"expected a user such as 'www-data', '1000' or '1000:1000', not {text[:100]!r}")
            raise Wrong(f"{word[:20]} is not a uid or gid: the largest is {_LAST}")
    return text


def resolve(text: str, tree: Tree, *, of_image: bool) -> User:
    """The User of "user[:group]" ("": root).

    As docker does: a number needs no entry in passwd, a name does; with a group given there are no supplementary
    groups. Raises Failure: MALFORMED for what the image says of itself, WRONG_FILE for what the pod file says.
    """
    code = MALFORMED if of_image else WRONG_FILE
    try:
        spelled(text or "0")
    except Wrong as wrong:
        raise Failure(f"user: {wrong.what}", code=code) from None
    word, _, group = text.partition(":")
    word = word or "0"
    entry = next(_entries(tree, "/etc/passwd", word, 3), None)
    if entry is None and not word.isdigit():
        raise Failure(f"user {word[:100]!r} is not in the image's /etc/passwd", code=code)
    # An entry that was found by its number cannot change that number.
    uid = int(word.lstrip("0") or "0") if word.isdigit() or entry is None else _number(entry[2], code)
    # Short rows are accepted: a missing gid is 0, any other missing field is empty.
    gid = 0 if entry is None else _number(entry[3] or "0", code)
    home = (entry[5] if entry else "") or "/"
    if group:
        found = None if group.isdigit() else next(_entries(tree, "/etc/group", group, 3), None)
        if found is None and not group.isdigit():
            raise Failure(f"group {group[:100]!r} is not in the image's /etc/group", code=code)
        return User(uid, int(group.lstrip("0") or "0") if found is None else _number(found[2], code), (), home)
    name = entry[0] if entry else ""
    groups = [_number(row[2], code) for row in _rows(tree, "/etc/group", 3) if name and name in row[3].split(",")]
    return User(uid, gid, [number for number in dict.fromkeys(groups) if number != gid], home)


def group(text: str, tree: Tree) -> int:
    """The number of a supplementary group, a name or a number. Raises Failure (WRONG_FILE)."""
    if _is_number(text):
        return int(text.lstrip("0") or "0")
    found = next(_entries(tree, "/etc/group", text, 4), None)
    if found is None:
        raise Failure(f"group {text[:100]!r} is not in the image's /etc/group", code=WRONG_FILE)
    return _number(found[2], WRONG_FILE)


def _is_number(text: str) -> bool:
    """True for the number of a user or a group. CPython converts no more than 4300 digits."""
    return text.isascii() and text.isdigit() and len(text.lstrip("0")) <= 10 and int(text.lstrip("0") or "0") <= _LAST


def _number(text: str, code: int) -> int:
    if not _is_number(text):
        raise Failure(f"the image's passwd or group file has a number out of range: {text[:20]!r}", code=code)
    return int(text.lstrip("0") or "0")


def _entries(tree: Tree, file: str, word: str, fields: int) -> Iterator[list[str]]:
    """The rows whose name, or whose number, ``word`` is; as in getent(1), the first that fits counts.

    A number is no name: a row called "1000" is not user 1000, whatever number it has.
    """
    field = 2 if word.isdigit() else 0
    wanted = word.lstrip("0") or "0" if field else word
    return (row for row in _rows(tree, file, fields) if (row[field].lstrip("0") or "0" if field else row[0]) == wanted)


def _rows(tree: Tree, file: str, fields: int) -> Iterator[list[str]]:
    for line in tree.read(file, _LARGEST).decode(errors="replace").splitlines():
        row = line.split(":")
        if len(row) >= fields and not line.startswith("#"):
            yield row + [""] * (7 - len(row))
