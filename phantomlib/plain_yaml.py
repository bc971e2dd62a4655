"""YAML from others, read within bounds: small files, no code, no key twice, no value that unfolds into a giant one."""

from pathlib import Path

import yaml

from phantomlib.errors import shown
from phantomlib.files import check_regular

LARGEST = 300_000  # bytes; some 1,500 contexts


class _Loader(yaml.SafeLoader):
    """Plain YAML. Of anchors only those of text and numbers may be used again."""

    def compose_node(self, parent, index):
        alias = self.peek_event() if self.check_event(yaml.AliasEvent) else None
        node = super().compose_node(parent, index)
        if alias and not isinstance(node, yaml.ScalarNode):  # lists of aliases unfold a few lines into a billion values
            said = f"{shown('*' + alias.anchor)} repeats a list or mapping; write it out"
            raise yaml.composer.ComposerError(None, None, said, alias.start_mark)
        return node

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                said = f"{shown(key.value)} is given twice"
                raise yaml.constructor.ConstructorError(None, None, said, key.start_mark)
            seen.add((key.tag, str(key.value)))
        return super().construct_mapping(node, deep)


class _TextLoader(_Loader):
    """The same, but numbers, dates and words such as ``on`` stay the text they are."""

    yaml_implicit_resolvers: dict = {}


def read_yaml(path: Path, as_text: bool = False):
    """The content of a YAML file of at most 300 kB, as :func:`parse_yaml` gives it; OSError if it cannot be read."""
    check_regular(path)
    if path.stat().st_size > LARGEST:
        raise yaml.YAMLError(f"it is larger than {LARGEST // 1000} kB")
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), as_text)
    except UnicodeDecodeError as error:
        raise yaml.YAMLError(str(error)[:200]) from None


def parse_yaml(text: str, as_text: bool = False):
    """What a YAML text says, in plain Python types; if ``as_text``, in lists, mappings and text only. YAMLError if not plain."""
    try:
        return yaml.load(text, _TextLoader if as_text else _Loader)
    except RecursionError:
        raise yaml.YAMLError("it is nested beyond reason") from None
    except (ValueError, OverflowError, TypeError, AttributeError, KeyError) as error:
        # a date such as 2024-13-45, !!int of a word, !!timestamp of something else
        raise yaml.YAMLError(str(error)[:200]) from None
