"""Words of docker and podman: some are commands here under another name; of the others podrun says what to use."""

from __future__ import annotations

from typing import Any

import click

from podrun.cli import creating, images, stopping

#: One command for another: the words that a peer's word stands for.
SAME = {
    "images": ("image", "ls"), "rmi": ("image", "rm"), "pull": ("image", "pull"), "import": ("image", "import"),
    "tag": ("image", "tag"), "untag": ("image", "untag"), "update-image": ("image", "pull"),
    "volumes": ("volume", "ls"), "networks": ("network", "ls"),
}  # fmt: skip
#: What podrun does not have, and what people use instead.
INSTEAD = {
    "build": "podrun builds no images: use buildah, or docker build and 'podrun image pull docker-daemon:NAME'",
    "commit": "podrun makes no images of containers: write a Containerfile, and build it with buildah",
    "push": "podrun pushes nothing: 'podrun image export' and skopeo copy do",
    "search": "podrun searches no registry",
    "rename": "a pod has the name of its file",
    "compose": "'podrun convert compose FILE' makes pod files of it",
    "generate": "'podrun unit NAME' prints units, 'podrun run --save FILE' a pod file",
    "play": "'podrun convert kube FILE' makes pod files of it",
    "kube": "'podrun convert kube FILE' makes pod files of it",
    "pod": "every pod is a file with all its containers: see docs/reference/pod-file.md",
    "machine": "podrun runs on this machine only",
    "swarm": "'podrun cluster' places pods on several hosts",
    "service": "'podrun unit --install NAME' makes a service of systemd's",
    "auto-update": "'podrun update'",
    "checkpoint": "podrun freezes pods ('podrun pause'), and writes no checkpoints",
}


class Group(click.Group):
    """The commands of podrun, and what people who come from elsewhere type."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = super().get_command(ctx, cmd_name)
        if command is None and cmd_name in SAME:
            group, name = SAME[cmd_name]
            inner = super().get_command(ctx, group)
            command = inner.get_command(ctx, name) if isinstance(inner, click.Group) else None
        if command is None and cmd_name in WORDS:
            return WORDS[cmd_name]
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            if args[0] in INSTEAD:
                raise click.UsageError(f"there is no {args[0]!r}: {INSTEAD[args[0]]}", ctx) from None
            raise


WORDS = {
    "load": images.load, "save": images.save, "stop": stopping.stop, "rm": stopping.rm, "start": creating.start,
}  # fmt: skip
