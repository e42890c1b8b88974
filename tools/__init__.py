"""Scripts of the Makefile that run before anything is installed: the standard library alone."""
