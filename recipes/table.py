"""Former name of recipes/study.py."""

raise SystemExit("recipes/table.py is now recipes/study.py with study.yaml.")
