"""Items that came after the export: their rows beside the item table, in a new version of the bundle."""
