"""``python -m pipeline STAGE``: the commands without their installed names, as the flow starts them."""

from pipeline.cli.app import main

main()
