"""podrun's first-party hooks. They import what every hook author may, and their own files: read them as examples."""
