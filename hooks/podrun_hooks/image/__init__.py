"""The image hook: a name becomes read-only layer directories and a configuration."""

from __future__ import annotations

import os

from podrun.errors import UNAVAILABLE, WRONG_FILE, Failure
from podrun.hook import REQUIRED, TEXT, Problem, checked, choice, option
from podrun.hook import Wrong as _Wrong
from podrun.hook import record as _record
from podrun.record import NamedTuple

from . import reference, store, verify

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence, Set
    from typing import Any

    from podrun.hook import Facts, Step

takes: Sequence[str] = ()
gives = ("image", "images")
resident = False
default_name = ""


def _platform(text: str) -> str:
    if text and not (1 <= text.count("/") <= 2 and all(text.split("/"))):
        raise _Wrong(f"expected os/architecture[/variant] such as 'linux/arm64', not {text!r}")
    return text


class Options(NamedTuple):
    """What an image step takes."""

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
    verify: verify.Verify | None = option(
        _record(verify.Verify), "signatures that the image has to have: a cosign_key, a containers policy", None
    )


def up(step: Step, facts: Facts) -> Facts:
    """Facts: "image" (this step's name) and "images": {name: the fields of store.Image}."""
    options = step.options
    named = reference.parse(options.ref)
    demands = verify.demands(options.verify, named)
    found = _ready(step.pod.root, named, options.pull, options.platform)
    if found is None or not verify.proved(step.pod.root, demands, found.digest):
        from .pull import pull

        found = pull(step.pod.root, named, options.pull, options.platform, step.notify, demands)
    return {"image": step.name, "images": {step.name: found.facts()}}


def down(step: Step, own: Facts) -> None:
    """The store outlives the pod; what a killed pull left behind does not."""
    store.sweep(step.pod.root)


def check(step: Step) -> Sequence[Problem]:
    """Wrong names, local sources that are not there, and images that may not be pulled but would have to be."""
    options = step.options
    try:
        named = reference.parse(options.ref)
        verify.demands(options.verify, named)
    except Failure as failure:
        return [Problem(failure.what, failure.code, failure.hint)]
    if named.kind == reference.DIR:
        if not os.path.isdir(named.path):
            return [Problem(f"{named.path} is not a directory", WRONG_FILE)]
        return []
    if named.kind == reference.HOST:
        return []
    if options.pull == "never" and store.stored(step.pod.root, named.text, options.platform) is None:
        hint = f"run: podrun image pull {options.ref}"
        return [Problem(f"{named.text} is not in the store, and pull is 'never'", UNAVAILABLE, hint)]
    missing = named.kind in reference.FILES and not os.path.exists(store.source_file(named))
    if missing and store.stored(step.pod.root, named.text, options.platform) is None:
        what = "no OCI image layout (index.json) is there" if os.path.isdir(named.path) else "no such file or directory"
        return [Problem(f"{named.path}: {what}", WRONG_FILE)]
    if (
        step.pod.thorough
        and named.registry
        and store.cached(step.pod.root, named, options.pull, options.platform) is None
    ):
        from .reach import problems

        return problems(named.registry)
    return []


def explain(step: Step) -> list[str]:
    """The commands of skopeo and umoci that come closest."""
    named = reference.parse(step.options.ref)
    layout = store.base(step.pod.root)
    if named.kind == reference.HOST:
        return ["# host: /usr of this machine, read-only, with an /etc of its own; nothing is copied"]
    if named.kind == reference.DIR:
        return [f"# {named.path} is used as it is"]
    source = f"docker://{named.text}" if named.registry else named.text
    return [
        f"skopeo copy {source} oci:{layout}:NAME",
        f"umoci raw unpack --image {layout}:NAME ROOTFS   # layer by layer",
    ]


def collect(root: str, run: str, pods: Set[str], only_look: bool) -> list[str]:
    """Removes what killed pulls left behind, of which there is nothing to tell, and layers that failed ones left a day
    ago or more; what is at work is left alone."""
    if only_look:
        from .publish import expired

        gone = expired(root)
    else:
        gone = store.sweep(root)
    return [f"{name[:18].replace('-', ' ')} of a pull that failed" for name in gone]


def _ready(root: str, named: Any, policy: str, platform: str) -> store.Image | None:
    """The image when no byte has to be fetched or unpacked for it."""
    if named.kind == reference.DIR:
        if not os.path.isdir(named.path):
            raise Failure(f"{named.path} is not a directory", code=WRONG_FILE)
        return store.Image(named.text, "", [named.path], {})
    if named.kind == reference.HOST:
        from . import host

        return host.ready(root)
    return store.cached(root, named, policy, platform)
