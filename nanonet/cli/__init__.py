"""The command line: parse, call, print.

Not here: what the commands do; each calls one function of another package.
"""
