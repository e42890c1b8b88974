"""Feature set -> model -> bundle -> scores. `ctr.ranker` and `ctr.server` import no torch."""
