"""The command line: flat verbs, options in any order. Nothing heavy is imported before a verb runs.

A verb is a file in `featuresplat/verbs`; see there.
"""

from __future__ import annotations

import difflib
import os
import sys
import warnings
from types import ModuleType

from featuresplat import __version__, registry
from featuresplat.errors import FeaturesplatError


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 2 for what a user can mend, 130 for Ctrl-C, 1 otherwise."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    argv = [a for a in argv if a != "--debug"]
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            code = _dispatch(argv)
            sys.stdout.flush()
            return code
        except BrokenPipeError:
            # Whoever read our output has gone; keep the interpreter from complaining when it closes the stream.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except KeyboardInterrupt as stop:
            if debug:
                raise
            return _fail(str(stop) or "interrupted.", "", 130)
        except FeaturesplatError as error:
            if debug:
                raise
            return _fail(error.message, error.hint, 2)
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 2
        except Exception as error:
            if debug:
                raise
            said = str(error).strip().splitlines()
            what = f"{type(error).__name__}: {said[0]}" if said else type(error).__name__
            return _fail(f"unexpected {what}", "This is a bug: run again with --debug and report what it prints.", 1)


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"featuresplat {__version__}")
        return 0
    verb, rest = argv[0], argv[1:]
    if verb not in registry.names("verbs"):
        close = difflib.get_close_matches(verb, registry.names("verbs"), n=1)
        hint = f"Perhaps you meant '{close[0]}'." if close else f"Verbs: {', '.join(_verbs())}."
        raise FeaturesplatError(f"there is no verb '{verb}'.", hint)
    module = registry.load("verbs", verb)
    if hasattr(module, "main"):
        return module.main(rest) or 0
    import tyro

    return tyro.cli(module.run, args=rest, prog=f"featuresplat {verb}") or 0


def _verbs() -> dict[str, ModuleType]:
    """All verbs by name, in the order of the help."""
    found = {name: registry.load("verbs", name) for name in registry.names("verbs")}
    return dict(sorted(found.items(), key=lambda item: getattr(item[1], "ORDER", 50)))


def _help() -> str:
    verbs = _verbs()
    width = max(map(len, verbs))
    lines = [f"  {name:<{width}}  {(module.__doc__ or '').splitlines()[0]}" for name, module in verbs.items()]
    return "\n".join(
        [
            "usage: featuresplat VERB [--help] ...",
            "",
            "Photographs in; a scene of Gaussians out, to look at, to measure and to export.",
            "",
            *lines,
            "",
            "  --version   the version",
            "  --debug     with any verb: the whole traceback of an error",
            "",
            "Begin with: featuresplat demo, or featuresplat train PHOTOS --config draft",
        ]
    )


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"note: {message}", file=sys.stderr)


def _fail(message: str, hint: str, code: int) -> int:
    print(f"featuresplat: {message}" + (f"\n{hint}" if hint else ""), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
