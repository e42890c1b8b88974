"""What is read of a user's past for one target: each reader one file, all written against `Past`."""
