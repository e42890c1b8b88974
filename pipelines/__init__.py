"""The commands: thin stages that can each be run again."""
