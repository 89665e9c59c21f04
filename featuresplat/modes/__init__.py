"""Ways of representing a scene over training: one file, one mode."""
