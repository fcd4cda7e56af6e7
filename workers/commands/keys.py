"""``nnsec keys``: key pairs, and the lines of configuration that trust them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from nnsec.errors import ConfigError
from nnsec.trust import keys

app = typer.Typer(no_args_is_help=True)

LINES: dict[str, str] = {
    "release": '[trust]\nrelease_keys = ["{public}"]',
    "operator": '[trust]\noperator_keys = ["{public}"]',
}
NOTES: dict[str, str] = {
    "release": (
        "It signs checkpoints and says which one serves. Every worker needs {public}; {private} is "
        "for whoever makes checkpoints, and for the remediation worker: "
        '[remediation] release_key = "{private}"'
    ),
    "operator": (
        "It signs orders such as `nnsec checkpoint rollback --key {private}`. Every worker needs "
        "{public}; {private} stays with the operator."
    ),
    "audit": "It is reserved for signing the heads of audit chains: nothing writes them yet.",
}


@app.callback()
def group() -> None:
    """Make keys."""


@app.command()
def new(
    role: Annotated[str, typer.Option(help="release, operator or audit (reserved).")],
    out: Annotated[Path, typer.Option(help="File of the private key; FILE.pub goes beside it.")],
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Make a P-256 key pair: the private half for its owner only, the public half for all."""
    if role not in keys.ROLES:
        raise ConfigError(f"no role {role!r}; there are {', '.join(keys.ROLES)}")
    made = keys.write_new(out)
    names = {"private": str(out), "public": f"{out}.pub"}
    if as_json:
        typer.echo(json.dumps({"role": role, "id": made.id} | names))
        return
    typer.echo(f"wrote {out} (keep it secret) and {out}.pub, id {made.id}")
    typer.echo(NOTES[role].format(**names))
    if role in LINES:
        typer.echo(f"Add to nnsec.toml:\n\n{LINES[role].format(**names)}")
