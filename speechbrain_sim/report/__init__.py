"""Tables, figures and sounds -> a report."""
