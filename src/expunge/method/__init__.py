"""The contract between a method and what runs it: settings, presets, students, runs."""
