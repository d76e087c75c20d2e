"""Conversion: what other tools start containers with, read and written anew as pod files.

Reads compose files, Quadlet units, Kubernetes manifests and ``docker run`` command lines; podrun.cli.convert has the
commands. Every front end fills the same draft (draft.py), mostly through docker's own option names (options.py). What
has no equivalent becomes a note that says why and what to do by hand: nothing is dropped in silence.
"""
