"""The click model: encoders, embeddings, history readers and a tower put together."""
