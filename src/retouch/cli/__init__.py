"""The command line, `retouch`: arguments in, files and a few lines of text out.

The library makes all decisions. Heavy modules are imported when a command needs them, so that help is quick.
"""
