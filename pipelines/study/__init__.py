"""Models compared over seeds, with peers beside them."""
