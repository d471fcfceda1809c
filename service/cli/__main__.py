"""``python -m service.cli`` is `tailor`."""

from service.cli.main import main

main()
