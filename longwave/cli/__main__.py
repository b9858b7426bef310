"""``python -m longwave.cli``."""

from longwave.cli import main

if __name__ == "__main__":
    main()
