"""Raw tables to a published feature set in bounded memory, at once or day by day."""
