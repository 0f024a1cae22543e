"""What experiments need: tasks, parts taken away, trials, and how to tell a gap from noise."""
