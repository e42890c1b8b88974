"""What a row may know at its own time: histories, counters, negatives, earlier requests."""
