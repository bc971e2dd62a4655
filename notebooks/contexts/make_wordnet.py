"""Sentences with near-synonyms that nobody picked by hand, from the usage examples of WordNet 3.0.

The rule. A synset counts if at least two of its words are single lower-case words. Of each of its usage examples, the first
of these words that has at least four words before it is the correct word; what stands before it is the prompt; the synset's
other single words are its competitors. Of several examples with the same prompt the first is kept. Nothing else is chosen:
which of them fit a model (words of one token each, a competitor that the model prefers) is found out where they are used.

    python notebooks/contexts/make_wordnet.py /usr/share/wordnet phantomlib/wordnet.tsv

The folder holds WordNet's files ``data.noun``, ``data.verb``, ``data.adj`` and ``data.adv`` (Debian's package wordnet-base).
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

LEAST_WORDS = 4  # before the correct word
NOTICE = """\
Sentences from the usage examples of WordNet 3.0, each cut before one of the synset's words. Made by
notebooks/contexts/make_wordnet.py, whose first lines are the rule. Columns: synset, prompt, correct word, competitors.

WordNet 3.0 Copyright 2006 by Princeton University. All rights reserved.

This software and database is being provided to you, the LICENSEE, by Princeton University under the following license. By
obtaining, using and/or copying this software and database, you agree that you have read, understood, and will comply with
these terms and conditions: Permission to use, copy, modify and distribute this software and database and its documentation
for any purpose and without fee or royalty is hereby granted, provided that you agree to comply with the following copyright
notice and statements, including the disclaimer, and that the same appear on ALL copies of the software, database and
documentation, including modifications that you make for internal use or for distribution.

THIS SOFTWARE AND DATABASE IS PROVIDED "AS IS" AND PRINCETON UNIVERSITY MAKES NO REPRESENTATIONS OR WARRANTIES, EXPRESS OR
IMPLIED. BY WAY OF EXAMPLE, BUT NOT LIMITATION, PRINCETON UNIVERSITY MAKES NO REPRESENTATIONS OR WARRANTIES OF
MERCHANTABILITY OR FITNESS FOR ANY PARTICULAR PURPOSE OR THAT THE USE OF THE LICENSED SOFTWARE, DATABASE OR DOCUMENTATION
WILL NOT INFRINGE ANY THIRD PARTY PATENTS, COPYRIGHTS, TRADEMARKS OR OTHER RIGHTS. The name of Princeton University or
Princeton may not be used in advertising or publicity pertaining to distribution of the software and/or database. Title to
copyright in this software, database and any associated documentation shall at all times remain with Princeton University
and LICENSEE agrees to preserve same.
"""


def sentences(folder: Path) -> Iterator[tuple[str, str, str, str]]:
    """Synset, prompt, correct word and competitors, in the order of WordNet's files."""
    seen = set()
    for part in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{part}").read_text(encoding="ascii").splitlines():
            if line.startswith("  "):  # the licence
                continue
            head, _, gloss = line.partition(" | ")
            fields = head.split()
            listed = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
            words = dict.fromkeys(re.sub(r"\(\w+\)$", "", word) for word in listed)  # an adjective's place: "(a)"
            single = [word for word in words if re.fullmatch("[a-z]+", word)]
            for example in re.findall(r'"([^"]+)"', gloss) if len(single) > 1 else ():
                places = [
                    (found.start(), word)
                    for word in single
                    for found in re.finditer(rf"(?<![\w-]){word}(?![\w-])", example)
                    if len(example[: found.start()].split()) >= LEAST_WORDS
                ]
                if places:
                    start, correct = min(places)
                    prompt = example[:start].strip()
                    if prompt not in seen:
                        seen.add(prompt)
                        others = " ".join(word for word in single if word != correct)
                        yield f"{part}.{fields[0]}", prompt, correct, others


if __name__ == "__main__":
    folder, target = map(Path, sys.argv[1:])
    lines = ["\t".join(row) for row in sentences(folder)]
    notice = "".join(f"# {line}".rstrip() + "\n" for line in NOTICE.splitlines())
    target.write_text(notice + "\n".join(lines) + "\n", encoding="ascii")
    print(f"Written: {target}, {len(lines)} sentences")
