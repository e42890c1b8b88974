"""What a user declares: the data contract, its typed parts, and strict settings files."""
