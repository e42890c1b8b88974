"""Hypothesis judges what the code does, never how fast a busy machine draws examples."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# In a fresh clone hypothesis first builds its Unicode tables, a second or more inside whichever test draws text first.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
