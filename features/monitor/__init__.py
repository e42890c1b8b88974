"""What a feature set holds, and how far another one has drifted from it."""
