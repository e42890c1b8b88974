"""Parts of the serving graphs: rows of the item table taken apart, and trees that read them."""
