"""`python -m cdrl.cli`: the command line of this very environment."""

from cdrl.cli import main

main()
