"""The bus: how commands reach the exchange and facts leave it. The only room that knows MQTT.

``port`` says what the rest of the gateway asks of any door; ``client`` is the MQTT door, ``memory`` the one of tests
and simulations. ``topics`` and ``messages`` are the contract with the members.
"""
