"""What is learned from the training window alone: the split, the catalogues, every column encoder."""
