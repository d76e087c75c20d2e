"""A service of a compose file while it becomes a pod, and what it has to know of the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ..container import Container
from ..draft import Pod
from ..yamltext import Table
from . import networks
from .project import Asked, Project


class Context(NamedTuple):
    """What a service has to know of the others."""

    project: Project
    services: Table
    #: The pods' names by service.
    pods: Mapping[str, str]
    networks: Mapping[str, networks.Network]
    #: The first network of each service.
    first: Mapping[str, str]
    images: Mapping[str, str]
    asked: Asked


class Service(NamedTuple):
    """A service on its way to a pod."""

    context: Context
    name: str
    table: Table
    pod: Pod
    container: Container
