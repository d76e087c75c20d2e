"""What a pull that finds nothing to do has to know: is the image in the store what its name stands for now?"""

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
    """What one question brought."""

    #: The image, when there is nothing to do.
    image: layout.Image | None
    #: The name stands for something else now: nobody needs to ask again.
    changed: bool = False


def ask(root: str, ref: str, platform: str, notify: Callable[[str], None], cwd: str, verify: Verify | None) -> Answer:
    """Asks for an image that is in the store, and only with what costs no time to import.

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
        told = head.digest(named)
        if told != known.remote:
            return Answer(None, changed=bool(told))
    sweep(root)
    return Answer(layout.image(root, known))
