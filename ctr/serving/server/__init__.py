"""The HTTP server around a ranker: one event loop, few ranking threads, versions replaced while it runs."""
