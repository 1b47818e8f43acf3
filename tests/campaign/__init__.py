"""The fault campaign: hostile input, damaged files and kills, many of them, drawn from a seed.

`make campaign` runs it. It is not part of `make test`, which runs a few seconds of each area (test_campaign.py).
"""
