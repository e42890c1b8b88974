"""A bundle to scores, without torch; imports nothing of `ctr` but itself."""
