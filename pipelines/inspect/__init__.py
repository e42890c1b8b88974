"""Commands on one run, bundle or feature set: drift, vectors, stress, explanation, submission, speed."""
