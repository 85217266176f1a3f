"""Image files on the host: finding, decoding, cropping."""
