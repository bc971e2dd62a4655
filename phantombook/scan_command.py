"""The command ``phantom scan``: which targets of a data set will be learnt?"""

from pathlib import Path
from typing import Annotated, Any

import typer

from phantomlib.errors import ParameterError, shown


def scan_data(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A .jsonl, .csv or .parquet file, or a saved folder.")],
    model: Annotated[str, typer.Option("--model", "-m", help="zoo:NAME, pretrained:NAME, folder, .gguf file, hub id.")],
    learning_rate: Annotated[float, typer.Option(help="The largest of the schedule.")] = 1e-5,
    epochs: Annotated[float, typer.Option(help="Passes through the data.")] = 3,
    batch_size: Annotated[int, typer.Option(help="Rows of a mini-batch, accumulated ones included.")] = 8,
    schedule: Annotated[str, typer.Option(help="constant, linear or cosine.")] = "linear",
    warmup: Annotated[int, typer.Option(help="Updates over which the rate rises first.")] = 0,
    optimizer: Annotated[str, typer.Option(help="adamw, adam or sgd.")] = "adamw",
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.")] = 0.0,
    clip: Annotated[float | None, typer.Option(help="Largest norm of a gradient (max_grad_norm).")] = None,
    method: Annotated[str, typer.Option(help="full or lora.")] = "full",
    rank: Annotated[int, typer.Option(help="Of LoRA.")] = 8,
    alpha: Annotated[float, typer.Option(help="Of LoRA.")] = 16.0,
    field: Annotated[
        list[str] | None, typer.Option(help="Name of the text's field, or of prompt and completion.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take this many rows at most.")] = None,
    device: Annotated[str, typer.Option(help="A torch device, e.g. cpu or cuda.")] = "cpu",
    seed: Annotated[int, typer.Option(min=0, help="Of the order of the rows, and of LoRA's start.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the targets here.")] = None,
    page: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page that opens offline.")
    ] = None,
):
    """Before training: which targets of a data set will stay wrong while the loss falls, and which rate would teach them?"""
    from phantombook import scan_report
    from phantomlib.dataset.rows import read_records, tokenise
    from phantomlib.dataset.scan import scan
    from phantomlib.engine.recipe import Recipe, positions_of
    from phantomlib.files import write_text
    from phantomlib.models.language_model import load

    if field and len(field) > 2:
        raise ParameterError(
            f"--field is given {len(field)} times; give the text's field, or that of prompt and completion."
        )
    for path in filter(None, (csv, page)):
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise ParameterError(f"{shown(str(path), 300)} cannot be written; give a file in a folder that exists.")
    recipe = Recipe(optimizer=optimizer, method=method, rank=rank, alpha=alpha, weight_decay=weight_decay)
    records = read_records(data)
    loaded = load(model, device=device)
    positions = positions_of(loaded.module.config)
    rows, problems = tokenise(records, loaded.tokenizer, fields=tuple(field or ()), positions=positions, limit=limit)
    found = scan(loaded, rows, recipe, batch_size=batch_size, clip=clip, seed=seed)
    given: dict[str, Any] = {"learning_rate": learning_rate, "epochs": epochs, "schedule": schedule, "warmup": warmup}
    table = found.at(**given)
    if csv:
        write_text(csv, table.to_csv(index=False))
    if page:
        write_text(page, scan_report.as_page(found, rows, loaded.tokenizer, given))
    tell = scan_report.as_json if as_json else scan_report.as_text
    typer.echo(tell(found, table, given, problems))
