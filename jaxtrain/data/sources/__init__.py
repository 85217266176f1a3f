"""Where examples come from: one file a source, and what all of them become."""
