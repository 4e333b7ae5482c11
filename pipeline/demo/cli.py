"""``make-demo-data``: the demo's data from the command line."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from pipeline.errors import InputError, RunError


@click.command("make-demo-data")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="New, empty or an earlier demo's.")
@click.option("--seed", type=int, default=None, help="Same seed, same bytes.  [default: 0]")
@click.option("--set", "changes", multiple=True, metavar="NAME=VALUE", help="Such as crawled_scenes=500.")
@click.option("--quiet", is_flag=True, help="No progress.")
def main(out: Path, seed: int | None, changes: tuple[str, ...], quiet: bool) -> None:
    """Draw the demo's scenes and write labelled, crawled and held-out sets into a folder.

    Needs no network: glyph fonts and photographs come from installed packages. A folder that already holds
    what these settings give is left alone. data_manifests/demo.yaml says what is in it.
    """
    from pipeline.config.recipes import build
    from pipeline.demo.config import DemoDataConfig
    from pipeline.demo.generate import generate_demo

    def tell(name: str, done: int, total: int) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r{name}: {done:,} of {total:,}", nl=done == total, err=True)
        elif done == total:
            click.echo(f"{name}: {done:,}", err=True)

    try:
        config = build(DemoDataConfig, {} if seed is None else {"seed": seed}, changes)
        summary = generate_demo(out, config, progress=None if quiet else tell)
    except (InputError, RunError) as error:
        click.echo(f"make-demo-data: {error}", err=True)
        sys.exit(error.exit_code)
    for line in summary.lines():
        click.echo(line)


if __name__ == "__main__":
    main()
