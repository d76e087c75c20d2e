"""What is known of hooks without importing them: for units, which systemd's generator makes where podrun is not there.

Of podrun's own hooks this is a copy of what they declare (a test compares the two); 'podrun unit --install-generator'
adds the hooks of installed packages.
"""

from __future__ import annotations

from podrun.record import NamedTuple
from podrun.unit_needs import Span, UnitNeeds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


class Known(NamedTuple):
    """What a hook declares of itself."""

    #: Its steps leave a process running; a table: those with just these options.
    resident: bool | Mapping[str, str] = False
    default_name: str = ""
    needs: UnitNeeds = UnitNeeds()


NOTHING = Known()

HOOKS: Mapping[str, Known] = {
    "userns": Known(),
    "image": Known(needs=UnitNeeds(images=(("ref",),))),
    "storage": Known(),
    "network": Known(),
    "container": Known(
        resident=True,
        default_name="main",
        needs=UnitNeeds(
            start=(Span(("ready", "timeout"), 30.0),),
            stop=(Span(("stop_timeout",), None),),
            watchdog=(Span(("live", "interval"), 10.0), Span(("live", "timeout"), 5.0)),
            answers=((("ready", "notify"), "direct"),),
            capabilities=(("cap_add",), ("capabilities", "add")),
            devices=(("devices",),),
            device_rules=(("device_rules",),),
            limits=(("ulimits",),),
            gains=(("no_new_privileges",),),
            signals=(("stop_signal",),),
        ),
    ),
    # A proxy that stands for a service elsewhere.
    "ambassador": Known(
        resident={"via": "haproxy"}, needs=UnitNeeds(stop=(Span(("drain",), 0.0),), follows=(("registry",),))
    ),
    "register": Known(needs=UnitNeeds(stop=(Span(("drain",), 0.0),), follows=(("registry",),))),
    "wait-for": Known(),
    "oci-hooks": Known(),
}
