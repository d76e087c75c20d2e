"""podrun starts a container pod the way systemd starts a service: no daemon, no shim, nothing left resident."""

__version__ = "0.1.0"

#: The path of the file that podrun was started from where its own modules do not tell: the single file of release/.
PROGRAM = ""

#: True where the command has the interpreter begin without site (python -S), as Debian's does: see podrun.host.
SITE_LEFT_OUT = False
