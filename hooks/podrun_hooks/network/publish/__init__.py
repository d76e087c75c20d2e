"""Published ports."""
