"""Why a model scores as it does: corrupted vectors, permuted columns, one score explained."""
