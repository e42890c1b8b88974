"""The `quadrank` command: options in, a stage called, one JSON line out."""
