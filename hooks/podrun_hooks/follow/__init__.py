"""The follower: one small process a host, outside the data path, that keeps records and follows services."""
