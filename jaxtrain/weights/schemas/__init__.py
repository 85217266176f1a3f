"""What each field of the files beside weights means, one file per kind of file."""
