"""``python -m babyllama``: the same as the console script."""

from babyllama.cli import main

if __name__ == "__main__":
    main()
