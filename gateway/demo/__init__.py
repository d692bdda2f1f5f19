"""The demo: eight member firms, a broker and the exchange, each a process of its own, and one START day between them.

``strategy`` is what a firm wants to do that day, ``member`` is the firm's process, ``day`` tells the story from the
first process to the last, ``audit`` compares what every firm was told with the replayed log.
"""
