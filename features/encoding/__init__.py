"""Raw value to index or number and back, by column, and the encoder that does it offline and online."""
