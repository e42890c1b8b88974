"""Feature set -> model -> bundle -> scores. `ctr.serving.ranker` and `ctr.server` import no torch."""
