"""`python -m gpbackprop` is the command `gpbackprop`."""

from gpbackprop.cli import main

if __name__ == "__main__":
    main()
