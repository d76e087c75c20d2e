"""Published ports: how they are written, who holds them, and the nft map in which each is an element."""
