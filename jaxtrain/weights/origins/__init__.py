"""Name maps, one file per origin."""
