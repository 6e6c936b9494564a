"""Measures that always carry how many cases they rest on and how sure they are."""
