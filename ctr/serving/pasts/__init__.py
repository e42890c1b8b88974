"""What users did before, kept for requests that do not bring it: in the bundle, on this host, or in Redis."""
