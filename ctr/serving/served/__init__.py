"""What was served: answers as rows of a parquet part, read back, and computed again offline."""
