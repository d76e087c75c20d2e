"""What tests share: builders, servers, booted hosts, listings of the machine's objects."""
