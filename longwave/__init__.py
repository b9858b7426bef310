"""longwave: language models with O(N) token mixing, certified causal, split-exact and bounded."""


def __getattr__(name: str) -> str:
    """``__version__``, looked up when it is asked for: the command line starts, and can be stopped, sooner."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version

    return version(__name__)
