"""A project folder of one's own: settings, Makefile and README, from which everything runs without a checkout."""
