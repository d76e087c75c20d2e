"""Unpacks podrun where that has not been done, and runs it from there."""

import os
import sys

NAME = "@NAME@"


def cache():
    """The directory of what is unpacked: root's own for root, so that nobody else can change it."""
    if os.geteuid() == 0:
        return "/var/cache/podrun"
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "podrun")


def unpack(archive, place):
    """Unpacks into a directory of its own and gives it its name at the end: nobody sees half of it."""
    import shutil
    import tempfile
    import zipfile

    os.makedirs(os.path.dirname(place), mode=0o755, exist_ok=True)
    scratch = tempfile.mkdtemp(prefix=".unpacking-", dir=os.path.dirname(place))
    try:
        with zipfile.ZipFile(archive) as file:
            file.extractall(scratch)
        os.chmod(scratch, 0o755)
        os.rename(scratch, place)
    except OSError:
        shutil.rmtree(scratch, ignore_errors=True)
        # Another start may have been first.
        if not os.path.isdir(place):
            raise


def believed(place):
    """Whether what is unpacked is ours: others could have put it there."""
    try:
        status = os.lstat(place)
    except OSError:
        return False
    return status.st_uid in (0, os.geteuid()) and not status.st_mode & 0o022 and os.path.isdir(place)


def main():
    """Runs podrun from where it is unpacked."""
    archive = os.path.abspath(sys.argv[0])
    place = f"{cache()}/{NAME}"
    try:
        if not os.path.isdir(place):
            unpack(archive, place)
    except OSError as error:
        sys.exit(f"podrun: {error.filename or place}: {error.strerror}: the single file unpacks itself there")
    if not (believed(place) and believed(os.path.dirname(place))):
        sys.exit(f"podrun: {place} can be changed by others: remove it")
    sys.path[0] = place
    # The interpreter found this file's __main__ already; podrun has one of its own.
    import podrun

    podrun.PROGRAM = archive
    from podrun.__main__ import main

    main()


main()
