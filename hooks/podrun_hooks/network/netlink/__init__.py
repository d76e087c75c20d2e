"""Netlink messages, encoded by hand."""
