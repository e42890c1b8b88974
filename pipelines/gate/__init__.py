"""The gate between a bundle and its users: what it must show, who serves now, and the way back."""
