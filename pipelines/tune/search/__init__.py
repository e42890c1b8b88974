"""What a sweep searches: ranges of settings, the sampler that draws from them, two spaces compared."""
