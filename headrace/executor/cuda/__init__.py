"""Steps on an NVIDIA GPU: the whole Program on the device, one copy in and one out. Importing its modules imports torch."""
