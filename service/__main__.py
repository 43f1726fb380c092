"""`python -m service` is `signin`."""

from service.cli import main

main()
