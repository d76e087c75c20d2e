"""Registries: what a record is, where records are kept, what this host's pods want of them. Standard library only."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from podrun_hooks.registry.consul import Consul
    from podrun_hooks.registry.etcd import Etcd
    from podrun_hooks.registry.source import Source


def connect(source: Source) -> Etcd | Consul:
    """The client of a registry with a server; nothing is sent yet."""
    if source.kind == "etcd":
        from podrun_hooks.registry.etcd import Etcd

        return Etcd(source)
    from podrun_hooks.registry.consul import Consul

    return Consul(source)
