"""Other projects' names and signatures over our ops, a file per project: `from nanonet.compat.trl import patch`.

Nothing is loaded or patched before it is asked for. What a file does not offer raises; no mathematics lives here.
"""
