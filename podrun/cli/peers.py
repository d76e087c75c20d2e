"""Words of docker and podman: some are commands here under another name; of the others podrun says what to use."""

from __future__ import annotations

from typing import Any

import click

from podrun.cli import completion, creating, images, stopping, views
from podrun.cli.output import Guarded
from podrun.launcher.commands import host_of, name_of

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
    "export": "'podrun cp NAME:/ -' writes a container's files as a tar stream",
    "mount": "'podrun image mount REF' shows an image, 'podrun cp' copies files, 'podrun exec' looks around",
    "manifest": "podrun makes no images: buildah manifest",
    "context": "podrun has no daemon, and runs on this machine",
    "buildx": "podrun builds no images: use buildah, or docker build and 'podrun image pull docker-daemon:NAME'",
    "unshare": "podrun runs as root",
}
#: Docker's longer words, ``container WORD``, where they are not WORD.
OF_CONTAINERS = {"ls": "ps", "list": "ps", "ps": "ps", "prune": "gc", "update": "set"}
_CONTAINERS = (
    "attach", "cp", "create", "diff", "exec", "inspect", "kill", "logs", "pause", "port", "restart", "rm", "run",
    "start", "stats", "stop", "top", "unpause", "wait",
)  # fmt: skip


class Containers(click.Group):
    """``podrun container WORD``: docker's longer words for podrun's commands."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*_CONTAINERS, "exists", "ls", "prune", "update"])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "exists":
            return exists
        name = OF_CONTAINERS.get(cmd_name, cmd_name if cmd_name in _CONTAINERS else "")
        root = ctx.find_root().command
        return root.get_command(ctx, name) if name and isinstance(root, click.Group) else None


@click.command("exists", cls=Guarded)
@click.argument("word", metavar="FILE|NAME", shell_complete=completion.words)
@click.pass_context
def exists(ctx: click.Context, word: str) -> int:
    """0 when there is such a pod, up, ended or created; else 1. Nothing is printed."""
    host = host_of(ctx.obj)
    name = name_of(word, host)
    return int(not (views.inspect(host.run, name) or views.ended(host.run, name) or views.created(host, name)))


container = Containers("container", help="Docker's longer words: 'container ls' is 'ps', and so on.")


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


WORDS: dict[str, click.Command] = {
    "container": container,
    "load": images.load, "save": images.save, "stop": stopping.stop, "rm": stopping.rm, "start": creating.start,
}  # fmt: skip
