"""podrun starts a container pod the way systemd starts a service: no daemon, no shim, nothing left resident."""

__version__ = "0.1.0"
