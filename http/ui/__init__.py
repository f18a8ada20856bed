"""The dashboard's files: HTML, CSS and ES modules, served as they are by `resources/ui.py`."""
