"""The commands that start the same container by hand."""

from __future__ import annotations

from podrun_hooks.container import paths as places

TYPE_CHECKING = False
if TYPE_CHECKING:
    from podrun.hook import Step


def commands(step: Step) -> list[str]:
    """What to type, in order; LAYERS stands for the directories of the image, the uppermost first."""
    place, options = places.of(step), step.options
    runtime = options.runtime if options.runtime in ("crun", "runc") else "crun"
    call = f"{runtime} --root {place.runtime}"
    overlay = f"lowerdir=LAYERS,upperdir={place.upper},workdir={place.work}"
    lines = [
        f"mkdir -p {place.upper} {place.work} {place.rootfs}",
        "unshare --mount sh   # what follows is typed in there: the mounts go with the container",
        f"mount -t overlay overlay -o {overlay} {place.rootfs}",
        f"$EDITOR {place.config}   # the facts so far: mounts, env, deviceNodes, netns, hooks",
        f"{call} create --bundle {place.bundle} --pid-file {place.pid_file} {place.id}",
        f"{call} start {place.id}",
    ]
    probe = _probe(step)
    if probe:
        inside = f"nsenter --net --target $(cat {place.pid_file})"
        lines.append(f"until {inside} {probe}; do sleep {options.ready.interval:g}; done")
    stop = f"{call} kill {place.id} TERM; {call} delete --force {place.id}"
    return [*lines, f"# down: {stop}; rm -r {place.bundle}"]


def _probe(step: Step) -> str:
    """The readiness probe as a command."""
    ready = step.options.ready
    if ready is None:
        return ""
    if ready.http:
        where = ready.http if not ready.http.startswith(":") else f"127.0.0.1{ready.http}"
        return f"curl --fail --silent http://{where.removeprefix('http://')}"
    if ready.tcp:
        host, _, port = ready.tcp.rpartition(":")
        return f"nc -z {host or '127.0.0.1'} {port}"
    return f"--all {' '.join(ready.exec)}" if ready.exec else ""
