"""The command line, `retouch`: arguments in, files and a few lines of text out. Nothing is decided here that
the library does not decide; heavy modules are imported when a command needs them, so that help is quick.
"""
