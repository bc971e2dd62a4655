"""Put what the page "Train it here" loads beside its scripts: the smallest model of the zoo, its words, and the book's sentences."""

import json
import shutil
from pathlib import Path

from phantomlib.contexts import load_contexts
from phantomlib.models.zoo_models import path

MODEL = "gpt2-s"
NUMBERS = "critical_number_"  # of values that a chapter names: the constant N_c of each optimiser
STRAIGHT = 1.0  # where training in a straight line would overtake; used until a chapter has measured better


def write(app, exception):
    if exception or app.builder.format != "html":
        return
    folder, target = path(MODEL), Path(app.outdir) / "_static" / "live"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    contexts = [{"prompt": c.prompt, "correct": c.correct, "competitor": c.competitor} for c in load_contexts()]
    words = {word.replace("Ġ", " "): number for word, number in vocabulary.items()}
    facts = {"heads": config["n_head"], "words": words, "contexts": contexts, "numbers": measured(Path(app.srcdir))}
    target.mkdir(parents=True, exist_ok=True)
    (target / "model.json").write_text(json.dumps(facts), encoding="utf-8")
    shutil.copyfile(folder / "model.safetensors", target / "model.safetensors")


def measured(root: Path) -> dict[str, float]:
    """The constants that a chapter of this book has measured and named."""
    found = {"adam": STRAIGHT, "sgd": STRAIGHT}
    for notebook in sorted(root.glob("book/generated/*.ipynb")):
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
            for output in cell.get("outputs", ()):
                key = output.get("metadata", {}).get("scrapbook", {}).get("name", "")
                if key.startswith(NUMBERS):
                    [text] = output["data"].values()
                    found[key.removeprefix(NUMBERS)] = float("".join(text))
    return found


def setup(app):
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
