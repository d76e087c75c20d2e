"""The quick path of a pull that finds nothing to do: does the name still resolve to the image in the store?"""

from __future__ import annotations

from podrun.record import NamedTuple
from podrun_hooks.image import reference
from podrun_hooks.image.store import layout
from podrun_hooks.image.store.leftovers import sweep
from podrun_hooks.image.trust.requirements import demands, proved

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from podrun_hooks.image.trust.requirements import Verify


class Answer(NamedTuple):
    """The result of :func:`ask`."""

    #: The image, if there is nothing to pull.
    image: layout.Image | None
    #: The registry has another image under the name now: a pull need not ask again.
    changed: bool = False


def ask(root: str, ref: str, platform: str, notify: Callable[[str], None], cwd: str, verify: Verify | None) -> Answer:
    """Checks an image in the store against its registry, using only modules that are cheap to import.

    Raises Failure (WRONG_FILE, MALFORMED, UNAVAILABLE) as a pull would for the name and for ``verify``.
    """
    named = reference.parse(ref, cwd)
    demanded = demands(verify, named)
    if named.kind != reference.REGISTRY:
        return Answer(None)
    known = layout.stored(root, named.text, platform)
    if known is None or not proved(root, demanded, known.digest):
        return Answer(None)
    if not named.digest:
        from podrun_hooks.image.registry import head

        notify(f"STATUS=Pulling {named.text}")
        remote = head.digest(named)
        if remote != known.remote:
            return Answer(None, changed=bool(remote))
    sweep(root)
    return Answer(layout.image(root, known))
