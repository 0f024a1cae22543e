"""What pages draw beyond plain charts: figure 1, a film, an explorer, and their own charts."""
