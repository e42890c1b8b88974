"""Raw files as one lazy log under fixed names."""
