"""The command line, ``dojima``: one file per command, ``main.py`` puts them together."""
