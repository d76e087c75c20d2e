"""Compose files: each service becomes a pod, each network a bridge, and what depends on what stays so."""

from __future__ import annotations

from collections.abc import Mapping

from podrun.errors import WRONG_FILE, Failure

from ..draft import Draft, Origin, Pod, identity
from ..yamltext import Table
from . import networks, project, service
from .context import Context
from .project import Asked as Asked
from .project import Project


def convert(asked: Asked, images: Mapping[str, str]) -> Draft:
    """The pods of a compose project. ``images``: by service, where its image is instead of what the file says.

    Raises Failure (WRONG_FILE) for what is no compose project.
    """
    try:
        return _convert(asked, images)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        # Values of other types than compose has there, where no single key can be blamed.
        raise Failure(f"the project cannot be read: {error}", code=WRONG_FILE) from None


def _convert(asked: Asked, images: Mapping[str, str]) -> Draft:
    draft = Draft()
    read = project.read(asked, draft)
    services = _active(read, draft)
    if not services:
        raise Failure("the project has no service to convert", code=WRONG_FILE, hint="profiles: --profile NAME")
    unknown = [name for name in images if name not in services]
    if unknown:
        raise Failure(f"--image: the project has no service: {', '.join(unknown)}", code=WRONG_FILE)
    if asked.one_network:
        networks.join(services, draft)
    pods = {name: _pod_name(read, name, table) for name, table in services.items()}
    bridges = networks.declare(read, services, draft)
    context = Context(read, services, pods, bridges, networks.first(services), dict(images), asked)
    awaited = _awaited(services)
    for name, table in services.items():
        origin = Origin(read.services.where(name), f"services.{name}")
        pod = Pod(pods[name], origin)
        service.convert(context, pod, name, table, origin, awaited.get(name, set()))
        draft.add(pod)
    _sort(draft, context)
    return draft


def _active(read: Project, draft: Draft) -> Table:
    """The services without a profile or with an active one, and those that they depend on."""
    active = Table(read.services.file)
    active.places = read.services.places
    chosen = read.profiles
    wanted = [
        name
        for name, table in read.services.items()
        if not table.get("profiles") or "*" in chosen or chosen & set(map(str, table["profiles"]))
    ]
    for name in wanted:
        for other in project.depends_on(read.services[name]):
            if other in read.services and other not in wanted:
                wanted.append(other)
    for name, table in read.services.items():
        if name in wanted:
            active[name] = table
        else:
            profiles = ", ".join(map(str, table["profiles"]))
            draft.note(
                Origin(read.services.where(name), f"services.{name}"),
                f"left out: of the profile {profiles}, which is not active",
                f"--profile {table['profiles'][0]}",
                by_hand=False,
            )
    return active


def _pod_name(read: Project, name: str, table: Table) -> str:
    """container_name is a name of the whole host, as a pod's name is; else the project's name stands before it."""
    return identity(str(table["container_name"]) if table.get("container_name") else f"{read.name}-{name}")


def _awaited(services: Table) -> dict[str, set[str]]:
    """How others wait for each service: the conditions of their depends_on."""
    found: dict[str, set[str]] = {}
    for table in services.values():
        for other, entry in project.depends_on(table).items():
            condition = entry.get("condition", "service_started") if isinstance(entry, dict) else "service_started"
            found.setdefault(other, set()).add(str(condition))
    return found


def _sort(draft: Draft, context: Context) -> None:
    """Those that others depend on first: the order in which people would start them by hand."""
    order: list[str] = []

    def visit(name: str, chain: tuple[str, ...]) -> None:
        if name in chain:
            cycle = " -> ".join([*chain[chain.index(name) :], name])
            raise Failure(f"depends_on has a cycle: {cycle}", code=WRONG_FILE)
        if name in order or name not in context.services:
            return
        for other in project.depends_on(context.services[name]):
            visit(other, (*chain, name))
        order.append(name)

    for name in context.services:
        visit(name, ())
    names = [context.pods[name] for name in order]
    draft.pods.sort(key=lambda pod: names.index(pod.name))
