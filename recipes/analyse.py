"""Former name of recipes/study.py."""

raise SystemExit("recipes/analyse.py is now recipes/study.py with study.yaml.")
