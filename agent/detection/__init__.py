"""Judging silence: the rules that turn readings into alerts. Integers only, time as an argument."""
