"""podrun's first-party hooks. They use podrun.hook and podrun.errors only: read them as examples."""
