"""What listens: the XML-RPC server machinery shared by the embedded PLC and the node's local API."""
