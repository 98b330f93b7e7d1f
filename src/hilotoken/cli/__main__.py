"""`python -m hilotoken.cli`."""

from . import main

main()
