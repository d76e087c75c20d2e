"""systemd: units, notification, exit records and the journal."""
