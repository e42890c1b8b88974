"""What the workers of a study share: its storage, who is at work on which trial, the cores and memory of a host."""
