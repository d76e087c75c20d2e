"""systemd: units and their generator, sd_notify, exit records, the journal's entries."""
