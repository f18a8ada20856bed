"""The dashboard's files: plain HTML, CSS and ES modules, served as they are by `resources/ui.py`."""
