"""Parameters: paths, groups, the parameter table, sharding."""
