"""Where a training step's time goes: its parts, the least each can take, and how it grows with sizes."""
