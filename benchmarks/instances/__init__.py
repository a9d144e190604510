"""Published placement problems: one reader a format, each with `find` and `solve`."""
