"""What lies on disk: the layout of a feature set, its manifest, Arrow and vector files, atomic writes."""
