"""Entry point of `firebrick`: the commands, one file each."""

from dataclasses import Field, fields
from typing import Annotated

import typer

from firebrick import __version__, log
from firebrick.cli import audit, doctor, drill, instance, owners, sandbox, setup, snapshot, up, why
from firebrick.cli.console import out, reports_errors, table
from firebrick.config import Config, load_config

app = typer.Typer(
    help="Firebrick: a self-hosted sandbox cloud for AI agents.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(sandbox.app, name="sandbox")
app.add_typer(snapshot.app, name="snapshot")
app.add_typer(setup.app, name="setup")
app.command("up")(up.up)
app.command("down")(instance.down)
app.command("status")(instance.status)
app.command("env")(instance.env)
app.command("doctor")(doctor.doctor)
app.command("why")(why.why)
app.command("drill")(drill.drill)
app.add_typer(owners.teams, name="team")
app.add_typer(owners.keys, name="key")
app.add_typer(owners.users, name="user")
app.add_typer(owners.tokens, name="token")
app.add_typer(audit.app, name="audit")


@app.command("config")
@reports_errors
def config(
    markdown: Annotated[bool, typer.Option("--markdown", help="The reference page instead of the values.")] = False,
) -> None:
    """Show every setting with its value here."""
    if markdown:
        out.print(settings_page(), markup=False, soft_wrap=True, end="")
        return
    current = load_config()
    table(
        ("setting", "value", "unit", "what it is"),
        [(item.name, getattr(current, item.name), item.metadata["unit"], item.metadata["help"]) for item in _items()],
    )


@app.command("version")
def version() -> None:
    """Show the version."""
    print(__version__)


def settings_page() -> str:
    """docs/reference/settings.md: generated, so that it cannot lie."""
    rows = "".join(
        f"| `{item.name}` | `FIREBRICK_{item.name.upper()}` | `{item.default}` | {item.metadata['unit']} "
        f"| {item.metadata['help']} |\n"
        for item in _items()
    )
    return (
        "# Settings\n\n"
        "Made by `firebrick config --markdown`. A setting stands in `<data_dir>/firebrick.toml` (or the file that\n"
        "`FIREBRICK_CONFIG` names) or in the environment, which wins. Unknown keys are refused.\n\n"
        "| Setting | Environment | Default | Unit | What it is |\n|---|---|---|---|---|\n" + rows
    )


def _items() -> list[Field[object]]:
    return list(fields(Config))


def main() -> None:
    log.configure("error", "cli")
    app()


if __name__ == "__main__":
    main()
