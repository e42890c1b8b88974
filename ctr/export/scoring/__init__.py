"""The second graph of a bundle, which scores many requests at once: its module and its parity check."""
