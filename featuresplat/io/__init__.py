"""Files in and out: one file, one format."""
