"""The command line. Each command imports what it needs when it runs, so that --help answers at once."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raytune import __version__, log
from raytune.errors import RaytuneError

if TYPE_CHECKING:
    from raytune.config.rules import Verb
    from raytune.config.run import RunConfig

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Fine-tune, align and serve language models on Ray.")
config_app = typer.Typer(no_args_is_help=True, help="Look at keys and resolved configs.")
data_app = typer.Typer(no_args_is_help=True, help="Look at what the model will see.")
app.add_typer(config_app, name="config")
app.add_typer(data_app, name="data")

_TYPERS_CTRL_C = 130
_UNLESS = " (with resume_from_checkpoint=auto if it overwrites output_dir)"
_PASS_THROUGH = {"ignore_unknown_options": True, "allow_extra_args": True}
File = Annotated[Path, typer.Argument(help="YAML or JSON config, with LLaMA-Factory's keys.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value or --key value; they win over the file.")]


@app.command(context_settings=_PASS_THROUGH)
def train(file: File, overrides: Overrides = None) -> None:
    """Run a training stage."""
    # First the config: a slip in it is answered before anything heavy is imported.
    resolved = _load(file, overrides)
    from raytune.launch import train as run

    summary = run(resolved)
    if summary.interrupted:
        typer.echo(
            f"Interrupted and saved in {summary.folder}. The same command goes on from there{_UNLESS}.", err=True
        )
        raise typer.Exit(1)
    _say_summary(summary.folder, summary.results)


@app.command(context_settings=_PASS_THROUGH)
def plan(file: File, overrides: Overrides = None) -> None:
    """Print what a run would need and where it would go, without starting anything."""
    resolved = _load(file, overrides)
    from raytune.plan import describe_plan

    typer.echo(describe_plan(resolved))


@app.command(context_settings=_PASS_THROUGH)
def export(file: File, overrides: Overrides = None) -> None:
    """Merge adapters and write the finished model."""
    cfg = _ready(file, overrides, "export")
    from raytune.export.merge import export_model

    typer.echo(f"Exported to {export_model(cfg)}", err=True)


@app.command(context_settings=_PASS_THROUGH)
def chat(
    file: File,
    overrides: Overrides = None,
    message: Annotated[str | None, typer.Option(help="Answer one question and exit.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
) -> None:
    """Talk with a model in the terminal."""
    cfg = _ready(file, overrides, "chat")
    from raytune.chat import run_chat

    run_chat(cfg, message, system)


@data_app.command("show", context_settings=_PASS_THROUGH)
def data_show(
    file: File,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(help="How many rows.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a row.")] = False,
) -> None:
    """Print prepared rows: decoded text with the trained tokens marked."""
    cfg = _ready(file, overrides, "data")
    from raytune.data.show import show_rows
    from raytune.models.tokenizer import load_tokenizer

    show_rows(cfg, load_tokenizer(cfg.model), rows=rows, as_json=as_json)


@config_app.command("show", context_settings=_PASS_THROUGH)
def config_show(file: File, overrides: Overrides = None) -> None:
    """Print the resolved config and where each value came from."""
    from raytune.config.explain import show

    typer.echo(show(_load(file, overrides)))


@config_app.command("explain")
def config_explain(key: Annotated[str, typer.Argument(help="A config key.")]) -> None:
    """Print type, default, meaning, allowed values and reader of a key."""
    from raytune.config.explain import explain

    typer.echo(explain(key))


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(f"raytune {__version__}")


def _load(file: Path, overrides: list[str] | None):
    from raytune.config.load import load_config

    resolved = load_config(file, overrides or [])
    for warning in resolved.warnings:
        typer.echo(f"warning: {warning}", err=True)
    return resolved


def _ready(file: Path, overrides: list[str] | None, verb: "Verb") -> "RunConfig":
    """A config that has what a verb needs, checked before the verb's libraries are imported."""
    from raytune.config.rules import check_built, check_verb

    cfg = _load(file, overrides).config
    check_built(cfg, verb)
    check_verb(cfg, verb)
    return cfg


def _say_summary(folder: Path, results: dict[str, dict[str, float | int]]) -> None:
    numbers = {key: value for part in results.values() for key, value in part.items()}
    shown = [f"{key} {numbers[key]:.4g}" for key in ("train_loss", "eval_loss", "eval_accuracy") if key in numbers]
    shown += [f"{numbers['train_tokens_per_second']:.0f} tokens/s", f"{numbers['train_runtime']:.0f} s"]
    typer.echo(f"Done: {', '.join(shown)}. Model, logs and results are in {folder}.", err=True)


def main() -> None:
    """Entry point: errors a user can mend are printed on one screen, without a stack trace."""
    log.configure()
    try:
        app()
    except RaytuneError as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        sys.exit(error.exit_code)
    except SystemExit as end:
        # Typer ends silently on Ctrl-C.
        if end.code == _TYPERS_CTRL_C:
            typer.echo("Interrupted.", err=True)
            sys.exit(1)
        raise


if __name__ == "__main__":
    main()
