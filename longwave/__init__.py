"""longwave: language models with O(N) token mixing, certified causal, split-exact and bounded."""

from importlib.metadata import version

__version__ = version("longwave")
