"""What a feature set holds, in numbers: written by each build, read by people and by drift."""
