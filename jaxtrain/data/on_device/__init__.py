"""Images inside the jitted step: normalisation, augmentation, mixing."""
