"""The page of the explorer."""


def explorer_page(title):
    """Returns the page as html; `title` is text."""
    from html import escape

    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        f"<title>{escape(title)}</title><h1>{escape(title)}</h1>"
    )
