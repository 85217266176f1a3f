"""Image operations inside the jitted step: normalisation, augmentation and mixing."""
