"""`shuiwang backtest` and `shuiwang advise`: what the rules would have done on readings of the past.

The detector is the gateway's own (`agent.detection.watch`, `agent.alerts`); nothing here judges a reading.
"""
