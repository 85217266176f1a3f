"""Parts that model families share: layers, blocks, attention."""
