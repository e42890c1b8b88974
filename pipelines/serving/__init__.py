"""Putting a bundle to work: the HTTP server."""
