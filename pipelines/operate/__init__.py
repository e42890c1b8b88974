"""What keeps a scheduled job running unwatched: its outcome for machines, what waits, what is wrong, what may go."""
