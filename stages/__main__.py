"""The commands beside the pipeline: `python -m stages` lists them, `python -m stages NAME …` runs one."""

import ast
import sys
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path

from stages.launch import run

COMMANDS = Path(__file__).parent / "commands"


def main() -> None:
    """Run the command that is named first, with the arguments after it; list all where none is."""
    run(_run_command)


def _run_command() -> None:
    commands = {path.stem: path for path in sorted(COMMANDS.glob("[!_]*.py"))}
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print("usage: python -m stages COMMAND [-h] …\n\nBeside the stages, which `dvc repro` runs:\n")
        for command, path in commands.items():
            print(f"  {command:<10} {_summary(path)}")
    elif name in commands:
        import_module(f"stages.commands.{name}").main(arguments)
    else:
        close = get_close_matches(name, commands, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(commands)}"
        print(f"error: {name} is not a command; {hint}", file=sys.stderr)
        sys.exit(2)


def _summary(path: Path) -> str:
    """The first line of a module's docstring after the command's name; without an import, which may take seconds."""
    line = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
    return line.partition(": ")[2] or line


if __name__ == "__main__":
    main()
