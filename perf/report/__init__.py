"""The report of `make profile` as one HTML page and as Markdown.

`sections` says what is in it, `plots` draws, `verdict` sums up; `page` and `markdown` write the files.
"""
