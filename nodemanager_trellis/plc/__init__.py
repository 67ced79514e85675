"""The embedded PLC: a PLCAPI-compatible server for one testbed.

``types`` checks arguments, ``classes`` declares the object classes, ``store`` makes tables of them, ``records`` reads
and writes them, ``filters`` is PLCAPI's filter language; ``methods`` declares what can be called.
"""
