"""The verbs of the command line: one file, one verb, found by listing this folder.

The first line of the module's docstring is its line in the help; ``ORDER`` places it there. ``run`` is what the verb
does: tyro makes its flags from the signature and the docstring. A verb that reads its arguments itself has
``main(argv) -> exit code or None`` in its place. Modules import nothing heavy at their top: the help loads them all.
"""
