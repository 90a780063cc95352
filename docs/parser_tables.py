"""The directive `options`: an argparse parser as tables of options, read when the site is built.

sphinx-argparse reads our parsers too, but leaves out what stands behind an option (`--seeds N`) and prints internal
defaults (`[]`, `inf`, what the builder's environment holds). The help texts here name each default that matters.
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable, Iterator, Mapping

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

# What a help text writes as code: a command, a variable, an option, a quoted word, a data set with fields.
CODE = re.compile(
    r"(python -m [\w.]+(?: [a-z][\w-]*)?|\$[A-Z0-9_]+|(?<![\w-])--[a-z][\w-]*"
    r"|(?<!\w)'[^']+'(?!\w)|`[^`]+`|\b\w+:\w+=\S+)"
)


def directive(parsers: Mapping[str, Callable[[], argparse.ArgumentParser]]) -> type[SphinxDirective]:
    """Return the directive that shows one of `parsers` by its name."""

    class Options(SphinxDirective):
        """Tables of the options of a parser; a section for each verb where it has verbs."""

        required_arguments = 1

        def run(self) -> list[nodes.Node]:
            """Return the tables, or sections with tables."""
            parser = parsers[self.arguments[0]]()
            verbs = list(subcommands(parser))
            if not verbs:
                return [*prose(parser.description), *tables(parser)]
            return [self.section(f"{parser.prog} {name}", text, verb) for name, text, verb in verbs]

        def section(self, title: str, text: str, parser: argparse.ArgumentParser) -> nodes.section:
            """Return the section of one verb."""
            section = nodes.section(ids=[nodes.make_id(title)])
            section += nodes.title("", "", nodes.literal("", title))
            section += [*sentence(text), *prose(parser.description), *tables(parser)]
            self.state.document.note_explicit_target(section)
            return section

    return Options


def subcommands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    """Yield name, help and parser of each verb."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            texts = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, verb in action.choices.items():
                yield name, texts.get(name, ""), verb


def tables(parser: argparse.ArgumentParser) -> Iterator[nodes.Node]:
    """Yield a table of positional arguments and options, then a heading and a table for each further group."""
    positional, options, *groups = parser._action_groups
    shared = [action for group in (positional, options) for action in group._group_actions if _shown(action)]
    if shared:
        yield table(shared)
    for group in groups:
        title = group.title or ""
        yield nodes.rubric("", title[:1].upper() + title[1:])
        yield table([action for action in group._group_actions if _shown(action)])


def _shown(action: argparse.Action) -> bool:
    return action.help != argparse.SUPPRESS and not isinstance(action, argparse._HelpAction)


def table(actions: list[argparse.Action]) -> nodes.table:
    """Return a table with a row for each option: how it is written, what it means."""
    group = nodes.tgroup("", nodes.colspec(colwidth=35), nodes.colspec(colwidth=65), cols=2)
    group += nodes.thead("", row(nodes.Text("Option"), nodes.Text("Meaning")))
    body = nodes.tbody()
    for action in actions:
        spellings = [
            written for spelling in written_as(action) for written in (nodes.literal("", spelling), nodes.Text(", "))
        ]
        body += row(nodes.inline("", "", *spellings[:-1]), nodes.inline("", "", *meaning(action)))
    group += body
    return nodes.table("", group, classes=["options"])


def row(*cells: nodes.Node) -> nodes.row:
    """Return a row of a table, a paragraph a cell."""
    return nodes.row("", *(nodes.entry("", nodes.paragraph("", "", cell)) for cell in cells))


def written_as(action: argparse.Action) -> list[str]:
    """Return how an option is typed, with the word for its value behind the last spelling."""
    value = action.metavar if isinstance(action.metavar, str) else (action.dest.upper() if action.nargs != 0 else "")
    if spelt_out(action):
        value = "|".join(map(str, action.choices or ()))
    if not action.option_strings:
        return [f"[{value}]" if action.nargs in ("?", "*") else value]
    if action.nargs == "+":
        value = f"{value} ..."
    return [*action.option_strings[:-1], f"{action.option_strings[-1]} {value}".strip()]


def meaning(action: argparse.Action) -> Iterator[nodes.Node]:
    """Yield the help of an option, its first letter large, and its choices where a placeholder hides them."""
    text = (action.help or "").replace("%%", "%")
    yield from inline(capitalised(text))
    choices = [str(choice) for choice in action.choices or ()]
    if not spelt_out(action) and not all(choice in text for choice in choices):
        yield nodes.Text("; one of " + ", ".join(choices))


def spelt_out(action: argparse.Action) -> bool:
    """Return whether the choices of an option are few enough to stand behind its name."""
    choices = "|".join(map(str, action.choices or ()))
    return action.metavar is None and 0 < len(choices) <= 20


def sentence(text: str) -> Iterator[nodes.Node]:
    """Yield the help of a verb as a paragraph."""
    if text:
        yield nodes.paragraph("", "", *inline(f"{capitalised(text)}."))


def capitalised(text: str) -> str:
    """Return text with its first letter large, if it begins with a word and not with a name such as sqlite:///FILE."""
    return text[:1].upper() + text[1:] if re.match(r"[a-z.-]+([ ,;:]|$)(?!//)", text) else text


def prose(text: str | None) -> Iterator[nodes.Node]:
    """Yield the paragraphs of a description; indented ones stay as they are typed."""
    for part in re.split(r"\n\s*\n", inspect.cleandoc(text or "")):
        if part.startswith("    "):
            yield nodes.literal_block("", inspect.cleandoc(part), language="text")
        elif part:
            yield nodes.paragraph("", "", *inline(" ".join(part.split())))


def inline(text: str) -> Iterator[nodes.Node]:
    """Yield text with options, variables and quoted words as code."""
    for number, part in enumerate(CODE.split(text)):
        if part:
            yield nodes.literal("", part.strip("'`")) if number % 2 else nodes.Text(part)
