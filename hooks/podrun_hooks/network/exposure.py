"""The exposures of a network step, for ``podrun check --security``."""

from __future__ import annotations

from podrun.hook_extras import Exposure
from podrun_hooks.network.publish import spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from podrun.hook import Step


def of(step: Step) -> Iterator[Exposure]:
    """Reports whose network the pod is in, and who can reach it."""
    options = step.options
    mode = options.mode.partition(":")[0]
    if mode == "host":
        what = "it is in the host's network: it reaches what listens on 127.0.0.1, and abstract sockets"
        yield Exposure(what, 2.0, 'mode = "bridge", with publish')
    elif mode in ("netns", "pod"):
        yield Exposure(f"it is in the network of {options.mode}", 0.5, 'mode = "bridge"')
    elif mode == "macvlan":
        yield Exposure("it is on the host's wire, with no rule in between", 0.5, 'mode = "bridge"')
    for one in spec.each(options.publish) if options.publish else ():
        if one.ip in ("", "0.0.0.0", "::"):
            yield Exposure(f"port {one.host} is open to every network of the host", 0.3, f"127.0.0.1:{one.host}:...")
