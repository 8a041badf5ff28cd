"""`python -m edm2` is the command `edm2`."""

from edm2.tools.cli import main

if __name__ == "__main__":
    main()
