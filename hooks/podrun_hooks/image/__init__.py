"""The image hook: resolves an image's name to read-only layer directories and a configuration."""

from __future__ import annotations

import os

from podrun.errors import UNAVAILABLE, WRONG_FILE, Failure
from podrun.hook import Problem
from podrun.options import REQUIRED, TEXT, Wrong, checked, choice, option, record
from podrun.record import NamedTuple
from podrun.unit_needs import UnitNeeds
from podrun_hooks.image import reference
from podrun_hooks.image.store import layout
from podrun_hooks.image.store.leftovers import sweep
from podrun_hooks.image.trust import requirements

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence, Set
    from typing import Any

    from podrun.hook import Facts, Step

takes: Sequence[str] = ()
gives = ("image", "images")
resident = False
default_name = ""
unit_needs = UnitNeeds(images=(("ref",),))


def _platform(text: str) -> str:
    if text and not (1 <= text.count("/") <= 2 and all(text.split("/"))):
        raise Wrong(f"expected os/architecture[/variant] such as 'linux/arm64', not {text!r}")
    return text


class Options(NamedTuple):
    """The options of an image step."""

    ref: str = option(
        TEXT,
        "the image: [host/]name[:tag][@digest], oci:/path[:tag], oci-archive:, docker-archive:, docker-daemon:NAME, "
        "dir:/rootfs, or host: for the machine itself",
        REQUIRED,
    )
    pull: str = option(
        choice("missing", "always", "newer", "never"),
        "when to ask the registry: 'newer' is 'always' that goes on with what is stored when nobody answers",
        "missing",
    )
    platform: str = option(
        checked(TEXT, _platform), "os/architecture[/variant] to choose from a multi-platform image", ""
    )
    verify: requirements.Verify | None = option(
        record(requirements.Verify), "signatures that the image has to have: a cosign_key, a containers policy", None
    )


def up(step: Step, facts: Facts) -> Facts:
    """Facts: "image" (this step's name) and "images": {name: the fields of layout.Image}."""
    found = _found(step.pod.root, step.options, step.notify)
    return {"image": step.name, "images": {step.name: found.facts()}}


def bring(root: str, options: Any, notify: Callable[[str], None]) -> None:
    """Pulls the image now where it is missing and a start would pull it for that."""
    if options.pull == "missing":
        _found(root, options, notify)


def _found(root: str, options: Any, notify: Callable[[str], None]) -> layout.Image:
    named = reference.parse(options.ref)
    demands = requirements.demands(options.verify, named)
    found = _ready(root, named, options.pull, options.platform)
    if found is None or not requirements.proved(root, demands, found.digest):
        from podrun_hooks.image.pull import shown

        found = shown(root, named, options.pull, options.platform, notify, demands)
    return found


def down(step: Step, own: Facts) -> None:
    """Removes what killed pulls left behind; images stay in the store."""
    sweep(step.pod.root)


def check(step: Step) -> Sequence[Problem]:
    """Finds wrong names, missing local sources, and images that are not stored and must not be pulled."""
    options = step.options
    try:
        named = reference.parse(options.ref)
        requirements.demands(options.verify, named)
    except Failure as failure:
        return [Problem(failure.what, failure.code, failure.hint, key="ref")]
    if named.kind == reference.DIR:
        if not os.path.isdir(named.path):
            return [Problem(f"{named.path} is not a directory", WRONG_FILE, key="ref")]
        return []
    if named.kind == reference.HOST:
        return []
    if options.pull == "never" and not _is_stored(step.pod.root, named, options.platform):
        hint = f"run: podrun image pull {options.ref}"
        return [Problem(f"{named.text} is not in the store, and pull is 'never'", UNAVAILABLE, hint, key="ref")]
    missing = named.kind in reference.FILES and not os.path.exists(layout.source_file(named))
    if missing and layout.stored(step.pod.root, named.text, options.platform) is None:
        what = "no OCI image layout (index.json) is there" if os.path.isdir(named.path) else "no such file or directory"
        return [Problem(f"{named.path}: {what}", WRONG_FILE, key="ref")]
    if (
        step.pod.thorough
        and named.registry
        and layout.cached(step.pod.root, named, options.pull, options.platform) is None
        and _identified(step.pod.root, named, options.platform) is None
    ):
        from podrun_hooks.image.registry.reachability import problems

        return problems(named.registry)
    return []


def version(root: str, options: Any) -> dict[str, Any]:
    """See versions.version()."""
    from podrun_hooks.image import versions

    return versions.version(root, options)


def available(root: str, options: Any) -> str:
    """See versions.available()."""
    from podrun_hooks.image import versions

    return versions.available(root, options)


def refresh(root: str, options: Any, notify: Callable[[str], None]) -> None:
    """See versions.refresh()."""
    from podrun_hooks.image import versions

    versions.refresh(root, options, notify)


def as_it_is(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options to start the stored image again: the registry may have another one under the name by now."""
    return {**options, "pull": "never"}


def bring_back(root: str, version: dict[str, Any]) -> None:
    """See versions.bring_back()."""
    from podrun_hooks.image import versions

    versions.bring_back(root, version)


def exclusive(step: Step) -> str:
    """Generations of a pod can always share an image: it is read-only."""
    return ""


def explain(step: Step) -> list[str]:
    """The closest commands of skopeo and umoci."""
    named = reference.parse(step.options.ref)
    directory = layout.base(step.pod.root)
    if named.kind == reference.HOST:
        return ["# host: /usr of this machine, read-only, with an /etc of its own; nothing is copied"]
    if named.kind == reference.DIR:
        return [f"# {named.path} is used as it is"]
    source = f"docker://{named.text}" if named.registry else named.text
    return [
        f"skopeo copy {source} oci:{directory}:NAME",
        f"umoci raw unpack --image {directory}:NAME ROOTFS   # layer by layer",
    ]


def images_of(options: Mapping[str, Any]) -> list[str]:
    """The name of the image as the step spells it."""
    return [options["ref"]]


def collect(root: str, run: str, pods: Set[str], only_look: bool) -> list[str]:
    """Removes what killed pulls left behind, and the layers and blobs that failed ones left at least a day ago; spares
    running pulls. Returns only the latter."""
    if only_look:
        from podrun_hooks.image.store.unclaimed import expired

        gone = expired(root)
    else:
        gone = sweep(root)
    return [f"{name[:18].replace('-', ' ')} of a pull that failed" for name in gone]


def _ready(root: str, named: Any, policy: str, platform: str) -> layout.Image | None:
    """The image, if nothing has to be fetched or unpacked for it."""
    if named.kind == reference.DIR:
        if not os.path.isdir(named.path):
            raise Failure(f"{named.path} is not a directory", code=WRONG_FILE)
        return layout.Image(named.text, "", [named.path], {})
    if named.kind == reference.HOST:
        from podrun_hooks.image.sources import host

        return host.ready(root)
    return layout.cached(root, named, policy, platform) or _identified(root, named, platform)


def _is_stored(root: str, named: reference.Reference, platform: str) -> bool:
    return bool(layout.stored(root, named.text, platform) or _identified(root, named, platform))


def _identified(root: str, named: reference.Reference, platform: str) -> layout.Image | None:
    if not (named.digest or reference.digits(named)):
        return None
    from podrun_hooks.image import lookup

    return lookup.identified(root, named, platform)
