"""The stages of one job, from raw log to promoted bundle."""
