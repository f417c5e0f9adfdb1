"""List the benchmarks: the name and the first docstring line of each."""

import ast
from pathlib import Path


def main() -> None:
    folder = Path(__file__).parent
    for path in sorted(folder.glob("*.py")):
        if path.name.startswith("_"):
            continue
        doc = ast.get_docstring(ast.parse(path.read_text())) or ""
        print(f"python -m benchmarks.{path.stem:<16} {doc.partition(chr(10))[0]}")


if __name__ == "__main__":
    main()
