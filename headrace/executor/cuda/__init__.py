"""Steps on an NVIDIA GPU: the whole Program on the device, one copy in and one out. `forms` needs no torch."""
