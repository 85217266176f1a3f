"""Name maps, one file an origin."""
