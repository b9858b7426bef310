"""longwave: language models with O(N) token mixing, certified causal, split-exact and bounded."""
