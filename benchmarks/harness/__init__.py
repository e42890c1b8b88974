"""How a number is taken: one call in a process of its own, the machine it ran on, and the report it goes into."""
