"""YAML from others, read within bounds: small files, no code, no key twice, no value that unfolds into a giant one."""

from pathlib import Path

import yaml

from phantomlib.errors import shown
from phantomlib.files import check_regular

LARGEST = 300_000  # bytes; some 1,500 contexts


class _Loader(yaml.SafeLoader):
    """Plain YAML. Of anchors only those of text and numbers may be used again.

    An alias of a list that holds aliases of lists is how a few lines become a billion values.
    """

    def compose_node(self, parent, index):
        alias = self.peek_event() if self.check_event(yaml.AliasEvent) else None
        node = super().compose_node(parent, index)
        if alias and not isinstance(node, yaml.ScalarNode):
            raise yaml.composer.ComposerError(
                None, None, f"{shown('*' + alias.anchor)} repeats a list or mapping; write it out", alias.start_mark
            )
        return node

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{shown(key.value)} is given twice", key.start_mark
                )
            seen.add((key.tag, str(key.value)))
        return super().construct_mapping(node, deep)


class _TextLoader(_Loader):
    """The same, but numbers, dates and words such as ``on`` stay the text they are."""

    yaml_implicit_resolvers: dict = {}


def read_yaml(path: Path, as_text: bool = False):
    """The content of a YAML file of at most 300 kB; ``as_text`` and errors as in :func:`parse_yaml`.

    Raises:
        OSError: it cannot be read, or is a device or a pipe.
    """
    check_regular(path)
    if path.stat().st_size > LARGEST:
        raise yaml.YAMLError(f"it is larger than {LARGEST // 1000} kB")
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), as_text)
    except UnicodeDecodeError as error:
        raise yaml.YAMLError(str(error)[:200]) from None


def parse_yaml(text: str, as_text: bool = False):
    """What a YAML text says, in plain Python types; if ``as_text``, in lists, mappings and text only.

    Raises:
        yaml.YAMLError: not YAML, a tag that makes objects, a key given twice, a list or mapping repeated by an alias, or
            nested beyond reason.
    """
    try:
        return yaml.load(text, _TextLoader if as_text else _Loader)
    except RecursionError:
        raise yaml.YAMLError("it is nested beyond reason") from None
    except (ValueError, OverflowError, TypeError, AttributeError, KeyError) as error:
        # a date such as 2024-13-45, !!int of a word, !!timestamp of something else
        raise yaml.YAMLError(str(error)[:200]) from None
