"""Former name of recipes/study.py."""

raise SystemExit("recipes/sweep.py is now recipes/study.py with study.yaml.")
