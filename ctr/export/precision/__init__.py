"""Graphs of less precision: smaller or faster, and almost the same scores. Which one is exported is measured."""
