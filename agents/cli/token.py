"""`riffle token`."""

from __future__ import annotations

import json

import click

from agents.web.tokens import GRANTED, NAME, Scope, line_of, new_token, rate_of

__all__ = ["token"]


def _name(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    if NAME.fullmatch(value) is None:
        raise click.BadParameter("must be at most 64 letters, digits, dots, dashes and underscores")
    return value


def _rate(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    try:
        rate_of(value)
    except ValueError as exc:
        raise click.BadParameter(f"{exc}; use - for no limit") from exc
    return value


@click.command()
@click.argument("name", callback=_name)
@click.option(
    "--scope", "scopes", multiple=True, required=True, type=click.Choice([str(s) for s in GRANTED]), help="Repeatable."
)
@click.option("--rate", default="-", show_default=True, callback=_rate, help="Requests a second; N/M: M at once; -: no limit.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def token(name: str, scopes: tuple[str, ...], rate: str, as_json: bool) -> None:
    """Make a token for HTTP, and print it with its line for RIFFLE_HTTP_TOKENS_FILE.

    Nothing keeps the token: give it to its client now. The line holds only a hash of it. To withdraw a token remove its line.
    Workers use a changed file at once. Workers and commands themselves need a token with the scopes recommend and operate
    (`riffle load` operate, `riffle recommend --users all` also users, titles in `riffle ask` items), in RIFFLE_HTTP_TOKEN_FILE.
    Give Prometheus one with the scope metrics.

    Example: riffle token shop --scope recommend --scope events --rate 200/400
    """
    made = new_token()
    line = line_of(name, map(Scope, scopes), rate, made)
    if as_json:
        click.echo(json.dumps({"token": made, "line": line}))
        return
    click.echo("the token's line, for RIFFLE_HTTP_TOKENS_FILE:", err=True)
    click.echo(line)
    click.echo("the token, for its client:", err=True)
    click.echo(made)
